"""Building blocks of several heads and pyramids."""

import math

from torch import Tensor, nn


class ConvNormReLU(nn.Module):
    """A convolution without bias, GroupNorm of 32 groups, ReLU."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int = 3):
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, kernel_size, padding=kernel_size // 2, bias=False)
        self.norm = nn.GroupNorm(32, out_channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x)).relu_()


def normal_convs(module: nn.Module) -> None:
    """Draw the weights of a module's convolutions from N(0, .01²) and set their biases to 0."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.normal_(layer.weight, std=0.01)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


def xavier_convs(module: nn.Module) -> None:
    """Initialise a module's convolutions as in Glorot and Bengio (2010), with zero biases."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)  # type: ignore[arg-type]


def set_prior(classifier: nn.Conv2d | nn.Linear, prior: float) -> None:
    """Set the initial probability of every class. RS Loss depends only on differences of logits, so this sets the level of the scores."""
    nn.init.constant_(classifier.bias, -math.log((1 - prior) / prior))  # type: ignore[arg-type]


def per_anchor(x: Tensor, values: int) -> Tensor:
    """[B, anchors · values, H, W] -> [B, H · W · anchors, values]."""
    return x.permute(0, 2, 3, 1).reshape(len(x), -1, values)
