"""COCO's greedy matching of detections and objects, for all images and classes at once."""

from collections.abc import Iterable, Iterator
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from pycocotools import mask as mask_utils

from ..data.json_source import no_garbage_collection
from .inputs import Detections, GroundTruth, Instances

IOU_THRESHOLDS = np.linspace(0.5, 0.95, 10)
AREA_RANGES = {"": (0.0, 1e10), "s": (0.0, 32.0**2), "m": (32.0**2, 96.0**2), "l": (96.0**2, 1e10)}  # pixels, COCO's
DEFAULT_LIMITS = {"coco": 100, "lvis": 300}  # detections per class and image, and per image
BLOCK = 100_000  # approximate number of overlaps computed at a time
_IMAGES_AT_ONCE = 4  # pairs of masks compared in one call


class Candidates(NamedTuple):
    """The N detections that take part, by class, descending score, image, and place in the results."""

    detections: Detections
    place: np.ndarray  # (N,) in the results
    group: np.ndarray  # (N,) one number for each image and class
    by_group: np.ndarray  # (N,) the order by group, highest score first
    rank: np.ndarray  # (N,) among the detections of the class in the image, from 0
    tolerated: np.ndarray  # (N,) bool: not false positives even if unmatched
    num_cut: int  # number of detections beyond the limit
    most: int  # the limit that would keep all of them


class Matching(NamedTuple):
    """The M pairs of matched detections and objects, in the order of the detections."""

    detection: np.ndarray  # (M,) positions in Candidates
    object: np.ndarray  # (M,) positions in GroundTruth
    iou: np.ndarray  # (M,)

    def select(self, indices: np.ndarray) -> "Matching":
        return Matching(*(column[indices] for column in self))


class Setting(NamedTuple):
    """The outcome of matching within an area range; objects outside it count neither as detected nor as missed."""

    num_objects: np.ndarray  # (C,) objects that count
    ignored: np.ndarray  # (A,) bool: the other objects
    can_be_wrong: np.ndarray  # (N,) bool: detections that are false positives if unmatched
    matchings: list[Matching]  # one for each of IOU_THRESHOLDS


class Matched(NamedTuple):
    """Objects, the detections that take part, and the outcome of matching them."""

    ground_truth: GroundTruth
    candidates: Candidates
    setting: Setting


def take_part(ground_truth: GroundTruth, detections: Detections, *, federated: bool, limit: int) -> Candidates:
    """Select the detections to evaluate. By COCO's rules: the `limit` highest-scoring per class and image.

    By LVIS' rules (`federated`): of the `limit` highest-scoring per image, those whose class is known there: present (it has an object)
    or verified absent. Unmatched detections of a class that is not exhaustively annotated in the image are tolerated.
    """
    num_cut, most = 0, 0
    if federated:
        order, most = _best_of_images(detections, limit)
        num_cut = len(detections.scores) - len(order)
        group = _group(ground_truth, detections)[order]
        present = _group(ground_truth, ground_truth)
        is_known = np.isin(group, np.concatenate([present, _listed(ground_truth, ground_truth.absent)]))
        order, group = order[is_known], group[is_known]
    else:
        order, group = np.arange(len(detections.scores)), _group(ground_truth, detections)
    by_class = _by_class_and_score(detections.select(order))
    order, group = order[by_class], group[by_class]
    by_group, rank = _rank(group)
    if not federated:
        most = int(rank.max(initial=-1)) + 1
    if most > limit and not federated:
        is_best = rank < limit
        num_cut = len(order) - int(is_best.sum())
        order, group = order[is_best], group[is_best]
        by_group, rank = _rank(group)
    tolerated = np.isin(group, _listed(ground_truth, ground_truth.incomplete))
    return Candidates(detections.select(order), order, group, by_group, rank, tolerated, num_cut, most)


def _best_of_images(detections: Detections, limit: int) -> tuple[np.ndarray, int]:
    """The positions of the `limit` highest-scoring detections of each image, ascending, and the maximum number in one image."""
    counts = np.bincount(detections.image)
    is_best = np.ones(len(detections.image), dtype=bool)
    if (counts > limit).any():
        crowded = np.flatnonzero((counts > limit)[detections.image])
        crowded = crowded[np.argsort(-detections.scores[crowded], kind="stable")]
        is_best[crowded] = _rank(detections.image[crowded])[1] < limit
    return np.flatnonzero(is_best), int(counts.max(initial=0))


def _by_class_and_score(detections: Detections) -> np.ndarray:
    """The order by class, descending score, image, and place."""
    # Numbers from 0 to 1 are ordered like their bits; adding 0 removes the sign of -0.
    bits = np.append(1.0, detections.scores + 0.0).view(np.int64)
    return _stable_order(detections.image, bits[0] - bits[1:], detections.category)


