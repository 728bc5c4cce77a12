"""Calibration errors of a detector's scores, raw and calibrated, as a table."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .calibration import Calibrator, Target, calibration_errors, fit_calibrator
from .calibration_file import save_calibrator
from .metrics import percent
from .model_scores import FILES
from .overlaps import Samples
from .report import Report
from .score_quality import CalibrationQuality, ScoreQuality, judge_scores
from .thresholds import thresholds_content

_TITLE = "calibration errors of the scores"
_EXAMPLES = (0.1, 0.3, 0.5, 0.7, 0.9)  # raw scores


@dataclass
class CalibrationSummary:
    """Calibration errors, and optionally AP and oLRP, as fractions.

    The errors after calibration are those of the scores from `cross_calibrated`. AP and oLRP depend only on the order within each
    class, which one calibrator keeps but two for two halves do not, so they are computed with `calibrator`. They can change only if
    LVIS' limit of detections cuts between classes.

    Attributes:
        num_detections: number of detections.
        num_images: number of images with detections.
        num_kept: detections at or above the LRP-optimal thresholds of the raw scores.
        before: errors before calibration.
        after: errors after calibration.
        calibrator: the calibrator fitted to all images.
        metrics: (AP, oLRP) before and after; None: not computed.
    """

    num_detections: int
    num_images: int
    num_kept: int
    before: CalibrationQuality
    after: CalibrationQuality
    calibrator: Calibrator
    metrics: Sequence[tuple[float, ...]] | None = None

    def as_dict(self) -> dict[str, dict[str, float | None]]:
        """The errors, by "before" or "after" calibration and, after a dot, the detections: "all" or "kept". None is undefined."""
        return {
            f"{when}.{which}": numbers
            for when, judged in (("before", self.before), ("after", self.after))
            for which, numbers in judged.errors().items()
        }

    def __str__(self) -> str:
        curves, meant = self.calibrator.curves, {"iou": "expected IoU", "precision": "probability of IoU .5 or more"}
        own = sum(curve is not None for curve in curves)
        lines = [
            f"{self.num_detections} detections in {self.num_images} images; {own} of {len(curves)} classes have enough "
            "detections for their own calibration",
            "",
            *self.table(),
        ]
        values = self.calibrator.all_classes(np.array(_EXAMPLES))
        shown = ", ".join(f"{score:g} means {value:.2f}" for score, value in zip(_EXAMPLES, values, strict=True))
        return "\n".join([*lines, "", f"over all classes, a score of {shown} ({meant[self.calibrator.target]})"])

    def table(self) -> list[str]:
        """The numbers as lines of text."""
        lines = [_heads(*(("AP", "oLRP") if self.metrics else ()))]
        names = ("scores as given", "calibrated on other images")
        for name, quality, metrics in zip(names, (self.before, self.after), self.metrics or [(), ()], strict=True):
            lines.append(_line(name, (*quality.all, *metrics)))
        lines.append(f"the {self.num_kept} at or above the best threshold of their class (lowest LRP)")
        for name, quality in zip(names, (self.before, self.after), strict=True):
            lines.append(_line(name, quality.kept))
        return lines


def _heads(*more: str) -> str:
    return f"{'in %':<34}" + "".join(f"{name:>8}" for name in ("LaECE", "LaACE", "D-ECE", *more))


def _line(name: str, values: Sequence[float]) -> str:
    return f"{name:<34}" + "".join(f"{percent(x):>8}" for x in values)


def summarize(
    samples: Samples, calibrator: Calibrator, kept: np.ndarray, quality: ScoreQuality | None = None
) -> CalibrationSummary:
    """Calibration errors of the raw scores, and of scores calibrated like by `calibrator` but on other images.

    Args:
        samples: the detections and their IoUs.
        calibrator: gives target and method, and becomes part of the result.
        kept: bool (N,): the detections at or above the best threshold of their class.
        quality: the result of `judge_scores` for this target and method, if known.

    Raises:
        ValueError: fewer than two images have detections, or scipy is missing.
    """
    quality = quality or judge_scores(samples, calibrator.categories, kept, calibrator.target, calibrator.method)
    if quality.after is None:
        raise ValueError(quality.why_not)
    num_images, num_kept = len(np.unique(samples.image)), int(kept.sum())
    return CalibrationSummary(len(samples.score), num_images, num_kept, quality.before, quality.after, calibrator)


def calibrate_evaluation(report: Report, folder: Path, about: dict[str, Any]) -> str:
    """Fit calibrations to evaluated detections, and write them to the folder of their report.

    `calibration.json` gives the expected IoU and `calibration_precision.json` the probability of an IoU of .5 or more; both also hold
    the thresholds of the report. If nothing can be fitted, or the scores are not raw, earlier files are removed.

    Args:
        report: report on the detections.
        folder: output folder.
        about: how the detections were made, in JSON values.

    Returns:
        A table of the cross-fitted errors before and after, or of the errors of the scores as they are; or why there is no calibration.
    """
    analysis, samples, text = report.analysis, report.analysis.samples, ""
    if report.scores_are != "raw":
        remove_calibrations(folder)
        return "\n".join([_TITLE, _heads(), _line("scores as given", calibration_errors(samples, samples.score))])
    targets: tuple[Target, ...] = ("iou", "precision")
    for target in targets:
        try:
            calibrator = fit_calibrator(samples, report.categories, target=target)
            summary = summarize(samples, calibrator, analysis.kept, analysis.scores if target == "iou" else None)
        except ValueError as error:  # no detection that counts, or all in one image; or scipy is missing
            remove_calibrations(folder)
            return f"no calibration of the scores: {error}"
        about = {**about, "iou_type": report.iou_type, "errors": summary.as_dict()}
        save_calibrator(calibrator, folder / FILES[target], about, thresholds_content(report))
        text = text or "\n".join(summary.table())
    return f"{_TITLE}\n{text}"


def remove_calibrations(folder: Path) -> None:
    """Remove the calibrations of an earlier evaluation from the folder of its report."""
    for target in ("iou", "precision"):
        (folder / FILES[target]).unlink(missing_ok=True)
