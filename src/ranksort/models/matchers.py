"""Matchers decide which object, if any, an anchor or a proposal has to detect.

Every matcher returns one int64 for each anchor: the index of its object, `NEGATIVE` for background, or `IGNORED` if it takes no part in
training. For example, with two objects, [1, -1, -1, 0, -2] means that anchors 0 and 3 are positive, 1 and 2 negative, and 4 is ignored.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torchvision.ops import box_iou

NEGATIVE = -1
IGNORED = -2


class Matched(NamedTuple):
    """The combined matches of a batch, with all anchors of all images in one row."""

    positive: Tensor  # which anchors are positive, int64 [P]
    labels: Tensor  # the classes of their objects, int64 [P]
    boxes: Tensor  # the boxes of their objects, xyxy [P, 4]
    ignored: Tensor  # bool [B · A]
    image: Tensor  # the image of each positive, int64 [P], ascending
    object: Tensor  # the index of its object in that image, int64 [P]


def collect(matches: Sequence[Tensor], targets: Sequence[dict[str, Tensor]]) -> Matched:
    """Combine the matches of B images, int64 [A_b] each, and look up the objects in their `targets`."""
    matched = torch.cat(list(matches))
    positive = (matched >= 0).nonzero().squeeze(1)
    image = torch.cat([torch.full_like(m, i) for i, m in enumerate(matches)])[positive]
    objects = torch.tensor([0] + [len(t["labels"]) for t in targets], device=matched.device).cumsum(0)
    owner = matched[positive] + objects[image]
    labels, boxes = (torch.cat([t[key] for t in targets]) for key in ("labels", "boxes"))
    return Matched(positive, labels[owner], boxes[owner], matched == IGNORED, image, matched[positive])


def match_iou(
    regions: Tensor,
    objects: Tensor,
    *,
    positive: float,
    negative: float,
    low_quality: float | None = None,
    one_best: bool = False,
    usable: Tensor | None = None,
) -> Tensor:
    """Matching by IoU thresholds (Ren et al., NeurIPS 2015, section 3.1.2).

    A region belongs to the object with which its IoU is highest, if that is at least `positive`; it is a negative if it is below
    `negative`, and ignored in between. With `low_quality`, the regions that have the highest IoU with an object belong to it if that
    IoU is at least `low_quality`, even if they fit another object better; a region that is the best for several objects belongs to the
    last of them.

    Args:
        regions: anchors or proposals, xyxy [A, 4].
        objects: xyxy [G, 4].
        positive: minimum IoU of a positive.
        negative: upper bound (exclusive) of the IoU of a negative.
        low_quality: minimum IoU of the best regions of an object; 0: any overlap; None: no exception for them.
        one_best: if several regions have the highest IoU with an object, only the first is its best; otherwise all are.
        usable: bool [A]; other regions are ignored, and cannot be the best of an object. None: all are usable.

    Returns:
        int64 [A], index of the object, NEGATIVE or IGNORED.

    Examples:
        >>> import torch
        >>> from ranksort.models.matchers import match_iou
        >>> anchors = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 5], [40, 40, 50, 50]])
        >>> match_iou(anchors, torch.tensor([[0.0, 0, 10, 9]]), positive=0.7, negative=0.3, low_quality=None)  # -2: ignored, -1: negative
        tensor([ 0, -2, -1])
    """
    if usable is not None:
        matches = torch.full_like(usable, IGNORED, dtype=torch.int64)
        matches[usable] = match_iou(
            regions[usable],
            objects,
            positive=positive,
            negative=negative,
            low_quality=low_quality,
            one_best=one_best,
        )
        return matches
    if len(objects) == 0:
        return regions.new_full((len(regions),), NEGATIVE, dtype=torch.int64)
    iou = box_iou(objects, regions)  # [G, A]
    best, owner = iou.max(0)
    matches = torch.where(best >= positive, owner, torch.where(best < negative, NEGATIVE, IGNORED))
    if low_quality is None or len(regions) == 0:
        return matches
    best_of_object, first = iou.max(1, keepdim=True)
    is_best = torch.zeros_like(iou, dtype=torch.bool).scatter_(1, first, True) if one_best else iou == best_of_object
    # An object outside the image would own every region.
    is_best &= (best_of_object >= low_quality) & (best_of_object > 0)
    index = torch.arange(len(objects), device=iou.device)[:, None]
    last = torch.where(is_best, index, NEGATIVE).amax(0)  # the last of several objects, as published
    return torch.where(last >= 0, last, matches)


def match_atss(anchors: Sequence[Tensor], objects: Tensor, in_image: Sequence[Tensor], top_k: int = 9) -> Tensor:
    """Adaptive Training Sample Selection (Zhang et al., CVPR 2020, algorithm 1).

    The candidates of an object are, on each level, the `top_k` anchors whose centres are nearest to its own. Those whose IoU with the
    object is at least the mean + standard deviation over its candidates, and whose centre lies inside it, are positive. An anchor that
    is positive for several objects goes to the one with the highest IoU.

    Args:
        anchors: xyxy, one [A_l, 4] for each level.
        objects: xyxy, [G, 4].
        in_image: bool, one [A_l] for each level; other anchors are ignored.
        top_k: candidates for each level and object.

    Returns:
        int64 [ΣA_l], index of the object, NEGATIVE or IGNORED.
    """
    ignored = ~torch.cat(list(in_image))
    everything = torch.cat(list(anchors))
    matches = torch.where(ignored, IGNORED, NEGATIVE)
    if len(objects) == 0:
        return matches
    centres = (everything[:, :2] + everything[:, 2:]) / 2
    object_centres = (objects[:, :2] + objects[:, 2:]) / 2
    distance = torch.cdist(centres, object_centres, compute_mode="donot_use_mm_for_euclid_dist")
    distance = distance.masked_fill(ignored[:, None], torch.inf)

    candidates, offset = [], 0
    for level in distance.split([len(a) for a in anchors]):
        candidates.append(level.topk(min(top_k, len(level)), dim=0, largest=False).indices + offset)
        offset += len(level)
    candidate = torch.cat(candidates)  # [K, G]

    iou = box_iou(everything, objects)
    candidate_iou = iou.gather(0, candidate)
    usable = ~ignored[candidate]
    threshold = _mean_plus_std(candidate_iou, usable)
    to_side = torch.cat([centres[candidate] - objects[:, :2], objects[:, 2:] - centres[candidate]], -1)
    positive = usable & (candidate_iou >= threshold) & (to_side.amin(-1) > 0.01)

    claimed = torch.full_like(iou, -1.0)
    claimed.scatter_(0, candidate, torch.where(positive, candidate_iou, -1.0))
    best, owner = claimed.max(1)
    return torch.where(best >= 0, owner, matches)


def _mean_plus_std(values: Tensor, valid: Tensor) -> Tensor:
    """Mean plus unbiased standard deviation of the valid values in each column, [K, G] -> [G]."""
    count = valid.sum(0)
    mean = (values * valid).sum(0) / count
    variance = ((values - mean).square() * valid).sum(0) / (count - 1).clamp(min=1)
    return mean + variance.sqrt()
