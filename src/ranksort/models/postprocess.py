"""From class probabilities and boxes to the few detections which are reported."""

import torch
from torch import Tensor
from torchvision.ops import batched_nms, box_iou

from ..losses.localization import paired_iou

_USUALLY_ENOUGH = 20_000  # pairs of region and class; only detectors which know nothing yet have more


def above_threshold(scores: Tensor, threshold: float, most: int) -> tuple[Tensor, Tensor, Tensor]:
    """The scores above a threshold, of [R, C], no more than the `most` highest; and the region and the class of each, int64."""
    region, label = (scores > threshold).nonzero(as_tuple=True)
    score = scores[region, label]
    if len(score) > most:
        score, best = score.topk(most)
        region, label = region[best], label[best]
    return score, region, label


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
    for most in (_USUALLY_ENOUGH, scores.numel()):
        score, region, label = above_threshold(scores, score_threshold, most)
        candidates = boxes[region] if boxes.ndim == 2 else boxes[region, label]
        kept = batched_nms(candidates, score, label, nms_threshold)[:detections_per_image]
        if len(kept) == detections_per_image or len(score) < most:
            break  # those which were left out could only have come after the ones kept
    return {"boxes": candidates[kept], "scores": score[kept], "labels": label[kept]}


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

    Args: as of `non_maximum_suppression`, and these.
        boxes: xyxy of the regions of one image, [R, 4].
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
    with torch.autocast(boxes.device.type, enabled=False):  # coordinates need more than 8 or 11 bits
        mean = weight @ boxes / total
    voted = torch.where(total > 0, mean, detections["boxes"])  # a box without area has no neighbours
    return {**detections, "boxes": voted}
