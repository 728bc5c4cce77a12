"""What scores are worth, as given and calibrated, judged honestly: on other images than the calibration is fitted to."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from .calibration import BINS, CalibrationErrors, Reliability, calibration_errors, cross_calibrated, reliability
from .inputs import CategoryInfo
from .overlaps import Samples

FEW = 20  # detections, from which on a share is said


class Judged(NamedTuple):
    """Of one set of scores: the errors of all detections and of those kept, and the reliability diagrams of all."""

    all: CalibrationErrors
    kept: CalibrationErrors
    iou: Reliability  # worth is the IoU
    right: Reliability  # worth is whether the IoU is .5 or more


class Example(NamedTuple):
    """What the detections in the bin of a typical score are worth."""

    score: float  # the median of the kept detections
    low: float
    high: float
    number: int  # of detections from low to high
    right: float  # the share of true positives at IoU .5


class ScoreQuality(NamedTuple):
    """Attributes:
    before: calibration.
    after: what cross-calibrated scores would be; None where they cannot be had.
    why_not: in a sentence.
    example: None where there are too few detections to say.
    """

    before: Judged
    after: Judged | None
    why_not: str
    example: Example | None

    def as_dict(self) -> dict[str, Any]:
        """As JSON: `before`, `after` and `example`; the diagrams have a row [detections, mean score, mean worth] for each bin in use."""
        return {
            "before": _as_dict(self.before),
            "after": None if self.after is None else _as_dict(self.after),
            "why_not": self.why_not,
            "example": None if self.example is None else self.example._asdict(),
        }


def judge_scores(samples: Samples, categories: Sequence[CategoryInfo], kept: np.ndarray) -> ScoreQuality:
    """Compare scores with what the detections are worth.

    Args:
        samples: the detections.
        categories: the classes.
        kept: bool (N,): the detections at or above the best threshold of their class.
    """
    after, why_not = None, ""
    try:
        after = _judge(samples, cross_calibrated(samples, categories), kept)
    except ValueError as error:  # fewer than two images with detections, or scipy is missing
        why_not = str(error)
    return ScoreQuality(_judge(samples, samples.score, kept), after, why_not, _example(samples, kept))


def _judge(samples: Samples, scores: np.ndarray, kept: np.ndarray) -> Judged:
    return Judged(
        calibration_errors(samples, scores),
        calibration_errors(samples, scores, kept),
        reliability(scores, samples.iou),
        reliability(scores, samples.correct),
    )


def _example(samples: Samples, kept: np.ndarray) -> Example | None:
    counts = ~np.isnan(samples.correct)
    if not (kept & counts).any():
        return None
    score = float(np.median(samples.score[kept & counts]))
    bin_ = min(int(score * BINS), BINS - 1)
    diagram = reliability(samples.score, samples.correct)
    number = int(diagram.number[bin_])
    if number < FEW:
        return None
    return Example(score, bin_ / BINS, (bin_ + 1) / BINS, number, float(diagram.worth[bin_]))


def _as_dict(judged: Judged) -> dict[str, Any]:
    errors = {
        which: {name: None if np.isnan(value) else value for name, value in numbers._asdict().items()}
        for which, numbers in (("all", judged.all), ("kept", judged.kept))
    }
    diagrams = {
        name: [[int(n), round(score, 4), round(worth, 4)] for n, score, worth in zip(*diagram, strict=True) if n]
        for name, diagram in (("iou", judged.iou), ("right", judged.right))
    }
    return {**errors, **diagrams}
