"""LRP error and its minimum over score thresholds, oLRP (Oksuz et al., ECCV 2018; TPAMI 2021), for COCO and LVIS."""

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np

from .inputs import GroundTruth
from .matching import Candidates, Matched, Setting

TAU = 0.5  # minimum IoU of a true positive
SCORE_GRID = np.arange(101) / 100


class OptimalLRP(NamedTuple):
    """oLRP of one class, its components at the optimum, and the score threshold that reaches it."""

    error: float
    localization: float  # mean 1 - IoU over the true positives, not divided by 1 - tau
    false_positive: float  # 1 - precision
    false_negative: float  # 1 - recall
    threshold: float


NOTHING_FOUND = OptimalLRP(1.0, np.nan, np.nan, 1.0, np.nan)


class Matches(NamedTuple):
    """The outcome of matching the N detections and the A' objects that count, at IoU TAU."""

    place: np.ndarray  # (N,) of a detection in the results
    image: np.ndarray  # (N,) position of its image among the sorted ids
    category: np.ndarray  # (N,) likewise
    score: np.ndarray  # (N,)
    outcome: np.ndarray  # (N,) int8: 1 true positive, 0 false positive, -1 ignored
    iou: np.ndarray  # (N,) with the matched object; 0 without one
    object_image: np.ndarray  # (A',) position of an object's image; crowds are left out
    object_category: np.ndarray  # (A',)
    object_score: np.ndarray  # (A',) of the detection that found it, NaN if none did


@dataclass(frozen=True)
class LRPResult:
    """oLRP of C classes in one area range, LRP error over the score threshold, and the matches."""

    optima: np.ndarray  # (C, 5): the last axis is an OptimalLRP; NaN if undefined
    curves: np.ndarray  # (C, 101): LRP error at the score thresholds SCORE_GRID
    matched: Matched

    @cached_property
    def matches(self) -> Matches:
        """The matches at IoU TAU, which few metrics ask for."""
        return find_matches(*self.matched)


def evaluate_lrp(ground_truth: GroundTruth, candidates: Candidates, setting: Setting) -> LRPResult:
    """oLRP of every class, at IoU TAU.

    Args:
        ground_truth: the objects.
        candidates: the detections.
        setting: the outcome of matching in an area range.
    """
    detections, num_classes = candidates.detections, len(setting.num_objects)
    outcome, iou = _outcome(setting)
    bounds = np.searchsorted(detections.category, np.arange(num_classes + 1))
    optima = np.full((num_classes, len(OptimalLRP._fields)), np.nan)
    curves = np.full((num_classes, len(SCORE_GRID)), np.nan)
    for c in np.flatnonzero(setting.num_objects):
        of_class = slice(bounds[c], bounds[c + 1])
        scores, tp, fp = detections.scores[of_class], outcome[of_class] == 1, outcome[of_class] == 0
        errors, optima[c] = lrp_error(scores, tp, fp, iou[of_class], setting.num_objects[c])
        curves[c] = errors[np.searchsorted(-scores, -SCORE_GRID, side="right")]
    return LRPResult(optima, curves, Matched(ground_truth, candidates, setting))


def find_matches(ground_truth: GroundTruth, candidates: Candidates, setting: Setting) -> Matches:
    """The matches at IoU TAU, in the area range of `setting`."""
    detections, matching = candidates.detections, setting.matchings[0]
    outcome, iou = _outcome(setting)
    is_tp = outcome[matching.detection] == 1
    found_by = np.full(len(ground_truth.image), np.nan)
    found_by[matching.object[is_tp]] = detections.scores[matching.detection[is_tp]]
    objects = (column[~setting.ignored] for column in (ground_truth.image, ground_truth.category, found_by))
    return Matches(candidates.place, detections.image, detections.category, detections.scores, outcome, iou, *objects)


def _outcome(setting: Setting) -> tuple[np.ndarray, np.ndarray]:
    """(N,) `outcome` and `iou` of `Matches`."""
    matching = setting.matchings[0]
    outcome = np.where(setting.can_be_wrong, np.int8(0), np.int8(-1))
    outcome[matching.detection] = np.where(setting.ignored[matching.object], -1, 1)
    iou = np.zeros(len(outcome))
    iou[matching.detection] = matching.iou
    return outcome, iou


def lrp_error(
    scores: np.ndarray, is_tp: np.ndarray, is_fp: np.ndarray, iou: np.ndarray, num_objects: int
) -> tuple[np.ndarray, OptimalLRP]:
    """LRP error of one class at every score threshold, and its minimum.

    LRP(s) = (sum over TP of (1 - IoU) / (1 - TAU) + FP + FN) / (TP + FP + FN), counting detections with score >= s.

    Args:
        scores: (N,) in descending order.
        is_tp: (N,) true positives.
        is_fp: (N,) false positives; a detection that is neither is ignored.
        iou: (N,) IoU of the true positives with their objects; other entries are not used.
        num_objects: number of objects that count, > 0.

    Returns:
        (N + 1,) errors of the first 0..N detections (without detections: 1), and the first minimum over the N' different scores as
        thresholds, `NOTHING_FOUND` if that has no true positive. No threshold separates detections of equal score; the authors'
        evaluator also counts a minimum between them, which cannot be reached by applying a threshold.
    """
    tp = np.cumsum(np.append(False, is_tp))
    fp = np.cumsum(np.append(False, is_fp))
    fn = num_objects - tp
    localization = np.cumsum(np.append(0.0, np.where(is_tp, 1 - iou, 0.0)))
    errors = (localization / (1 - TAU) + fp + fn) / (tp + fp + fn)

    ends = np.append(1 + np.flatnonzero(scores[1:] != scores[:-1]), len(scores))  # of groups of equal scores
    # As in the authors' code, at least one detection is kept.
    best = ends[np.argmin(errors[ends])] if len(scores) else 0
    if tp[best] == 0:
        return errors, NOTHING_FOUND
    return errors, OptimalLRP(
        error=errors[best],
        localization=localization[best] / tp[best],
        false_positive=fp[best] / (tp[best] + fp[best]),
        false_negative=fn[best] / num_objects,
        threshold=scores[best - 1],
    )
