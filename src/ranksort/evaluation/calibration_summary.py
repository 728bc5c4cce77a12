"""How far the scores of a detector are from what they are worth, as given and calibrated: a table."""

from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from .calibration import CalibrationErrors, Calibrator, calibration_errors, cross_calibrated
from .coco import evaluate
from .inputs import Detections, GroundTruth
from .metrics import percent
from .overlaps import Samples

_EXAMPLES = (0.1, 0.3, 0.5, 0.7, 0.9)  # raw scores


class Quality(NamedTuple):
    """Of one set of scores: errors of all detections, and of those which score at or above the best threshold of their class."""

    all: CalibrationErrors
    kept: CalibrationErrors
    ap: float
    olrp: float


@dataclass
class CalibrationSummary:
    """Calibration errors, AP and oLRP, as fractions.

    The errors after calibration are those of the scores of `cross_calibrated`. AP and oLRP depend on the order in each class alone,
    which one calibrator keeps and two for two halves do not: they are those of `calibrator`. Only where LVIS' limit of detections
    falls between classes can they change.

    Attributes:
        num_detections, num_images: how many there are; of the latter, with detections.
        num_kept: detections at or above the LRP-optimal thresholds of the raw scores.
        before, after: calibration.
        calibrator: the one which was fitted to all images.
    """

    num_detections: int
    num_images: int
    num_kept: int
    before: Quality
    after: Quality
    calibrator: Calibrator

    def as_dict(self) -> dict[str, dict[str, float | None]]:
        """The errors, by "before" or "after" calibration and, after a dot, the detections: "all" or "kept". None is undefined."""
        qualities = {"before": self.before, "after": self.after}
        return {
            f"{when}.{which}": {
                name: None if np.isnan(x) else x for name, x in getattr(quality, which)._asdict().items()
            }
            for when, quality in qualities.items()
            for which in ("all", "kept")
        }

    def __str__(self) -> str:
        curves, meant = self.calibrator.curves, {"iou": "expected IoU", "precision": "probability of IoU .5 or more"}
        own = sum(curve is not None for curve in curves)
        lines = [
            f"{self.num_detections} detections in {self.num_images} images; {own} of {len(curves)} classes have detections "
            "enough for a calibration of their own",
            "",
            f"{'in %':<34}" + "".join(f"{name:>8}" for name in ("LaECE", "LaACE", "D-ECE", "AP", "oLRP")),
        ]
        for name, quality in (("scores as given", self.before), ("calibrated by other images", self.after)):
            numbers = (*quality.all, quality.ap, quality.olrp)
            lines.append(f"{name:<34}" + "".join(f"{percent(x):>8}" for x in numbers))
        lines.append(f"the {self.num_kept} at or above the best threshold of their class (lowest LRP)")
        for name, quality in (("scores as given", self.before), ("calibrated by other images", self.after)):
            lines.append(f"{name:<34}" + "".join(f"{percent(x):>8}" for x in quality.kept))
        values = self.calibrator.all_classes(np.array(_EXAMPLES))
        shown = ", ".join(f"{score:g} is worth {value:.2f}" for score, value in zip(_EXAMPLES, values, strict=True))
        return "\n".join([*lines, "", f"over all classes, a score of {shown} ({meant[self.calibrator.target]})"])


def summarize(
    ground_truth: GroundTruth,
    detections: Detections,
    samples: Samples,
    calibrator: Calibrator,
    style: str = "coco",
    max_detections: int | None = None,
) -> CalibrationSummary:
    """Compare the detections as they are with themselves, calibrated as the calibrator was fitted, but by other images.

    Args:
        ground_truth, detections: what `samples` was made of, by the same style and `max_detections`.
        samples: what the detections are worth.
        calibrator: for its target and method.
        style, max_detections: as of `evaluate_detections`.

    Raises:
        ValueError: fewer than two images have detections.
    """
    calibrated = cross_calibrated(samples, calibrator.categories, target=calibrator.target, method=calibrator.method)
    in_use = replace(detections, scores=calibrator(detections.scores, detections.category))
    reports = [evaluate(ground_truth, found, style, max_detections) for found in (detections, in_use)]
    kept = samples.score >= reports[0].thresholds()[samples.category]
    before, after = (
        Quality(
            calibration_errors(samples, scores),
            calibration_errors(samples, scores, kept),
            report.summary["AP"],
            report.summary["oLRP"],
        )
        for scores, report in zip((samples.score, calibrated), reports, strict=True)
    )
    num_images = len(np.unique(samples.image))
    return CalibrationSummary(len(samples.score), num_images, int(kept.sum()), before, after, calibrator)
