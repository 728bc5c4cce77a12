"""Mixture of calibrated detectors: agreement between detectors, then soft NMS and score voting (MoCaE, Oksuz et al., TMLR 2024)."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from ..data.ids import Id, canonical, spelled
from .result_rows import CALIBRATED, Row, read_boxes

_SOFT_NMS_SIGMA = 0.5  # Bodla et al., ICCV 2017
_LEAST_SCORE = 1e-6  # boxes picked by soft NMS with lower scores are dropped; calibrated scores can be as low as 1e-5
# How far the boxes of other detectors may be off; benchmarks/mixture.md has what it gains on validation images.
_AGREEMENT_SIGMA = 0.1
_VOTING_SIGMA = 0.025  # as in PAA's score voting
_VOTING_IOU = 0.01  # boxes with a lower IoU are unrelated
_BLOCK = 1 << 21  # pairs of boxes at a time


def merge_rows(parts: Mapping[str, Sequence[Row]], detections_per_image: int = 100) -> list[Row]:
    """Merge the detections of several detectors on the same images.

    The score of a detection is first replaced by the mean over all detectors: its own score, and for each other detector the highest score
    times exp(-(1 - IoU)² / .1) among its boxes of that class. Detectors that never find a class are left out of its mean. Then, in each
    image and class, the best detection is kept, the scores of the others are multiplied by exp(-IoU² / .5), and so on. Its box moves to the
    mean of the boxes around it, weighted by the given scores times exp(-(1 - IoU)² / .025); a detection with a mask is not moved. For a row
    without a box, the box around its mask is used.

    Args:
        parts: the rows of each detector, from `read_rows`, by their name for messages; each row has a "bbox" or a "segmentation", and
            scores must be comparable.
        detections_per_image: maximum number of detections kept per image.

    Returns:
        The rows by image, in the order of their first appearance, and descending score. They are no longer marked as calibrated,
        because merging changes the scores. The given rows are not changed.

    Raises:
        ValueError: a row has neither box nor mask, or the detectors have no image in common.

    Examples:
        >>> from ranksort.evaluation.merging import merge_rows
        >>> row = {"image_id": 1, "category_id": 1, "bbox": [10, 10, 20, 20], "score": 0.9}
        >>> parts = {"a": [row], "b": [{**row, "score": 0.5}, {**row, "bbox": [60, 60, 9, 9], "score": 0.4}]}
        >>> [(row["bbox"][0], round(row["score"], 2)) for row in merge_rows(parts)]  # the mean of both; the duplicate has lost its score
        [(10.0, 0.7), (60.0, 0.2), (10.0, 0.09)]
    """
    boxes = np.concatenate([read_boxes(rows, name) for name, rows in parts.items()])
    _require_common_images(parts)
    rows = [row for part in parts.values() for row in part]
    scores = np.array([row["score"] for row in rows], dtype=np.float64)
    image, category = (_numbered([_id(row[key]) for row in rows]) for key in ("image_id", "category_id"))
    detector = np.repeat(np.arange(len(parts)), [len(part) for part in parts.values()])
    finds = np.zeros((len(parts), 1 + category.max(initial=-1)), dtype=bool)  # whether a detector ever finds a class
    finds[detector, category] = True
    merged, merged_scores = boxes.copy(), np.zeros(len(rows))
    for members in _groups(image, category):
        iou = _pairwise_iou(boxes[members])
        real = members >= 0
        group_scores = np.where(real, scores[members], 0.0)
        of_detectors = detector[members] == np.arange(len(parts))[:, None, None]
        of_each = _scores_of_each(np.where(of_detectors, group_scores, 0.0), of_detectors, iou)
        mean_scores = of_each.sum(axis=0) / finds[:, category[members[:, :1]]].sum(axis=0)
        merged_scores[members[real]] = soft_nms(np.where(real, mean_scores, 0.0), iou)[real]
        merged[members[real]] = _vote(boxes[members], group_scores, iou)[real]
    order = np.lexsort((-merged_scores, image))
    order = order[merged_scores[order] > _LEAST_SCORE]
    rank = np.arange(len(order)) - np.searchsorted(image[order], image[order])
    kept = order[rank < detections_per_image].tolist()
    moved = merged[kept]
    moved[:, 2:] -= moved[:, :2]
    return [
        _moved(rows[n], score, box)
        for n, score, box in zip(kept, merged_scores[kept].tolist(), moved.tolist(), strict=True)
    ]


def _scores_of_each(scores: np.ndarray, is_own: np.ndarray, iou: np.ndarray) -> np.ndarray:
    """The score that each of D detectors gives to each box, (D, G, n).

    Args:
        scores: (D, G, n) scores of the detector's own boxes, 0 for others.
        is_own: (D, G, n) bool.
        iou: (G, n, n).
    """
    near = np.where(iou > _VOTING_IOU, np.exp(-((1 - iou) ** 2) / _AGREEMENT_SIGMA), 0.0)
    given = np.stack([(near * own[:, None]).max(axis=2) for own in scores])
    return np.where(is_own, scores, given)


def soft_nms(scores: np.ndarray, iou: np.ndarray) -> np.ndarray:
    """Soft NMS with Gaussian decay (Bodla et al., ICCV 2017), in G groups of n boxes at a time.

    Args:
        scores: (G, n), 0 for padding.
        iou: (G, n, n).

    Returns:
        (G, n) the score with which each box is picked.
    """
    decay = np.exp(-(iou**2) / _SOFT_NMS_SIGMA)
    left, picked = scores.copy(), np.zeros_like(scores)
    groups = np.arange(len(scores))
    for _ in range(scores.shape[1]):
        best = left.argmax(axis=1)
        picked[groups, best] = left[groups, best].clip(0)
        left *= decay[groups, best]
        left[groups, best] = -np.inf  # and stays so
    return picked


def _vote(boxes: np.ndarray, scores: np.ndarray, iou: np.ndarray) -> np.ndarray:
    """Boxes (G, n, 4), moved by score voting (Kim and Lee, ECCV 2020) within each group."""
    weights = np.where(iou > _VOTING_IOU, scores[:, None] * np.exp(-((1 - iou) ** 2) / _VOTING_SIGMA), 0.0)
    total = weights.sum(axis=2, keepdims=True)
    return np.where(total > 0, weights @ boxes / np.where(total > 0, total, 1), boxes)


def _groups(image: np.ndarray, category: np.ndarray) -> Iterator[np.ndarray]:
    """Positions (G, n) of the rows of G images and classes of similar size at a time; shorter ones are padded with -1.

    Their sizes differ by less than a factor of two, otherwise one crowded image would make all others as large.
    """
    order = np.lexsort((category, image))
    is_new = [np.diff(numbers[order], prepend=-1) != 0 for numbers in (image, category)]
    starts = np.flatnonzero(is_new[0] | is_new[1])
    counts = np.diff(starts, append=len(order))
    by_count = np.argsort(counts, kind="stable")
    starts, counts = starts[by_count], counts[by_count]
    width = np.frexp(counts)[1]  # digits of a count in binary
    block = np.cumsum(4.0**width) // _BLOCK
    begins = np.flatnonzero((np.diff(block, prepend=-1) != 0) | (np.diff(width, prepend=0) != 0))
    for begin, end in pairwise([*begins.tolist(), len(block)]):
        column = np.arange(counts[end - 1])
        places = starts[begin:end, None] + column
        yield np.where(column < counts[begin:end, None], order[np.minimum(places, len(order) - 1)], -1)


def _pairwise_iou(boxes: np.ndarray) -> np.ndarray:
    """(G, n, n) IoU of boxes (G, n, 4), xyxy, of each group."""
    low, high = boxes[..., :2], boxes[..., 2:]
    sides = np.minimum(high[:, :, None], high[:, None]) - np.maximum(low[:, :, None], low[:, None])
    intersection = sides.clip(0).prod(axis=-1)
    area = (high - low).prod(axis=-1)
    union = area[:, :, None] + area[:, None] - intersection
    return intersection / np.where(intersection > 0, union, 1)


def _require_common_images(parts: Mapping[str, Sequence[Row]]) -> None:
    """Refuse results without an image in common with the others: nothing could be merged."""
    ids = {name: {_id(row["image_id"]) for row in rows} for name, rows in parts.items() if rows}
    for name, own in ids.items():
        others = [other for key, other in ids.items() if key != name]
        if others and own.isdisjoint(set().union(*others)):
            raise ValueError(
                f"The detections {name} have no image_id in common with the others: they belong to other images."
            )


def _id(value: Any) -> Id:
    """The id of a checked row; some tools write integers as strings."""
    id = canonical(value)
    assert id is not None
    return spelled(id)


def _numbered(ids: list[Id]) -> np.ndarray:
    """int64 (N,): equal numbers for equal ids, in the order of their first appearance."""
    numbers: dict[Id, int] = {}
    return np.array([numbers.setdefault(id, len(numbers)) for id in ids], dtype=np.int64)


def _moved(row: Row, score: float, box: list[float]) -> Row:
    moved = {**row, "score": score, **({} if row.get("segmentation") else {"bbox": box})}
    moved.pop(CALIBRATED, None)
    return moved
