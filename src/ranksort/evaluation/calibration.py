"""Calibration errors of scores, and calibrators that correct the scores.

Errors: LaECE (Oksuz et al., CVPR 2023), LaECE and LaACE at IoU above 0 (Kuzucu et al., ECCV 2024), D-ECE (Küppers et al., CVPR
Workshops 2020). Calibrators: isotonic and linear regression per class, as in the second paper.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from ..data.coco_columns import Category
from .inputs import CategoryInfo
from .overlaps import Samples

BINS = 25
MIN_DETECTIONS = 20  # detections of a class, for a curve of its own
TIE_BREAK = 1e-3
"""weight of the raw score in a calibrated one: no two scores become equal, so that their order and AP do not change"""

Target = Literal["iou", "precision"]
Method = Literal["isotonic", "linear"]


class CalibrationErrors(NamedTuple):
    """Fractions in 0..1, NaN if there is nothing to measure; lower is better."""

    laece: float  # mean over the classes with detections and objects
    laace: float  # likewise
    dece: float  # over all detections together


class Reliability(NamedTuple):
    """A reliability diagram: detections in BINS bins of scores, of equal width."""

    number: np.ndarray  # (BINS,) detections
    score: np.ndarray  # (BINS,) their mean score, NaN in empty bins
    worth: np.ndarray  # (BINS,) their mean value (IoU or correctness), NaN in empty bins

    @property
    def error(self) -> float:
        """Mean distance of score and value, each bin weighted by its detections; NaN if there are none."""
        if not self.number.any():
            return np.nan
        return float(np.nansum(self.number * abs(self.score - self.worth)) / self.number.sum())


def reliability(scores: np.ndarray, worth: np.ndarray) -> Reliability:
    """Compare scores (N,) in 0..1 with the values of the detections (IoU or correctness), (N,), bin by bin. NaN values are left out."""
    counts = ~np.isnan(worth)
    scores, worth = scores[counts], worth[counts]
    bins = np.minimum((scores * BINS).astype(np.int64), BINS - 1)  # [0, 1/25), ..., [24/25, 1]
    number, score, total = (np.bincount(bins, weights, BINS) for weights in (None, scores, worth))
    with np.errstate(invalid="ignore"):
        return Reliability(number, score / number, total / number)


def calibration_errors(samples: Samples, scores: np.ndarray, chosen: np.ndarray | None = None) -> CalibrationErrors:
    """LaECE, LaACE and D-ECE of detections with the scores `scores`, (N,); only of the `chosen` ones, bool (N,), if given."""
    if chosen is not None:
        samples, scores = samples.select(chosen), scores[chosen]
    order = np.argsort(samples.category, kind="stable")
    bounds = np.searchsorted(samples.category[order], np.arange(len(samples.num_objects) + 1))
    by_class = []
    for c in np.flatnonzero(samples.num_objects):
        rows = order[bounds[c] : bounds[c + 1]]
        rows = rows[~np.isnan(samples.iou[rows])]
        if len(rows):
            score, iou = scores[rows], samples.iou[rows]
            by_class.append((reliability(score, iou).error, abs(score - iou).mean()))
    laece, laace = np.mean(by_class, axis=0).tolist() if by_class else (np.nan, np.nan)
    return CalibrationErrors(laece, laace, reliability(scores, samples.correct).error)


class Curve(NamedTuple):
    """A piecewise linear, strictly increasing function of the score, given by K corners, the first at score 0 and the last at 1."""

    scores: np.ndarray  # (K,) rising
    values: np.ndarray  # (K,) rising, in 0..1

    def __call__(self, scores: np.ndarray) -> np.ndarray:
        """The values at `scores`, (N,)."""
        return np.interp(scores, self.scores, self.values)


@dataclass
class Calibrator:
    """Map scores to the expected IoU of the detections ("iou") or to the probability of an IoU of at least .5 ("precision").

    Attributes:
        target: which of the two.
        method: how the curves were fitted.
        categories: C classes, in the order of the positions that `Samples` and `GroundTruth` use.
        num_detections: (C,) number of detections that the curve of each class was fitted to.
        curves: one for each class, None if it has fewer than MIN_DETECTIONS.
        all_classes: the curve fitted to all detections, for classes without their own and for unknown classes.
    """

    target: Target
    method: Method
    categories: Sequence[Category]
    num_detections: np.ndarray
    curves: list[Curve | None]
    all_classes: Curve

    def __call__(self, scores: np.ndarray, category: np.ndarray) -> np.ndarray:
        """Calibrate scores (N,) of classes (N,): positions among `categories`, -1 for any other."""
        calibrated = np.empty(len(scores))
        order = np.argsort(category, kind="stable")
        starts = np.flatnonzero(np.diff(category[order], prepend=-2))
        for rows in np.split(order, starts[1:]):
            if len(rows):
                c = category[rows[0]]
                curve = self.curves[c] if c >= 0 else None
                calibrated[rows] = (self.all_classes if curve is None else curve)(scores[rows])
        return calibrated


def fit_calibrator(
    samples: Samples,
    categories: Sequence[Category | CategoryInfo],
    *,
    target: Target = "iou",
    method: Method = "isotonic",
) -> Calibrator:
    """Fit a curve for each class, and one for classes with few detections.

    Args:
        samples: the detections and their IoUs; those that do not count are left out.
        categories: the C classes, as in the ground truth.
        target: what a calibrated score means; see `Calibrator`.
        method: "isotonic", a rising step function, or "linear", a line clipped to 0..1.

    Raises:
        ValueError: no detection counts, or scipy is missing.
    """
    worth = samples.iou if target == "iou" else samples.correct
    counts = ~np.isnan(worth)
    if not counts.any():
        raise ValueError("There are no detections to calibrate: none counts in the evaluation.")
    fit = _fit_isotonic if method == "isotonic" else _fit_line
    category, score, worth = samples.category[counts], samples.score[counts], worth[counts]
    order = np.argsort(score, kind="stable")
    category, score, worth = category[order], score[order], worth[order]
    all_classes = fit(score, worth)
    order = np.argsort(category, kind="stable")
    num_detections = np.bincount(category, minlength=len(categories))
    curves: list[Curve | None] = [
        fit(score[rows], worth[rows]) if len(rows) >= MIN_DETECTIONS else None
        for rows in np.split(order, np.cumsum(num_detections)[:-1])
    ]
    known = [Category(category.id, category.name) for category in categories]
    return Calibrator(target, method, known, num_detections, curves, all_classes)


def cross_calibrated(
    samples: Samples,
    categories: Sequence[Category | CategoryInfo],
    *,
    target: Target = "iou",
    method: Method = "isotonic",
) -> np.ndarray:
    """Cross-fitted scores (N,): those of each half of the images, calibrated on the other half, as on unseen images.

    The halves are drawn at random, so that neighbours in a sorted list of images fall into both.

    Raises:
        ValueError: as `fit_calibrator`, and if fewer than two images have detections.
    """
    worth = samples.iou if target == "iou" else samples.correct
    images = np.unique(samples.image[~np.isnan(worth)])
    if len(images) < 2:
        raise ValueError(
            "Calibration is evaluated on other images than it is fitted to, so it needs detections in two or more images."
        )
    is_first = np.zeros(1 + samples.image.max(), dtype=bool)
    is_first[np.random.default_rng(0).permutation(images)[: len(images) // 2]] = True
    in_first = is_first[samples.image]
    calibrated = np.empty(len(samples.score))
    for judged in (in_first, ~in_first):
        calibrator = fit_calibrator(samples.select(~judged), categories, target=target, method=method)
        calibrated[judged] = calibrator(samples.score[judged], samples.category[judged])
    return calibrated


def _fit_isotonic(scores: np.ndarray, worth: np.ndarray) -> Curve:
    """Isotonic fit to the values, (N,), at ascending scores, (N,); linear between steps."""
    try:
        from scipy.optimize import isotonic_regression
    except ImportError:  # also if scipy is older than 1.12
        raise ValueError(
            'Isotonic calibration needs scipy 1.12 or newer: pip install "ranksort[calibration]"'
        ) from None
    scores = scores.astype(np.float32)  # rounded: short to write, and close ones are pooled
    starts = np.flatnonzero(np.diff(scores, prepend=-1))
    number = np.diff(starts, append=len(scores))
    steps = isotonic_regression(np.add.reduceat(worth, starts) / number, weights=number)
    corners = np.unique([steps.blocks[:-1], steps.blocks[1:] - 1])  # start and end of each step
    corner_scores = [float(str(score)) for score in scores[starts[corners]]]
    return _curve(np.array(corner_scores), steps.x[corners])


def _fit_line(scores: np.ndarray, worth: np.ndarray) -> Curve:
    """Linear fit to the values, (N,), clipped to 0..1."""
    deviation = scores - scores.mean()
    variance = deviation @ deviation
    slope = max(0.0, float(deviation @ worth / variance)) if variance > 0 else 0.0
    offset = float(worth.mean() - slope * scores.mean())
    crossings = [(0 - offset) / slope, (1 - offset) / slope] if slope > 0 else []
    corners = np.unique([0.0, *(x for x in crossings if 0 < x < 1), 1.0])
    return _curve(corners, (slope * corners + offset).clip(0, 1))


def _curve(scores: np.ndarray, values: np.ndarray) -> Curve:
    """The curve through points (K,) at ascending scores, constant beyond them except for the part that breaks ties."""
    ends = int(scores[0] > 0), int(scores[-1] < 1)
    scores, values = np.pad(scores, ends, constant_values=(0, 1)), np.pad(values.clip(0, 1), ends, mode="edge")
    return Curve(scores, (1 - TIE_BREAK) * values + TIE_BREAK * scores)
