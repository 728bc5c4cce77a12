"""LRP error and its minimum over score thresholds, oLRP (Oksuz et al., ECCV 2018; TPAMI 2021), for COCO and LVIS.

Detections are matched to objects once per area range by COCO's greedy rule, in all images and classes at the same
time; everything else is cumulative sums over the detections of a class in order of falling score.
"""

from itertools import pairwise
from typing import NamedTuple

import numpy as np
from pycocotools import mask as mask_utils

from .inputs import Detections, GroundTruth

TAU = 0.5  # IoU from which a detection can be a true positive
AREA_RANGES = {"": (0.0, 1e10), "s": (0.0, 32.0**2), "m": (32.0**2, 96.0**2), "l": (96.0**2, 1e10)}  # pixels, COCO's
SCORE_GRID = np.arange(101) / 100


class OptimalLRP(NamedTuple):
    """oLRP of one class, its components at the optimum, and the score threshold that reaches it."""

    error: float
    localization: float  # mean 1 - IoU over the true positives, not divided by 1 - tau
    false_positive: float  # 1 - precision
    false_negative: float  # 1 - recall
    threshold: float


NO_OBJECTS = OptimalLRP(np.nan, np.nan, np.nan, np.nan, np.nan)
NOTHING_FOUND = OptimalLRP(1.0, np.nan, np.nan, 1.0, np.nan)


class Matches(NamedTuple):
    """What the N detections that take part and the A' objects to be found came to, at IoU TAU and of all sizes."""

    image: np.ndarray  # (N,) position of a detection's image among the sorted ids
    category: np.ndarray  # (N,) likewise
    score: np.ndarray  # (N,)
    outcome: np.ndarray  # (N,) int8: 1 true positive, 0 false positive, -1 ignored
    iou: np.ndarray  # (N,) with the matched object; 0 without one
    object_image: np.ndarray  # (A',) position of an object's image; crowds are left out
    object_category: np.ndarray  # (A',)
    object_score: np.ndarray  # (A',) of the detection which found it, NaN where none did


class LRPResult(NamedTuple):
    """oLRP of every class, its LRP error over the score threshold (NaN where undefined), and what both come from."""

    optima: np.ndarray  # (4, C, 5): area ranges in the order of AREA_RANGES; the last axis is an OptimalLRP
    curves: np.ndarray  # (C, 101): LRP error at the score thresholds SCORE_GRID, all areas
    matches: Matches


class Pairs(NamedTuple):
    """Pairs of a detection and an object of the same image and class with IoU >= TAU, in columns."""

    detection: np.ndarray  # positions in Detections
    object: np.ndarray  # positions in GroundTruth
    iou: np.ndarray


def evaluate_lrp(ground_truth: GroundTruth, detections: Detections, *, federated: bool = False) -> LRPResult:
    """oLRP per area range and class.

    Args:
        ground_truth: the objects.
        detections: the detections, of any number per image.
        federated: LVIS' rules (300 detections per image; classes may be unknown or incomplete in an image) in place
            of COCO's (100 detections per image and class).
    """
    if federated:
        detections, tolerated = _federated_rules(ground_truth, detections)
        rank = _rank_within(_group(ground_truth, detections), detections.scores)
    else:
        rank = _rank_within(_group(ground_truth, detections), detections.scores)
        kept = np.flatnonzero(rank < 100)
        detections, rank = detections.select(kept), rank[kept]
        tolerated = np.zeros(len(kept), dtype=bool)
    pairs = _overlapping_pairs(ground_truth, detections)

    num_classes = len(ground_truth.categories)
    # Equal scores: by image, then as in the results.
    by_score = np.lexsort((detections.image, -detections.scores, detections.category))
    ends = np.searchsorted(detections.category[by_score], np.arange(num_classes + 1))
    optima = np.full((len(AREA_RANGES), num_classes, len(OptimalLRP._fields)), NO_OBJECTS)
    curves = np.full((num_classes, len(SCORE_GRID)), np.nan)
    for a, area_range in enumerate(AREA_RANGES.values()):
        ignored_object = ground_truth.crowd | _outside(ground_truth.areas, area_range)
        matched, iou = _match(pairs, rank, ignored_object, ground_truth.crowd)
        is_tp = (matched >= 0) & ~ignored_object[matched]
        is_fp = (matched < 0) & ~tolerated & ~_outside(detections.areas, area_range)
        num_objects = np.bincount(ground_truth.category[~ignored_object], minlength=num_classes)
        for c in np.flatnonzero(num_objects):
            of_class = by_score[ends[c] : ends[c + 1]]
            scores = detections.scores[of_class]
            errors, optima[a, c] = lrp_error(scores, is_tp[of_class], is_fp[of_class], iou[of_class], num_objects[c])
            if a == 0:
                num_kept = np.searchsorted(-scores, -SCORE_GRID, side="right")
                curves[c] = errors[num_kept]
        if a == 0:
            found_by = np.full(len(ignored_object), np.nan)
            found_by[matched[is_tp]] = detections.scores[is_tp]
            columns = (ground_truth.image, ground_truth.category, found_by)
            objects = (column[~ignored_object] for column in columns)
            outcome = np.where(is_tp, 1, np.where(is_fp, 0, -1)).astype(np.int8)
            matches = Matches(detections.image, detections.category, detections.scores, outcome, iou, *objects)
    return LRPResult(optima, curves, matches)


