"""From class probabilities and boxes to the few detections which are reported."""

from torch import Tensor
from torchvision.ops import batched_nms

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


def best_anchors(logits: list[Tensor], limit: int) -> list[Tensor]:
    """For each level the anchors of one image with the highest class logit, at most `limit`; [A_l, C] -> int64 [<= limit]."""
    return [level.amax(1).topk(min(limit, len(level))).indices for level in logits]
