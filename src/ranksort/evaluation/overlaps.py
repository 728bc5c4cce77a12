"""The IoU of each detection with the object it is matched to, however small."""

from itertools import pairwise
from typing import NamedTuple

import numpy as np
from pycocotools import mask as mask_utils

from .inputs import Detections, GroundTruth
from .lrp import TAU
from .matching import DEFAULT_LIMITS, Candidates, Matching, match_greedily, take_part


class Samples(NamedTuple):
    """The N detections that take part, by class, descending score, image and place in the results, with their IoUs."""

    place: np.ndarray  # (N,) in the results
    image: np.ndarray  # (N,) position of the image among the sorted ids
    category: np.ndarray  # (N,) likewise
    score: np.ndarray  # (N,)
    iou: np.ndarray  # (N,) with the matched object, 0 without one; NaN for a detection that does not count
    correct: np.ndarray  # (N,) 1 for a true positive at IoU TAU, 0 for a false one; NaN likewise
    num_objects: np.ndarray  # (C,) objects that count

    def select(self, rows: np.ndarray) -> "Samples":
        """The marked detections, bool (N,)."""
        return self._replace(**{name: getattr(self, name)[rows] for name in self._fields[:-1]})


def assess(
    ground_truth: GroundTruth, detections: Detections, style: str = "coco", max_detections: int | None = None
) -> Samples:
    """Match the detections by COCO's greedy rule twice: at any IoU above 0, for `iou`, and at TAU, for `correct`.

    Detections that are only matched to a crowd, or unmatched where LVIS tolerates them, do not count. A crowd takes detections with an
    IoU of TAU or more in both cases, otherwise everything that touches it would not count.

    Args:
        ground_truth: the objects.
        detections: read for this ground truth.
        style: "coco" or "lvis": which detections take part.
        max_detections: how many per class and image (coco, default 100) or per image (lvis, default 300).
    """
    limit = max_detections or DEFAULT_LIMITS[style]
    return assess_candidates(ground_truth, take_part(ground_truth, detections, federated=style == "lvis", limit=limit))


def assess_candidates(ground_truth: GroundTruth, candidates: Candidates, overlaps: "Overlaps | None" = None) -> Samples:
    """`assess` for the detections that take part, with their overlaps if known."""
    pairs = (overlaps or compare(ground_truth, candidates)).pairs
    found = candidates.detections
    return Samples(
        candidates.place,
        found.image,
        found.category,
        found.scores,
        _match(ground_truth, candidates, pairs, np.nextafter(0, 1)),
        np.ceil(_match(ground_truth, candidates, pairs, TAU)),
        np.bincount(ground_truth.category[~ground_truth.crowd], minlength=len(ground_truth.categories)),
    )


class Overlaps(NamedTuple):
    """How the N detections overlap the objects of their images.

    Attributes:
        pairs: overlapping pairs of the same class, by rank of the detection, then by detection, the best object last. With a crowd,
            their IoU is the fraction of the detection inside it.
        other: (N,) the largest IoU with an object of another class, except for crowds; 0 without one.
        other_object: (N,) that object; 0 where `other` is.
    """

    pairs: Matching
    other: np.ndarray
    other_object: np.ndarray


def compare(ground_truth: GroundTruth, candidates: Candidates) -> Overlaps:
    """Compare each detection with all objects of its image."""
    with_masks = ground_truth.masks is not None
    num_images = len(ground_truth.images)
    category, crowd = candidates.detections.category, ground_truth.crowd
    of_objects, of_found = (
        np.argsort(image, kind="stable") for image in (ground_truth.image, candidates.detections.image)
    )
    object_bounds, found_bounds = (
        np.searchsorted(image[order], np.arange(num_images + 1)).tolist()
        for image, order in ((ground_truth.image, of_objects), (candidates.detections.image, of_found))
    )
    other, other_object = np.zeros(len(category)), np.zeros(len(category), dtype=np.int64)
    parts: list[tuple[np.ndarray, ...]] = [(np.empty(0, dtype=np.int64),) * 2 + (np.empty(0),)]
    for n, (objects, found) in enumerate(zip(pairwise(object_bounds), pairwise(found_bounds), strict=True)):
        o, d = of_objects[slice(*objects)], of_found[slice(*found)]
        if not len(o) or not len(d):
            continue
        shapes = [
            _masks(instances, rows, ground_truth.images[n][1:]) if with_masks else _boxes(instances, rows)
            for instances, rows in ((candidates.detections, candidates.place[d]), (ground_truth, o))
        ]
        iou = mask_utils.iou(*shapes, crowd[o].astype(np.uint8))  # (D, O)
        same = category[d][:, None] == ground_truth.category[o]
        row, column = np.nonzero(same & (iou > 0))
        parts.append((d[row], o[column], iou[row, column]))
        iou[same | crowd[o]] = 0
        nearest = iou.argmax(axis=1)
        other[d], other_object[d] = iou[np.arange(len(d)), nearest], o[nearest]
    pairs = Matching(*map(np.concatenate, zip(*parts, strict=True)))
    # Objects that count are preferred to crowds, then higher IoUs, then later objects, as in pycocotools.
    keys = (pairs.object, pairs.iou, ~crowd[pairs.object], pairs.detection, candidates.rank[pairs.detection])
    return Overlaps(pairs.select(np.lexsort(keys)), other, other_object)


def _boxes(instances: GroundTruth | Detections, rows: np.ndarray) -> np.ndarray:
    assert instances.boxes is not None
    return instances.boxes[rows]


def _masks(instances: GroundTruth | Detections, rows: np.ndarray, size: tuple[int, int]) -> list[dict[str, object]]:
    assert instances.masks is not None
    return [{"size": size, "counts": instances.masks[n]} for n in rows.tolist()]


def _match(ground_truth: GroundTruth, candidates: Candidates, pairs: Matching, threshold: float) -> np.ndarray:
    """(N,) IoU of each detection with the object that it takes, 0 if it takes none; NaN if it does not count."""
    crowd = ground_truth.crowd
    close = pairs.select(pairs.iou >= np.where(crowd[pairs.object], TAU, threshold))
    matched = match_greedily(close, candidates.rank[close.detection], crowd)
    worth = np.where(candidates.tolerated, np.nan, 0.0)
    worth[matched.detection] = np.where(crowd[matched.object], np.nan, matched.iou)
    return worth
