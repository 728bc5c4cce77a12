"""Anchors: the boxes of fixed shapes at every cell of the feature maps which a dense head starts from."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .images import Size


@dataclass(frozen=True)
class AnchorGenerator:
    """Anchors of every ratio and scale, centred on the upper left corner of each cell and not rounded.

    Attributes:
        strides: pixels between cells, one a level.
        scales: sides of a square anchor in base sizes.
        ratios: height / width; the area is that of the square.
        base_sizes: in pixels, one a level; None: the strides.
        offset: of the centre from the upper left corner of its cell, in strides.
    """

    strides: Sequence[float]
    scales: Sequence[float]
    ratios: Sequence[float] = (1.0,)
    base_sizes: Sequence[float] | None = None
    offset: float = 0.0

    @property
    def per_cell(self) -> int:
        """How many anchors a cell has, in the order of ratio, then scale."""
        return len(self.scales) * len(self.ratios)

    def __call__(self, feature_sizes: Sequence[Size], device: torch.device) -> list[Tensor]:
        """Returns for each level xyxy [H · W · per_cell, 4], ordered by row, column, anchor."""
        levels = []
        for stride, base, (height, width) in zip(
            self.strides, self.base_sizes or self.strides, feature_sizes, strict=True
        ):
            root = torch.tensor(self.ratios, device=device).sqrt()[:, None]
            side = torch.tensor(self.scales, device=device) * base
            half = torch.stack([(side / root).flatten(), (side * root).flatten()], 1) / 2
            rows, columns = ((torch.arange(n, device=device) + self.offset) * stride for n in (height, width))
            y, x = torch.meshgrid(rows, columns, indexing="ij")
            centre = torch.stack([x, y], -1).reshape(-1, 1, 2)
            levels.append(torch.cat([centre - half, centre + half], -1).reshape(-1, 4))
        return levels

    def in_image(self, feature_sizes: Sequence[Size], padded_size: Size, device: torch.device) -> list[Tensor]:
        """Which anchors belong to cells of an image which is smaller than its batch; bool [H · W · per_cell] for each level."""
        levels = []
        for stride, (height, width) in zip(self.strides, feature_sizes, strict=True):
            row = torch.arange(height, device=device) < -(-padded_size[0] // stride)
            column = torch.arange(width, device=device) < -(-padded_size[1] // stride)
            levels.append((row[:, None] & column).reshape(-1, 1).expand(-1, self.per_cell).reshape(-1))
        return levels