def match(
    ground_truth: GroundTruth, candidates: Candidates, area_ranges: Iterable[tuple[float, float]]
) -> Iterator[Setting]:
    """The matchings at all IoU thresholds, for each area range, in pixels."""
    pairs = _overlapping_pairs(ground_truth, candidates)
    pairs = pairs.select(_best_last(pairs))
    pairs = pairs.select(_stable_order(candidates.rank[pairs.detection]))
    detection_number = np.cumsum(np.diff(pairs.detection, prepend=-1) != 0)
    for area_range in area_ranges:
        ignored = ground_truth.crowd | _outside(ground_truth.areas, area_range)
        num_objects = np.bincount(ground_truth.category[~ignored], minlength=len(ground_truth.categories))
        can_be_wrong = ~candidates.tolerated & ~_outside(candidates.detections.areas, area_range)
        # Objects that count are preferred to ignored ones.
        close = pairs.select(np.argsort(2 * detection_number + ~ignored[pairs.object], kind="stable"))
        matchings = []
        for threshold in IOU_THRESHOLDS:
            close = close.select(close.iou >= min(threshold, 1 - 1e-10))
            matchings.append(match_greedily(close, candidates.rank[close.detection], ground_truth.crowd))
        yield Setting(num_objects, ignored, can_be_wrong, matchings)


def _best_last(pairs: Matching) -> np.ndarray:
    """The order by detection, then the higher IoU, then the later object in the file."""
    order = _stable_order(pairs.detection)
    detection = pairs.detection[order]
    is_new = np.diff(detection, prepend=-1) != 0
    several = np.flatnonzero(~(is_new & np.append(is_new[1:], True)))  # pairs of detections that have more than one
    mixed = order[several]
    order[several] = mixed[np.lexsort((pairs.object[mixed], pairs.iou[mixed], pairs.detection[mixed]))]
    return order