def lrp_error(
    scores: np.ndarray, is_tp: np.ndarray, is_fp: np.ndarray, iou: np.ndarray, num_objects: int, tau: float = TAU
) -> tuple[np.ndarray, OptimalLRP]:
    """LRP error of one class at every score threshold, and where it is smallest.

    LRP(s) = (sum over TP of (1 - IoU) / (1 - tau) + FP + FN) / (TP + FP + FN), counting detections with score >= s.

    Args:
        scores: (N,) in falling order. The minimum may lie between equal scores, as in the authors' evaluator.
        is_tp: (N,) true positives.
        is_fp: (N,) false positives; a detection that is neither is ignored.
        iou: (N,) IoU of the true positives with their objects; other entries are not used.
        num_objects: objects to be found, > 0.
        tau: IoU threshold of a true positive.

    Returns:
        (N + 1,) errors of the first 0..N detections (of none: 1), and the first minimum over 1..N,
        `NOTHING_FOUND` if that has no true positive.
    """
    tp = np.cumsum(np.append(False, is_tp))
    fp = np.cumsum(np.append(False, is_fp))
    fn = num_objects - tp
    localization = np.cumsum(np.append(0.0, np.where(is_tp, 1 - iou, 0.0)))
    errors = (localization / (1 - tau) + fp + fn) / (tp + fp + fn)

    best = 1 + np.argmin(errors[1:]) if len(scores) else 0  # as the authors: one detection at least is kept
    if tp[best] == 0:
        return errors, NOTHING_FOUND
    return errors, OptimalLRP(
        error=errors[best],
        localization=localization[best] / tp[best],
        false_positive=fp[best] / (tp[best] + fp[best]),
        false_negative=fn[best] / num_objects,
        threshold=scores[best - 1],
    )


