"""Anchors: boxes of fixed shapes at every cell of the feature maps, and the predictions of a head for them."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import NamedTuple

import torch
from torch import Tensor
from torchvision.ops import clip_boxes_to_image

from .boxes import decode_boxes
from .images import Size


@dataclass(frozen=True)
class AnchorGenerator:
    """Anchors of every ratio and scale, centred on the upper left corner of each cell, not rounded."""

    strides: Sequence[float]  # pixels between cells, one per level
    scales: Sequence[float]  # sides of a square anchor in base sizes
    ratios: Sequence[float] = (1.0,)  # height / width; the area is that of the square
    base_sizes: Sequence[float] | None = None  # in pixels, one per level; None: the strides
    offset: float = 0.0  # of the centre from the upper left corner of its cell, in strides

    @property
    def per_cell(self) -> int:
        """Number of anchors per cell, ordered by ratio, then scale."""
        return len(self.scales) * len(self.ratios)

    def __call__(self, feature_sizes: Sequence[Size], device: torch.device) -> list[Tensor]:
        """Return for each level xyxy [H · W · per_cell, 4], ordered by row, column, anchor."""
        levels = []
        base_sizes = self.base_sizes or self.strides
        for stride, base, (height, width) in zip(self.strides, base_sizes, feature_sizes, strict=True):
            root = torch.tensor(self.ratios, device=device).sqrt()[:, None]
            side = torch.tensor(self.scales, device=device) * base
            half = torch.stack([(side / root).flatten(), (side * root).flatten()], 1) / 2
            rows, columns = ((torch.arange(n, device=device) + self.offset) * stride for n in (height, width))
            y, x = torch.meshgrid(rows, columns, indexing="ij")
            centre = torch.stack([x, y], -1).reshape(-1, 1, 2)
            levels.append(torch.cat([centre - half, centre + half], -1).reshape(-1, 4))
        return levels

    def in_image(self, feature_sizes: Sequence[Size], padded_size: Size, device: torch.device) -> list[Tensor]:
        """Which anchors belong to cells of an image smaller than its batch; bool [H · W · per_cell] for each level."""
        levels = []
        for stride, (height, width) in zip(self.strides, feature_sizes, strict=True):
            row = torch.arange(height, device=device) < -(-padded_size[0] // stride)
            column = torch.arange(width, device=device) < -(-padded_size[1] // stride)
            levels.append((row[:, None] & column).reshape(-1, 1).expand(-1, self.per_cell).reshape(-1))
        return levels

    def predictions(
        self, features: Sequence[Tensor], logits: list[Tensor], deltas: list[Tensor]
    ) -> "AnchorPredictions":
        """Combine the predictions of a head for `features` with the anchors."""
        sizes = [(x.shape[-2], x.shape[-1]) for x in features]
        return AnchorPredictions(logits, deltas, self(sizes, features[0].device), sizes)


class AnchorPredictions(NamedTuple):
    """The predictions of a head for the anchors of a batch, level by level."""

    logits: list[Tensor]  # of the classes, [B, A_l, C]
    deltas: list[Tensor]  # as for `decode_boxes`, [B, A_l, 4]
    anchors: list[Tensor]  # xyxy in pixels of the batch, [A_l, 4]
    map_sizes: list[Size]

    def all_logits(self) -> Tensor:
        """The logits of all anchors of all images in one row, [B · ΣA_l, C]."""
        return torch.cat(self.logits, 1).flatten(0, 1)

    def boxes(self, chosen: Tensor) -> Tensor:
        """The predicted boxes of some anchors, int64 [P], positions in the row of `all_logits`: xyxy in pixels, float32 [P, 4]."""
        anchors = torch.cat(self.anchors)
        return decode_boxes(torch.cat(self.deltas, 1).flatten(0, 1)[chosen].float(), anchors[chosen % len(anchors)])

    def level(self, chosen: Tensor) -> Tensor:
        """The level of some anchors; int64 [P], as for `boxes`."""
        counts = [len(level) for level in self.anchors]
        ends = torch.tensor(counts, device=chosen.device).cumsum(0)
        return torch.bucketize(chosen % sum(counts), ends, right=True)

    def best_regions(self, image: int, size: Size, limit: int = 1000) -> tuple[Tensor, Tensor, Tensor]:
        """The highest-scoring anchors of one image, as regions from which detections or proposals are chosen.

        Args:
            image: position of the image in the batch.
            size: height and width of the image, to which boxes are clipped.
            limit: maximum number of anchors per level, by highest class logit.

        Returns:
            boxes: xyxy, float32 [R, 4].
            scores: class probabilities, float32 [R, C].
            anchor: which of the ΣA_l anchors each is, int64 [R].
        """
        best = [level[image].amax(1).topk(torch.sym_min(limit, level.shape[1])).indices for level in self.logits]
        levels = zip(self.deltas, self.anchors, best, strict=True)
        boxes = torch.cat([decode_boxes(d[image, i].float(), a[i]) for d, a, i in levels])
        scores = torch.cat([level[image, i].float().sigmoid() for level, i in zip(self.logits, best, strict=True)])
        starts = accumulate((level.shape[0] for level in self.anchors), initial=0)
        anchor = torch.cat([i + start for i, start in zip(best, starts, strict=False)])
        return clip_boxes_to_image(boxes, size), scores, anchor
