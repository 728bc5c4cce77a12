"""From class probabilities and boxes to the few detections which are reported."""

from collections.abc import Sequence
from itertools import accumulate

import torch
from torch import Tensor
from torchvision.ops import batched_nms, box_iou, clip_boxes_to_image

from ..losses.localization import paired_iou
from .boxes import decode_boxes
from .images import Size

_MOST = 20_000  # pairs of region and class; only detectors which know nothing yet have more


def non_maximum_suppression(
    boxes: Tensor, scores: Tensor, *, score_threshold: float, nms_threshold: float, detections_per_image: int
) -> dict[str, Tensor]:
    """Keeps, class by class, the boxes which no better box of the same class covers.

    Args:
        boxes: xyxy of the regions of one image, [R, 4], or [R, C, 4] where they have one for each class.
        scores: class probabilities, [R, C]. A region can be kept for several classes.
        score_threshold: scores above it take part.
        nms_threshold: a box is dropped where its IoU with a better one of its class is above this.
        detections_per_image: how many are kept at most.

    Returns:
        `boxes` [D, 4], `scores` [D] falling, `labels` int64 [D].
    """
    region, label = (scores > score_threshold).nonzero(as_tuple=True)
    score = scores[region, label]
    if len(score) > _MOST:
        score, best = score.topk(_MOST)
        region, label = region[best], label[best]
    boxes = boxes[region] if boxes.ndim == 2 else boxes[region, label]
    kept = batched_nms(boxes, score, label, nms_threshold)[:detections_per_image]
    return {"boxes": boxes[kept], "scores": score[kept], "labels": label[kept]}


def best_regions(
    logits: Sequence[Tensor], deltas: Sequence[Tensor], anchors: Sequence[Tensor], size: Size, limit: int = 1000
) -> tuple[Tensor, Tensor, Tensor]:
    """The most promising anchors of one image as regions which detections are chosen from.

    Args:
        logits: one [A_l, C] for each level.
        deltas: as of `decode_boxes`, one [A_l, 4] for each level.
        anchors: xyxy in pixels, one [A_l, 4] for each level.
        size: height and width of the image, which the boxes are clipped to.
        limit: the most anchors of a level, those of the highest class logit.

    Returns:
        boxes: xyxy, float32 [R, 4].
        scores: class probabilities, float32 [R, C].
        anchor: which of the ΣA_l anchors each is, int64 [R].
    """
    best = [level.amax(1).topk(min(limit, len(level))).indices for level in logits]
    boxes = torch.cat([decode_boxes(d[i].float(), a[i]) for d, a, i in zip(deltas, anchors, best, strict=True)])
    scores = torch.cat([level[i].float().sigmoid() for level, i in zip(logits, best, strict=True)])
    starts = accumulate((len(level) for level in logits), initial=0)
    anchor = torch.cat([i + start for i, start in zip(best, starts, strict=False)])
    return clip_boxes_to_image(boxes, size), scores, anchor


def fast_non_maximum_suppression(
    boxes: Tensor,
    scores: Tensor,
    *,
    score_threshold: float,
    nms_threshold: float,
    detections_per_image: int,
    top_k: int = 200,
) -> tuple[dict[str, Tensor], Tensor]:
    """Fast NMS (Bolya et al., ICCV 2019, section 5): a box which is dropped may still drop others, so that all can go at once.

    Args:
        boxes: xyxy of the regions of one image, [R, 4].
        scores: class probabilities, [R, C]. A region can be kept for several classes.
        score_threshold: scores above it take part.
        nms_threshold: a box is dropped where its IoU with any better one of its class is above this.
        detections_per_image: how many are kept at most.
        top_k: how many boxes of each class take part.

    Returns:
        The detections, as of `non_maximum_suppression`, and which region each of them is, int64 [D].
    """
    present = (scores > score_threshold).any(0).nonzero().squeeze(1)
    score, region = scores[:, present].T.topk(min(top_k, len(scores)), dim=1)  # [classes which are present, K]
    of_class = boxes[region]
    iou_with_better = paired_iou(of_class[:, :, None], of_class[:, None]).triu(diagonal=1).amax(1)
    kept, place = ((score > score_threshold) & (iou_with_better <= nms_threshold)).nonzero(as_tuple=True)
    score, region, label = score[kept, place], region[kept, place], present[kept]
    best = score.argsort(descending=True, stable=True)[:detections_per_image]
    region = region[best]
    return {"boxes": boxes[region], "scores": score[best], "labels": label[best]}, region


def score_voting(
    detections: dict[str, Tensor], boxes: Tensor, scores: Tensor, *, score_threshold: float, sigma: float = 0.025
) -> dict[str, Tensor]:
    """Moves each detection to the mean of the regions around it (Kim and Lee, ECCV 2020, section 3.3).

    The weight of a region is its score for the detection's class times exp(-(1 - IoU)² / `sigma`).

    Args:
        detections: what `non_maximum_suppression` left of these regions.
        boxes: of the regions, xyxy [R, 4].
        scores: class probabilities of the regions, [R, C].
        score_threshold: scores above it take part.
        sigma: how fast the weight falls with the IoU.

    Returns:
        The detections with other `boxes`.
    """
    score = scores.T[detections["labels"]]  # [D, R]
    iou = box_iou(detections["boxes"], boxes)
    weight = torch.where((iou > 0.01) & (score > score_threshold), score * (-((1 - iou) ** 2) / sigma).exp(), 0.0)
    total = weight.sum(1, keepdim=True)
    voted = torch.where(total > 0, weight @ boxes / total, detections["boxes"])  # a box without area has no neighbours
    return {**detections, "boxes": voted}
