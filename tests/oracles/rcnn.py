"""What the R-CNNs do to boxes and masks, one element at a time."""

import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.ops import box_iou


def match_iou(
    regions: Tensor,
    objects: Tensor,
    positive: float,
    negative: float,
    low_quality: float | None,
    one_best: bool = False,
) -> list[int]:
    """Index of the object of each region, -1 for negatives, -2 for those between the thresholds."""
    if len(objects) == 0:
        return [-1] * len(regions)
    # In float32, as the IoUs are: one of 7/10 reaches .7.
    positive, negative, low = torch.tensor([positive, negative, low_quality or 0.0]).tolist()
    iou = box_iou(regions, objects).tolist()
    matches = []
    for row in iou:
        best = max(row)
        matches.append(row.index(best) if best >= positive else -1 if best < negative else -2)
    if low_quality is not None:
        for k in range(len(objects)):
            best = max((row[k] for row in iou), default=0.0)
            the_best = [i for i, row in enumerate(iou) if row[k] == best >= low and best > 0]
            for i in the_best[:1] if one_best else the_best:
                matches[i] = k
    return matches


def paste_mask(mask: Tensor, box: list[float], height: int, width: int) -> Tensor:
    """The probability at the centre of each pixel of an image, bilinear in a mask [M, M] which fills a box xyxy and is 0 outside."""
    x1, y1, x2, y2 = box
    y, x = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    grid = torch.stack([(x - x1) / (x2 - x1), (y - y1) / (y2 - y1)], -1) * 2 - 1
    return F.grid_sample(mask[None, None], grid[None], mode="bilinear", padding_mode="zeros", align_corners=False)[0, 0]


def carafe(x: Tensor, weights: Tensor, kernel: int) -> Tensor:
    """A map [C, H, W] doubled: each new cell (y, x) is the mean of the cells around (y // 2, x // 2) by weights [kernel², 2H, 2W]."""
    channels, height, width = x.shape
    out = torch.zeros(channels, 2 * height, 2 * width)
    for y in range(2 * height):
        for column in range(2 * width):
            for tap in range(kernel**2):
                row = y // 2 + tap // kernel - kernel // 2
                col = column // 2 + tap % kernel - kernel // 2
                if 0 <= row < height and 0 <= col < width:
                    out[:, y, column] += weights[tap, y, column] * x[:, row, col]
    return out
