"""YOLACT (Bolya et al., ICCV 2019) in loops: Fast NMS (section 5) and masks from prototypes (section 3.1)."""

import math

import torch
from torch import Tensor

Box = list[float]


def iou(a: Box, b: Box) -> float:
    both = max(min(a[2], b[2]) - max(a[0], b[0]), 0) * max(min(a[3], b[3]) - max(a[1], b[1]), 0)
    return both / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - both)


def fast_nms(
    boxes: list[Box], scores: list[list[float]], score_threshold: float, nms_threshold: float, limit: int, top_k: int
) -> list[tuple[float, int, int]]:
    """Score, label and region of what is kept, the best first."""
    kept = []
    for label in range(len(scores[0])):
        ranked = sorted(range(len(boxes)), key=lambda i: -scores[i][label])[:top_k]
        for place, i in enumerate(ranked):
            covered = any(iou(boxes[j], boxes[i]) > nms_threshold for j in ranked[:place])
            if scores[i][label] > score_threshold and not covered:
                kept.append((scores[i][label], label, i))
    return sorted(kept, reverse=True)[:limit]


def mask(
    prototypes: list[list[list[float]]], coefficients: list[float], box: Box, size: tuple[int, int]
) -> list[list[float]]:
    """One mask at the resolution of the prototypes; cells more than one outside the box are 0."""
    height, width = len(prototypes[0]), len(prototypes[0][0])
    left, right = box[0] * width / size[1] - 1, box[2] * width / size[1] + 1
    top, bottom = box[1] * height / size[0] - 1, box[3] * height / size[0] + 1
    result = [[0.0] * width for _ in range(height)]
    for y in range(height):
        for x in range(width):
            if left <= x < right and top <= y < bottom:
                value = sum(c * p[y][x] for c, p in zip(coefficients, prototypes, strict=True))
                result[y][x] = 1 / (1 + math.exp(-value))
    return result


def mask_losses(
    prototypes: Tensor, coefficients: Tensor, boxes: Tensor, wanted: Tensor, size: tuple[int, int]
) -> Tensor:
    """Dice losses of masks at the resolution of the prototypes, one by one, all of them kept for the gradient.

    Prototypes are [K, h, w], coefficients [P, K], boxes xyxy [P, 4] in an image of that size, wanted masks [P, h, w].
    """
    height, width = prototypes.shape[1:]
    losses = []
    for c, (x1, y1, x2, y2), t in zip(coefficients, boxes.tolist(), wanted.double(), strict=True):
        x, y = torch.arange(width), torch.arange(height)[:, None]
        left, right, top, bottom = (
            x1 * width / size[1],
            x2 * width / size[1],
            y1 * height / size[0],
            y2 * height / size[0],
        )
        inside = (x >= left - 1) & (x < right + 1) & (y >= top - 1) & (y < bottom + 1)
        p = torch.where(inside, (c[:, None, None] * prototypes).sum(0).sigmoid(), 0.0)
        losses.append(1 - 2 * (p * t).sum() / ((p * p).sum() + (t * t).sum() + 1e-5))
    return torch.stack(losses)
