"""The network of RS-ATSS and RS-PAA, and its head: the same two towers of convolutions on every level of the pyramid."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .anchors import AnchorGenerator, AnchorPredictions
from .backbones import Backbone
from .detector import Detector
from .fpn import FPN
from .images import ImageBatch, ImageTransform
from .layers import ConvNormReLU, normal_convs, per_anchor, set_prior

STRIDES = (8, 16, 32, 64, 128)


class DenseDetector(Detector):
    """Backbone, pyramid P3..P7 and head; subclasses decide which anchors have to detect which objects.

    Takes the arguments of `Detector`, and these:

    Args:
        channels: channels of the pyramid and the head, a multiple of 32, at least 64.
        head_convs: depth of the head's towers.
        prior: class probability at the start of training.
    """

    settings = ("channels", "head_convs", "prior")

    def __init__(
        self,
        backbone: Backbone,
        transform: ImageTransform,
        num_classes: int,
        *,
        channels: int = 256,
        head_convs: int = 4,
        prior: float = 0.01,
        **common: Any,
    ):
        super().__init__(backbone, transform, num_classes, **common)
        self.fpn = FPN(backbone.channels[-3:], channels, levels=len(STRIDES))
        self.anchors = AnchorGenerator(STRIDES, scales=[4 * 2 ** (i / 3) for i in range(3)])
        self.head = DenseHead(channels, num_classes, self.anchors.per_cell, len(STRIDES), head_convs, prior)

    def outputs(self, batch: ImageBatch) -> AnchorPredictions:
        """The predictions of the network."""
        features = self.fpn(self.backbone(batch.pixels)[-3:])
        return self.anchors.predictions(features, *self.head(features))


class DenseHead(nn.Module):
    """One tower for classes and one for boxes, each `convs` times (3x3 convolution, GroupNorm, ReLU), shared by all levels.

    Args:
        channels: channels of the pyramid and the towers.
        num_classes: C.
        anchors_per_cell: anchors at each cell.
        levels: levels of the pyramid; each has its own factor for box deltas.
        convs: depth of the towers.
        prior: initial probability of every class.
    """

    def __init__(
        self,
        channels: int,
        num_classes: int,
        anchors_per_cell: int,
        levels: int,
        convs: int = 4,
        prior: float = 0.01,
    ):
        super().__init__()
        self.num_classes = num_classes
        self.class_tower = nn.Sequential(*(ConvNormReLU(channels, channels) for _ in range(convs)))
        self.box_tower = nn.Sequential(*(ConvNormReLU(channels, channels) for _ in range(convs)))
        self.class_logits = nn.Conv2d(channels, anchors_per_cell * num_classes, 3, padding=1)
        self.box_deltas = nn.Conv2d(channels, anchors_per_cell * 4, 3, padding=1)
        self.scales = nn.ParameterList(torch.ones(()) for _ in range(levels))
        normal_convs(self)
        set_prior(self.class_logits, prior)

    def forward(self, features: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Map the pyramid, [B, channels, H_l, W_l], to class logits [B, A_l, C] and box deltas [B, A_l, 4] for each level.

        The A_l = H_l · W_l · anchors_per_cell anchors are ordered by row, column, anchor.
        """
        logits = [per_anchor(self.class_logits(self.class_tower(x)), self.num_classes) for x in features]
        deltas = [per_anchor(self.box_deltas(self.box_tower(x)), 4) for x in features]
        deltas = [x.float() * scale for x, scale in zip(deltas, self.scales, strict=True)]
        return logits, deltas
