"""COCO's greedy matching of detections and objects, in all images and classes at the same time."""

from collections.abc import Iterator
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from pycocotools import mask as mask_utils

from .inputs import Detections, GroundTruth, Instances

IOU_THRESHOLDS = np.linspace(0.5, 0.95, 10)
AREA_RANGES = {"": (0.0, 1e10), "s": (0.0, 32.0**2), "m": (32.0**2, 96.0**2), "l": (96.0**2, 1e10)}  # pixels, COCO's
BLOCK = 1_000_000  # how many overlaps are computed at a time, about


class Candidates(NamedTuple):
    """The N detections that take part, by class, falling score, image, and place in the results."""

    detections: Detections
    place: np.ndarray  # (N,) in the results
    rank: np.ndarray  # (N,) among the detections of the class in the image, from 0
    tolerated: np.ndarray  # (N,) bool: not wrong even if unmatched


class Matching(NamedTuple):
    """The M pairs of matched detections and objects, in the order of the detections."""

    detection: np.ndarray  # (M,) positions in Candidates
    object: np.ndarray  # (M,) positions in GroundTruth
    iou: np.ndarray  # (M,)

    def select(self, indices: np.ndarray) -> "Matching":
        return Matching(*(column[indices] for column in self))


class Setting(NamedTuple):
    """What detections come to within an area range; objects outside count neither as found nor as missed."""

    num_objects: np.ndarray  # (C,) objects to be found
    ignored: np.ndarray  # (A,) bool: the other objects
    can_be_wrong: np.ndarray  # (N,) bool: detections that are false positives if unmatched
    matchings: list[Matching]  # one for each of IOU_THRESHOLDS


def take_part(ground_truth: GroundTruth, detections: Detections, *, federated: bool) -> Candidates:
    """Which detections are evaluated: by COCO's rules the 100 best of each class in an image.

    By LVIS' (`federated`), those of the 300 best of an image whose class is known there: present (it has an object) or
    verified absent. Unmatched detections of a class that is not exhaustively annotated in the image are tolerated.
    """
    group = _group(ground_truth, detections)
    order = np.lexsort((detections.image, -detections.scores))
    if federated:
        order = order[_rank(detections.image[order]) < 300]
        present = _group(ground_truth, ground_truth)
        order = order[np.isin(group[order], np.concatenate([present, _listed(ground_truth, ground_truth.absent)]))]
    rank = _rank(group[order])
    if not federated:
        order, rank = order[rank < 100], rank[rank < 100]
    by_class = _stable_order(detections.category[order])
    order, rank = order[by_class], rank[by_class]
    tolerated = np.isin(group[order], _listed(ground_truth, ground_truth.incomplete))
    return Candidates(detections.select(order), order, rank, tolerated)


def match(ground_truth: GroundTruth, candidates: Candidates) -> Iterator[Setting]:
    """The matchings at all IoU thresholds, for each of AREA_RANGES."""
    pairs = _overlapping_pairs(ground_truth, candidates)
    rank = candidates.rank[pairs.detection]
    # By rank and detection, then the higher IoU, then the later place in the file.
    order = np.lexsort((pairs.object, pairs.iou, pairs.detection, rank))
    pairs, rank = pairs.select(order), rank[order]
    detection_number = np.cumsum(np.diff(pairs.detection, prepend=-1) != 0)
    for area_range in AREA_RANGES.values():
        ignored = ground_truth.crowd | _outside(ground_truth.areas, area_range)
        num_objects = np.bincount(ground_truth.category[~ignored], minlength=len(ground_truth.categories))
        can_be_wrong = ~candidates.tolerated & ~_outside(candidates.detections.areas, area_range)
        # Objects to be found are preferred to ignored ones.
        order = np.argsort(2 * detection_number + ~ignored[pairs.object], kind="stable")
        matchings = []
        for threshold in IOU_THRESHOLDS:
            close = order[pairs.iou[order] >= min(threshold, 1 - 1e-10)]
            matchings.append(_match_greedily(pairs.select(close), rank[close], ground_truth.crowd))
        yield Setting(num_objects, ignored, can_be_wrong, matchings)


def _match_greedily(pairs: Matching, rank: np.ndarray, crowd: np.ndarray) -> Matching:
    """By falling score, each detection takes the best object that is still free; crowds are always free.

    Detections of equal rank belong to different images or classes and cannot compete for an object, so that the loop
    runs over ranks, not over detections.

    Args:
        pairs: possible matches, by the rank of the detection, then by detection, the best object last.
        rank: of their detections.
        crowd: (A,) bool.
    """
    taken = np.zeros(len(crowd), dtype=bool)
    chosen = [np.empty(0, dtype=np.int64)]
    for start, end in pairwise([*np.flatnonzero(np.diff(rank, prepend=-1)), len(rank)]):
        free = start + np.flatnonzero(~taken[pairs.object[start:end]])
        best = free[np.diff(pairs.detection[free], append=-1) != 0]  # the last free pair of each detection
        taken[pairs.object[best]] = ~crowd[pairs.object[best]]
        chosen.append(best)
    indices = np.concatenate(chosen)
    return pairs.select(indices[np.argsort(pairs.detection[indices])])


