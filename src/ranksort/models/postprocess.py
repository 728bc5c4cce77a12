"""Post-processing: from class probabilities and boxes to the reported detections."""

from typing import Any

import torch
from torch import Tensor
from torchvision.ops import box_iou, nms

from ..losses.localization import paired_iou

_FIRST_TRY = 1000  # pairs of region and class; only untrained detectors need more

_VOTING_SIGMA = 0.025  # how fast the weight of a region decreases with 1 - IoU in score voting


def non_maximum_suppression(
    boxes: Tensor, scores: Tensor, *, score_threshold: float, nms_threshold: float, detections_per_image: int
) -> dict[str, Tensor]:
    """Non-maximum suppression: keep, class by class, boxes that no higher-scoring box of the same class covers.

    Args:
        boxes: xyxy boxes of the regions of one image, [R, 4], or [R, C, 4] if they have one for each class.
        scores: class probabilities, [R, C]. A region can be kept for several classes.
        score_threshold: scores above it take part.
        nms_threshold: a box is dropped if its IoU with a higher-scoring one of its class is above this.
        detections_per_image: maximum number kept.

    Returns:
        `boxes` [D, 4], `scores` [D] descending, `labels` int64 [D].
    """
    most = _FIRST_TRY
    while True:
        score, region, label, all_taken = _best_pairs(scores, score_threshold, most)
        candidates = boxes[region] if boxes.ndim == 2 else boxes[region, label]
        kept = nms_by_group(candidates, score, label, nms_threshold)[:detections_per_image]
        if all_taken or len(kept) == detections_per_image:
            # The pairs left out score lower than all of these, so they could neither drop one nor come before one.
            return {"boxes": candidates[kept], "scores": score[kept], "labels": label[kept]}
        most *= 4


def _best_pairs(scores: Tensor, threshold: float, most: int) -> tuple[Tensor, Tensor, Tensor, bool]:
    """The `most` highest scores of [R, C] that are above the threshold, and ties with the last of them, by region and class.

    Returns:
        The scores, their regions and classes, int64, and whether these are all scores above the threshold.
    """
    chosen = scores > threshold
    above = scores[chosen]
    if len(above) > most:
        chosen = scores >= above.topk(most, sorted=False).values.amin()
    region, label = chosen.nonzero(as_tuple=True)
    return scores[region, label], region, label, len(region) == len(above)


def nms_by_group(boxes: Tensor, scores: Tensor, groups: Tensor, threshold: float) -> Tensor:
    """Non-maximum suppression within each group (a class or a pyramid level).

    Args:
        boxes: xyxy in pixels, [N, 4]; taken as float32 at least.
        scores: [N].
        groups: group of each box, from 0, int64 [N].
        threshold: a box is dropped if its IoU with a higher-scoring one of its group is above this.

    Returns:
        The kept boxes, int64, by descending score; ties in the given order.
    """
    boxes, scores = boxes.float(), scores.float()
    if boxes.device.type == "cuda" and len(boxes):
        return nms(moved_apart(boxes, groups), scores.double(), threshold)  # one call for all groups
    device = boxes.device
    boxes, scores, groups = boxes.cpu(), scores.cpu(), groups.cpu()  # other devices have no float64
    of_groups = groups.argsort(stable=True).split(groups.bincount(minlength=1).tolist())
    kept = torch.cat([x if len(x) < 2 else x[nms(boxes[x], scores[x], threshold)] for x in of_groups]).sort().values
    return kept[scores[kept].argsort(descending=True, stable=True)].to(device)


def moved_apart(boxes: Tensor, groups: Tensor) -> Tensor:
    """Shift boxes so that those of different groups do not overlap, and those of the same group overlap as before; float64 [N, 4].

    They are shifted by a power of two, which keeps distances of coordinates down to 1/64 px exact. In float32, boxes of LVIS's class
    1202 in an image of 4,000 px would be rounded to half a pixel.
    """
    span = 2 ** (1 + boxes.abs().amax().clamp(min=1).double().log2().ceil())
    return boxes.double() + (groups * span)[:, None]


def fast_non_maximum_suppression(
    boxes: Tensor,
    scores: Tensor,
    *,
    score_threshold: float,
    nms_threshold: float,
    detections_per_image: int,
    top_k: int = 200,
) -> tuple[dict[str, Tensor], Tensor]:
    """Fast NMS (Bolya et al., ICCV 2019, section 5): dropped boxes may still drop others, so that all are decided at once.

    Takes the arguments of `non_maximum_suppression`, and these:

    Args:
        boxes: xyxy boxes of the regions of one image, [R, 4].
        top_k: number of boxes of each class that take part.

    Returns:
        The detections, as from `non_maximum_suppression`, and their regions, int64 [D].
    """
    counts = (scores > score_threshold).sum(0)
    present = counts.nonzero().squeeze(1)
    # Boxes below the threshold are not kept, and drop none that are.
    most: Any = torch.sym_min(torch.sym_min(top_k, scores.shape[0]), torch.sym_max(1, counts.max().item()))
    score, region = scores[:, present].T.topk(most, dim=1)  # [classes that are present, K]
    of_class = boxes[region]
    iou_with_better = paired_iou(of_class[:, :, None], of_class[:, None]).triu(diagonal=1).amax(1)
    kept, place = ((score > score_threshold) & (iou_with_better <= nms_threshold)).nonzero(as_tuple=True)
    score, region, label = score[kept, place], region[kept, place], present[kept]
    best = score.argsort(descending=True, stable=True)[:detections_per_image]
    region = region[best]
    return {"boxes": boxes[region], "scores": score[best], "labels": label[best]}, region


def score_voting(
    detections: dict[str, Tensor], boxes: Tensor, scores: Tensor, *, score_threshold: float
) -> dict[str, Tensor]:
    """Move each detection to the mean of the regions around it (Kim and Lee, ECCV 2020, section 3.3).

    The weight of a region is its score for the detection's class times exp(-(1 - IoU)² / .025).

    Args:
        detections: result of `non_maximum_suppression` for these regions.
        boxes: boxes of the regions, xyxy [R, 4].
        scores: class probabilities of the regions, [R, C].
        score_threshold: scores above it take part.

    Returns:
        The detections with moved `boxes`.
    """
    score = scores.T[detections["labels"]]  # [D, R]
    iou = box_iou(detections["boxes"], boxes)
    weight = torch.where(
        (iou > 0.01) & (score > score_threshold), score * (-((1 - iou) ** 2) / _VOTING_SIGMA).exp(), 0.0
    )
    total = weight.sum(1, keepdim=True)
    with torch.autocast(boxes.device.type, enabled=False):  # coordinates need more than 8 or 11 bits
        mean = weight @ boxes / total
    voted = torch.where(total > 0, mean, detections["boxes"])  # a box without area has no neighbours
    return {**detections, "boxes": voted}