def match_greedily(pairs: Matching, rank: np.ndarray, crowd: np.ndarray) -> Matching:
    """In order of descending score, each detection takes the best object that is still free; crowds are always free.

    Detections of equal rank belong to different images or classes and cannot compete for an object, so the loop runs over ranks instead
    of detections.

    Args:
        pairs: possible matches, by the rank of the detection, then by detection, the best object last.
        rank: ranks of their detections.
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
    """Pairs of the same image and class whose IoU is high enough for a match."""
    object_group = _group(ground_truth, ground_truth)
    objects_by_group = _stable_order(object_group)
    groups, sizes = np.unique(object_group, return_counts=True)
    starts, counts = _runs(candidates.group[candidates.by_group])  # of the detections of a group
    own = candidates.group[candidates.by_group[starts]]
    place = np.minimum(np.searchsorted(groups, own), len(groups) - 1)
    has_objects = groups[place] == own
    starts, counts, place = starts[has_objects], counts[has_objects], place[has_objects]
    firsts, numbers = (np.cumsum(sizes) - sizes)[place], sizes[place]  # of the objects that they may match
    chosen = [Matching(np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int64), np.empty(0))]
    block = np.cumsum(counts * numbers) // BLOCK
    for begin, end in pairwise([*_runs(block)[0], len(block)]):
        many = counts[begin:end]
        row = np.repeat(starts[begin:end] - (np.cumsum(many) - many), many) + np.arange(many.sum())
        first, number = np.repeat(firsts[begin:end], many), np.repeat(numbers[begin:end], many)
        d = np.repeat(candidates.by_group[row], number)
        o = objects_by_group[np.repeat(first - (np.cumsum(number) - number), number) + np.arange(len(d))]
        iou = (_box_iou if ground_truth.masks is None else _mask_iou)(ground_truth, candidates, d, o)
        close = np.flatnonzero(iou >= IOU_THRESHOLDS[0])
        chosen.append(Matching(d[close], o[close], iou[close]))
    return Matching(*map(np.concatenate, zip(*chosen, strict=True)))


@no_garbage_collection()
def _mask_iou(ground_truth: GroundTruth, candidates: Candidates, d: np.ndarray, o: np.ndarray) -> np.ndarray:
    """(P,) IoU of pairs of masks, sorted by image and detection, or 0 if it is too low; with a crowd, as for boxes."""
    detections = candidates.detections
    assert detections.mask_areas is not None
    assert detections.masks is not None
    assert ground_truth.mask_areas is not None
    assert ground_truth.masks is not None
    area, other_area = detections.mask_areas[candidates.place[d]], ground_truth.mask_areas[o]
    least_union = np.where(ground_truth.crowd[o], area, np.maximum(area, other_area))
    possible = np.flatnonzero(np.minimum(area, other_area) >= IOU_THRESHOLDS[0] * least_union)
    iou = np.zeros(len(d))
    d, o = d[possible], o[possible]
    is_new = np.diff(d, prepend=-1) != 0
    found, row = d[is_new], np.cumsum(is_new) - 1
    by_image = ground_truth.image[o].astype(np.int64) * len(ground_truth.image) + o
    objects, column = np.unique(by_image, return_inverse=True)
    objects %= len(ground_truth.image)
    # A call for each class and image would take longer. pycocotools compares only masks of the same size, and uses the width for
    # nothing else, except that it must not be too small: a width of its own for each class and image keeps them apart. Masks of
    # images of different widths must never seem to be of the same size: comparing their runs would not end.
    image_number = np.cumsum(np.diff(ground_truth.image[o], prepend=-1) != 0) - 1
    number_of_row, number_of_column = image_number[is_new], np.empty(len(objects), dtype=np.int64)
    number_of_column[column] = image_number
    heights, widths = np.array([(image.height, image.width) for image in ground_truth.images]).T

    def rles(masks: list[bytes], instances: Instances, rows: np.ndarray, number: np.ndarray) -> list[dict[str, Any]]:
        width = widths.max() + number % _IMAGES_AT_ONCE * len(ground_truth.categories) + instances.category[rows]
        sizes = zip(heights[instances.image[rows]].tolist(), width.tolist(), strict=True)
        return [{"size": size, "counts": counts} for size, counts in zip(sizes, masks, strict=True)]

    rows = rles(detections.masks.take(candidates.place[found]), detections, found, number_of_row)
    columns = rles(ground_truth.masks.take(objects), ground_truth, objects, number_of_column)
    crowd = ground_truth.crowd[objects]
    parts = [
        [*_runs(number // _IMAGES_AT_ONCE)[0].tolist(), len(number)]
        for number in (image_number, number_of_row, number_of_column)
    ]
    for (start, stop), (top, bottom), (left, right) in zip(*map(pairwise, parts), strict=True):
        matrix = mask_utils.iou(rows[top:bottom], columns[left:right], crowd[left:right])
        iou[possible[start:stop]] = matrix[row[start:stop] - top, column[start:stop] - left]
    return iou


def _box_iou(ground_truth: GroundTruth, candidates: Candidates, d: np.ndarray, o: np.ndarray) -> np.ndarray:
    """(P,) IoU of pairs of boxes; with a crowd, the share of the detection that lies inside (COCO's convention)."""
    boxes, others = candidates.detections.boxes, ground_truth.boxes
    assert boxes is not None
    assert others is not None
    x, y, width, height = boxes[candidates.place[d]].T.copy()  # contiguous columns are several times faster
    other_x, other_y, other_width, other_height = others[o].T.copy()
    overlap_x = np.minimum(x + width, other_x + other_width) - np.maximum(x, other_x)
    overlap_y = np.minimum(y + height, other_y + other_height) - np.maximum(y, other_y)
    intersection = np.maximum(overlap_x, 0) * np.maximum(overlap_y, 0)
    area = width * height
    union = np.where(ground_truth.crowd[o], area, area + other_width * other_height - intersection)
    return intersection / np.where(intersection > 0, union, 1)


def _listed(ground_truth: GroundTruth, categories_of_images: list[list[int]]) -> np.ndarray:
    num_classes = len(ground_truth.categories)
    groups = [i * num_classes + c for i, categories in enumerate(categories_of_images) for c in categories]
    return np.array(groups, dtype=np.int64)


def _group(ground_truth: GroundTruth, instances: Instances) -> np.ndarray:
    """One number for each image and class."""
    return instances.image.astype(np.int64) * len(ground_truth.categories) + instances.category


def _rank(groups: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The stable order of N groups, and the number of earlier entries of the same group, (N,) each."""
    order = _stable_order(groups)
    starts, counts = _runs(groups[order])
    rank = np.empty(len(groups), dtype=np.int32)
    rank[order] = np.arange(len(groups)) - np.repeat(starts, counts)
    return order, rank


def _runs(numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The starts and lengths of runs of equal numbers."""
    starts = np.flatnonzero(np.diff(numbers, prepend=-1))
    return starts, np.diff(starts, append=len(numbers))


def _stable_order(*keys: np.ndarray) -> np.ndarray:
    """`np.lexsort(keys)` of integers from 0 to 2^63, several times faster: numpy uses a radix sort for 16 bits."""
    widths = [max(1, int(key.max(initial=0)).bit_length()) for key in keys]
    return np.lexsort(
        [
            (key >> bits).astype(np.uint16)
            for key, width in zip(keys, widths, strict=True)
            for bits in range(0, width, 16)
        ]
    )


def _outside(areas: np.ndarray, area_range: tuple[float, float]) -> np.ndarray:
    return (areas < area_range[0]) | (areas > area_range[1])