def _overlapping_pairs(ground_truth: GroundTruth, candidates: Candidates) -> Matching:
    """Pairs of the same image and class whose IoU suffices for a match."""
    group, object_group = _group(ground_truth, candidates.detections), _group(ground_truth, ground_truth)
    objects_by_group = _stable_order(object_group)
    groups, sizes = np.unique(object_group, return_counts=True)
    rows = _stable_order(group)
    place = np.searchsorted(groups[:-1], group[rows])
    may_match = groups[place] == group[rows]
    rows, place = rows[may_match], place[may_match]
    first, number = (np.cumsum(sizes) - sizes)[place], sizes[place]  # of the objects that a detection may match
    stops = np.cumsum(number)
    chosen = [Matching(np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int64), np.empty(0))]
    # Blocks of whole groups, of about a million pairs.
    starts = np.flatnonzero(np.diff(group[rows], prepend=-1))
    starts = starts[np.diff((stops - number)[starts] // BLOCK, prepend=-1) != 0]
    for start, stop in pairwise([*starts, len(rows)]):
        block, size = rows[start:stop], number[start:stop]
        d = np.repeat(block, size)
        o = objects_by_group[np.arange(len(d)) - np.repeat(np.cumsum(size) - size - first[start:stop], size)]
        iou = (_box_iou if ground_truth.masks is None else _mask_iou)(ground_truth, candidates, d, o)
        close = np.flatnonzero(iou >= IOU_THRESHOLDS[0])
        chosen.append(Matching(d[close], o[close], iou[close]))
    return Matching(*map(np.concatenate, zip(*chosen, strict=True)))


def _mask_iou(ground_truth: GroundTruth, candidates: Candidates, d: np.ndarray, o: np.ndarray) -> np.ndarray:
    """(P,) IoU of pairs of masks, sorted by image and detection, or 0 if it does not suffice; with a crowd as of boxes."""
    detections = candidates.detections
    assert detections.mask_areas is not None
    assert detections.masks is not None
    assert ground_truth.mask_areas is not None
    assert ground_truth.masks is not None
    area, other_area = detections.mask_areas[d], ground_truth.mask_areas[o]
    least_union = np.where(ground_truth.crowd[o], area, np.maximum(area, other_area))
    possible = np.flatnonzero(np.minimum(area, other_area) >= IOU_THRESHOLDS[0] * least_union)
    iou = np.zeros(len(d))
    d, o = d[possible], o[possible]
    is_new = np.diff(d, prepend=-1) != 0
    row = np.cumsum(is_new)
    starts = np.flatnonzero(np.diff(ground_truth.image[o], prepend=-1))
    for start, stop in pairwise([*starts, len(o)]):  # a call for each class of an image would take longer
        found = candidates.place[d[start:stop][is_new[start:stop]]]
        objects, column = np.unique(o[start:stop], return_inverse=True)
        image = ground_truth.images[ground_truth.image[objects[0]]]
        size = image.height, image.width
        rles = (
            [{"size": size, "counts": masks[n]} for n in members.tolist()]
            for masks, members in ((detections.masks, found), (ground_truth.masks, objects))
        )
        matrix = mask_utils.iou(*rles, ground_truth.crowd[objects])
        iou[possible[start:stop]] = matrix[row[start:stop] - row[start], column]
    return iou


def _box_iou(ground_truth: GroundTruth, candidates: Candidates, d: np.ndarray, o: np.ndarray) -> np.ndarray:
    """(P,) IoU of pairs of boxes; with a crowd, the share of the detection that lies inside (COCO's convention)."""
    assert candidates.detections.boxes is not None
    assert ground_truth.boxes is not None
    boxes, others = candidates.detections.boxes[d], ground_truth.boxes[o]
    corners = np.maximum(boxes[:, :2], others[:, :2])
    sides = np.minimum(boxes[:, :2] + boxes[:, 2:], others[:, :2] + others[:, 2:]) - corners
    intersection = np.maximum(sides, 0).prod(axis=1)
    area = boxes[:, 2:].prod(axis=1)
    union = np.where(ground_truth.crowd[o], area, area + others[:, 2:].prod(axis=1) - intersection)
    return intersection / np.where(intersection > 0, union, 1)


def _listed(ground_truth: GroundTruth, categories_of_images: list[list[int]]) -> np.ndarray:
    num_classes = len(ground_truth.categories)
    groups = [i * num_classes + c for i, categories in enumerate(categories_of_images) for c in categories]
    return np.array(groups, dtype=np.int64)


def _group(ground_truth: GroundTruth, instances: Instances) -> np.ndarray:
    """One number for each image and class."""
    return instances.image * len(ground_truth.categories) + instances.category


def _rank(groups: np.ndarray) -> np.ndarray:
    """(N,) how many earlier entries are of the same group."""
    order = _stable_order(groups)
    starts = np.flatnonzero(np.diff(groups[order], prepend=-1))
    rank = np.empty(len(groups), dtype=np.int64)
    rank[order] = np.arange(len(groups)) - np.repeat(starts, np.diff(starts, append=len(groups)))
    return rank


def _stable_order(numbers: np.ndarray) -> np.ndarray:
    """`np.argsort(numbers, kind="stable")` of numbers from 0 to 2^48, several times faster: numpy counts 16 bits out."""
    return np.lexsort([(numbers >> bits).astype(np.uint16) for bits in (0, 16, 32)])


def _outside(areas: np.ndarray, area_range: tuple[float, float]) -> np.ndarray:
    return (areas < area_range[0]) | (areas > area_range[1])
