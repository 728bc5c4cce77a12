"""How well a predicted box or mask fits its object: IoU, GIoU loss and Dice loss per instance, without reduction."""

import torch
from torch import Tensor

_EPS = 1e-12  # less than the area of a pixel, also if boxes are fractions of a large image


def _areas(boxes: Tensor) -> Tensor:
    return (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])


def _intersection_and_union(boxes: Tensor, others: Tensor) -> tuple[Tensor, Tensor]:
    # One coordinate at a time: for many pairs several times faster than rows of two.
    (x1, y1, x2, y2), (a1, b1, a2, b2) = boxes.unbind(-1), others.unbind(-1)
    width = (torch.minimum(x2, a2) - torch.maximum(x1, a1)).clamp(min=0)
    height = (torch.minimum(y2, b2) - torch.maximum(y1, b1)).clamp(min=0)
    intersection = width * height
    return intersection, (_areas(boxes) + _areas(others) - intersection).clamp(min=_EPS)


def paired_iou(boxes: Tensor, others: Tensor) -> Tensor:
    """IoU of each box with the box at the same position in the other list.

    Args:
        boxes: xyxy, [..., 4].
        others: xyxy, [..., 4].

    Returns:
        IoU in [0, 1], [...].
    """
    intersection, union = _intersection_and_union(boxes, others)
    return intersection / union


def giou_loss(boxes: Tensor, targets: Tensor) -> Tensor:
    """Generalised IoU loss (Rezatofighi et al., CVPR 2019): 1 - IoU + fraction of the enclosing box that neither box covers.

    Args:
        boxes: predicted boxes, xyxy, [P, 4].
        targets: the boxes of their objects, xyxy, [P, 4].

    Returns:
        One loss per pair, in [0, 2], [P].

    Examples:
        >>> import torch
        >>> from ranksort.losses.localization import giou_loss
        >>> giou_loss(torch.tensor([[0.0, 0, 2, 2]]), torch.tensor([[0.0, 0, 2, 1]]))  # IoU 1 / 2, and an enclosing box without gaps
        tensor([0.5000])
    """
    intersection, union = _intersection_and_union(boxes, targets)
    corners = torch.minimum(boxes[..., :2], targets[..., :2]), torch.maximum(boxes[..., 2:], targets[..., 2:])
    enclosing = _areas(torch.cat(corners, -1)).clamp(min=_EPS)
    return 1 - intersection / union + (enclosing - union) / enclosing


def dice_loss(probabilities: Tensor, targets: Tensor, eps: float = 1e-5) -> Tensor:
    """Dice loss of soft masks: 1 - 2 Σ p t / (Σ p² + Σ t² + `eps`), sums over the pixels (Milletari et al., 2016, squared form).

    Args:
        probabilities: predicted masks after the sigmoid, in [0, 1], [P, H, W].
        targets: the masks of their objects, 0 or 1, [P, H, W].
        eps: keeps the loss of empty masks finite; above 0.

    Returns:
        One loss per instance, in [0, 1], [P].
    """
    p, t = probabilities.flatten(1), targets.flatten(1).to(probabilities.dtype)
    loss = 1 - 2 * (p * t).sum(1) / ((p * p).sum(1) + (t * t).sum(1) + eps)
    return loss.clamp(min=0)  # rounding would make that of a perfect mask negative
