"""Quality of raw and calibrated scores, measured on other images than the calibration is fitted to."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from ..data.coco_columns import Category
from .calibration import (
    CalibrationErrors,
    Method,
    Reliability,
    Target,
    calibration_errors,
    cross_calibrated,
    reliability,
)
from .inputs import CategoryInfo
from .metrics import without_nan
from .overlaps import Samples

FEW, NEAREST = 20, 100  # numbers of detections for a share to be stated


class CalibrationQuality(NamedTuple):
    """The errors of one set of scores, of all detections and of those kept, and the reliability diagrams of all."""

    all: CalibrationErrors
    kept: CalibrationErrors
    iou: Reliability  # the value is the IoU
    right: Reliability  # the value is whether the IoU is .5 or more

    def errors(self) -> dict[str, dict[str, float | None]]:
        """The errors of "all" and "kept", in JSON values; None is undefined."""
        errors: dict[str, Any] = without_nan({"all": self.all._asdict(), "kept": self.kept._asdict()})
        return errors


class Example(NamedTuple):
    """The precision at a typical score, from the detections with the nearest scores."""

    score: float  # the median of the kept detections
    low: float  # of the nearest ones
    high: float
    number: int  # of these
    right: float  # the share of true positives at IoU .5


class ScoreQuality(NamedTuple):
    """Quality of scores before and after calibration.

    Attributes:
        before: before calibration.
        after: after cross-fitted calibration; None if that is not possible.
        why_not: the reason, in a sentence.
        example: None if there are too few detections.
    """

    before: CalibrationQuality
    after: CalibrationQuality | None
    why_not: str
    example: Example | None

    def as_dict(self) -> dict[str, Any]:
        """As JSON: `before`, `after` and `example`; the diagrams have a row [detections, mean score, mean value] for each bin in use."""
        return {
            "before": _as_dict(self.before),
            "after": None if self.after is None else _as_dict(self.after),
            "why_not": self.why_not,
            "example": None if self.example is None else self.example._asdict(),
        }


def judge_scores(
    samples: Samples,
    categories: Sequence[Category | CategoryInfo],
    kept: np.ndarray,
    target: Target = "iou",
    method: Method = "isotonic",
) -> ScoreQuality:
    """Compare scores with the IoUs of the detections.

    Args:
        samples: the detections.
        categories: the classes.
        kept: bool (N,): the detections at or above the best threshold of their class.
        target: target of the calibration, as for `fit_calibrator`.
        method: its method.
    """
    after, why_not = None, ""
    try:
        after = _judge(samples, cross_calibrated(samples, categories, target=target, method=method), kept)
    except ValueError as error:  # fewer than two images with detections, or scipy is missing
        why_not = str(error)
    return ScoreQuality(_judge(samples, samples.score, kept), after, why_not, _example(samples, kept))


def _judge(samples: Samples, scores: np.ndarray, kept: np.ndarray) -> CalibrationQuality:
    return CalibrationQuality(
        calibration_errors(samples, scores),
        calibration_errors(samples, scores, kept),
        reliability(scores, samples.iou),
        reliability(scores, samples.correct),
    )


def _example(samples: Samples, kept: np.ndarray) -> Example | None:
    counts = ~np.isnan(samples.correct)
    scores, correct = samples.score[counts], samples.correct[counts]
    if len(scores) < FEW or not kept[counts].any():
        return None
    score = float(np.median(scores[kept[counts]]))
    distance = abs(scores - score)
    number = min(NEAREST, max(FEW, len(scores) // 10))
    near = distance <= np.partition(distance, number - 1)[number - 1]  # including ties with the last one
    return Example(
        score, float(scores[near].min()), float(scores[near].max()), int(near.sum()), float(correct[near].mean())
    )


def _as_dict(judged: CalibrationQuality) -> dict[str, Any]:
    diagrams = {
        name: [[int(n), round(score, 4), round(worth, 4)] for n, score, worth in zip(*diagram, strict=True) if n]
        for name, diagram in (("iou", judged.iou), ("right", judged.right))
    }
    return {**judged.errors(), **diagrams}
