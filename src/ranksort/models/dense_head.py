"""The head of the one-stage detectors: the same two towers of convolutions on every level of the pyramid."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn


class DenseHead(nn.Module):
    """One tower for classes and one for boxes, each `convs` times (3x3 convolution, GroupNorm, ReLU), shared by all levels.

    Args:
        in_channels: channels of the pyramid, and of the towers.
        num_classes: C.
        anchors_per_cell: anchors at each cell.
        levels: levels of the pyramid; each has a factor of its own on the box deltas.
        convs: depth of the towers.
        prior: probability which every class starts with. RS Loss sees differences of logits only, so it sets the level of the scores.
    """

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        anchors_per_cell: int,
        levels: int,
        convs: int = 4,
        prior: float = 0.01,
    ):
        super().__init__()
        self.num_classes = num_classes
        self.class_tower = nn.Sequential(*(ConvNormReLU(in_channels, in_channels) for _ in range(convs)))
        self.box_tower = nn.Sequential(*(ConvNormReLU(in_channels, in_channels) for _ in range(convs)))
        self.class_logits = nn.Conv2d(in_channels, anchors_per_cell * num_classes, 3, padding=1)
        self.box_deltas = nn.Conv2d(in_channels, anchors_per_cell * 4, 3, padding=1)
        self.scales = nn.ParameterList(torch.ones(()) for _ in range(levels))
        initialise_convs(self)
        nn.init.constant_(self.class_logits.bias, -math.log((1 - prior) / prior))  # type: ignore[arg-type]

    def forward(self, features: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Takes the pyramid, [B, in_channels, H_l, W_l], to class logits [B, A_l, C] and box deltas [B, A_l, 4] for each level.

        The A_l = H_l · W_l · anchors_per_cell anchors are ordered by row, column, anchor.
        """
        logits = [per_anchor(self.class_logits(self.class_tower(x)), self.num_classes) for x in features]
        deltas = [
            per_anchor(self.box_deltas(self.box_tower(x)), 4) * scale
            for x, scale in zip(features, self.scales, strict=True)
        ]
        return logits, deltas


class ConvNormReLU(nn.Module):
    """A convolution without bias, GroupNorm of 32 groups, ReLU."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int = 3):
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, kernel_size, padding=kernel_size // 2, bias=False)
        self.norm = nn.GroupNorm(32, out_channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x)).relu_()


def initialise_convs(module: nn.Module) -> None:
    """Draws the weights of its convolutions from N(0, .01²) and sets their biases to 0."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.normal_(layer.weight, std=0.01)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


def per_anchor(x: Tensor, values: int) -> Tensor:
    """[B, anchors · values, H, W] -> [B, H · W · anchors, values]."""
    return x.permute(0, 2, 3, 1).reshape(len(x), -1, values)