def _match(
    pairs: Pairs, rank: np.ndarray, ignored_object: np.ndarray, crowd: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """COCO's greedy matching: by falling score, each detection takes the best object that is still free.

    Objects to be found come before ignored ones, then the higher IoU counts, then the later place in the file. A crowd
    can be taken any number of times. Detections of equal rank belong to different images or classes and cannot compete
    for an object, so that the loop runs over ranks, not over detections.

    Args:
        pairs: possible matches.
        rank: (N,) rank of each detection in its image and class.
        ignored_object: (A,) objects which count neither as found nor as missed.
        crowd: (A,) objects that stand for many.

    Returns:
        (N,) position of the object taken, -1 for none, and (N,) IoU with it.
    """
    preference = (pairs.object, pairs.iou, ~ignored_object[pairs.object])
    order = np.lexsort((*preference, pairs.detection, rank[pairs.detection]))
    detection, object_, iou = (column[order] for column in pairs)
    matched = np.full(len(rank), -1)
    matched_iou = np.zeros(len(rank))
    taken = np.zeros(len(crowd), dtype=bool)
    round_starts = np.flatnonzero(np.diff(rank[detection], prepend=-1))
    for start, end in pairwise([*round_starts, len(order)]):
        free = start + np.flatnonzero(~taken[object_[start:end]])
        best = free[np.diff(detection[free], append=-1) != 0]  # the last free pair of each detection
        matched[detection[best]] = object_[best]
        matched_iou[detection[best]] = iou[best]
        taken[object_[best]] = ~crowd[object_[best]]
    return matched, matched_iou


def _overlapping_pairs(ground_truth: GroundTruth, detections: Detections) -> Pairs:
    """All possible matches. Of crowds, IoU is the share of the detection that lies inside (COCO's convention)."""
    detection_group = _group(ground_truth, detections)
    object_group = _group(ground_truth, ground_truth)
    detections_by_group = np.argsort(detection_group, kind="stable")
    objects_by_group = np.argsort(object_group, kind="stable")
    shared = np.intersect1d(detection_group, object_group)
    detection_ranges = _ranges(detection_group[detections_by_group], shared)
    object_ranges = _ranges(object_group[objects_by_group], shared)
    pairs = []
    # A loop over the few classes that are both annotated and detected in an image: about 3 an image in COCO.
    for (d_start, d_end), (o_start, o_end) in zip(detection_ranges, object_ranges, strict=True):
        d, o = detections_by_group[d_start:d_end], objects_by_group[o_start:o_end]
        iou = mask_utils.iou(_shapes(detections, d), _shapes(ground_truth, o), ground_truth.crowd[o])
        rows, columns = np.nonzero(iou >= TAU)
        pairs.append((d[rows], o[columns], iou[rows, columns]))
    if not pairs:
        return Pairs(np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int64), np.empty(0))
    return Pairs(*(np.concatenate(column) for column in zip(*pairs, strict=True)))


def _federated_rules(ground_truth: GroundTruth, detections: Detections) -> tuple[Detections, np.ndarray]:
    """LVIS: which detections take part, and (N',) which of those are not wrong even if unmatched.

    Of the 300 best detections of an image those take part whose class is known there: present (it has an object) or
    verified absent. Unmatched detections of a class that is not exhaustively annotated in the image are tolerated.
    """
    detections = detections.select(np.flatnonzero(_rank_within(detections.image, detections.scores) < 300))
    present = _group(ground_truth, ground_truth)
    absent = _listed_groups(ground_truth, ground_truth.absent)
    known = np.isin(_group(ground_truth, detections), np.concatenate([present, absent]))
    detections = detections.select(np.flatnonzero(known))
    incomplete = _listed_groups(ground_truth, ground_truth.incomplete)
    return detections, np.isin(_group(ground_truth, detections), incomplete)


def _listed_groups(ground_truth: GroundTruth, categories_of_images: list[list[int]]) -> np.ndarray:
    num_classes = len(ground_truth.categories)
    groups = [i * num_classes + c for i, categories in enumerate(categories_of_images) for c in categories]
    return np.array(groups, dtype=np.int64)


def _group(ground_truth: GroundTruth, instances: GroundTruth | Detections) -> np.ndarray:
    """One number for each image and class."""
    return instances.image * len(ground_truth.categories) + instances.category


def _rank_within(groups: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """(N,) rank of each score in its group, 0 the highest; equal scores keep their order."""
    order = np.lexsort((-scores, groups))
    ordered = groups[order]
    rank = np.empty(len(order), dtype=np.int64)
    rank[order] = np.arange(len(order)) - np.searchsorted(ordered, ordered)
    return rank


def _ranges(ordered: np.ndarray, values: np.ndarray) -> np.ndarray:
    """(V, 2) start and end of each value in an ordered array."""
    return np.stack([np.searchsorted(ordered, values, side) for side in ("left", "right")], axis=1)


def _shapes(instances: GroundTruth | Detections, indices: np.ndarray) -> np.ndarray | list[dict]:
    """What IoU is computed of: masks where there are any, or else boxes."""
    return instances.boxes[indices] if instances.masks is None else [instances.masks[i] for i in indices]


def _outside(areas: np.ndarray, area_range: tuple[float, float]) -> np.ndarray:
    return (areas < area_range[0]) | (areas > area_range[1])
