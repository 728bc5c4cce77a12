"""Convert box deltas to boxes."""

import math

import torch
from torch import Tensor

_STDS = (0.1, 0.1, 0.2, 0.2)
_MAX_LOG_RATIO = math.log(1000 / 16)  # keeps exp() finite at the start of training


def decode_boxes(deltas: Tensor, anchors: Tensor, stds: tuple[float, float, float, float] = _STDS) -> Tensor:
    """Shift and scale anchors by predicted deltas (Girshick et al., 2014, appendix C).

    Args:
        deltas: (dx, dy, dw, dh) divided by `stds`: dx, dy in widths and heights of the anchor, dw, dh the logs of the ratios; [..., 4].
        anchors: xyxy in pixels, [..., 4].
        stds: factor of each delta.

    Returns:
        Boxes xyxy in pixels, not clipped to the image, [..., 4].
    """
    deltas = deltas * deltas.new_tensor(stds)
    size = anchors[..., 2:] - anchors[..., :2]
    centre = (anchors[..., :2] + anchors[..., 2:]) / 2 + deltas[..., :2] * size
    half = size * deltas[..., 2:].clamp(-_MAX_LOG_RATIO, _MAX_LOG_RATIO).exp() / 2
    return torch.cat([centre - half, centre + half], -1)
