"""Modulated deformable convolution, DCNv2 (Zhu et al., CVPR 2019)."""

from torch import Tensor, nn
from torchvision.ops import deform_conv2d

_GROUPS = 4  # groups of channels, each with its own offsets


class DeformableConv2d(nn.Module):
    """A convolution whose taps are moved by offsets and weighted by masks in 0..1, both predicted from the input.

    Initially, offsets are 0 and masks 1/2.

    Args:
        conv: a 3x3 convolution without bias, whose weight, stride and dilation are used.
    """

    def __init__(self, conv: nn.Conv2d):
        super().__init__()
        self.weight = conv.weight
        self.stride, self.dilation = conv.stride[0], conv.dilation[0]
        self.conv_offset = nn.Conv2d(
            conv.in_channels, _GROUPS * 9 * 3, 3, self.stride, padding=self.dilation, dilation=self.dilation
        )
        nn.init.zeros_(self.conv_offset.weight)
        nn.init.zeros_(self.conv_offset.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, in_channels, H, W] to [B, out_channels, H / stride, W / stride]."""
        offsets, mask = self.conv_offset(x).to(self.weight.dtype).split([_GROUPS * 9 * 2, _GROUPS * 9], 1)
        return deform_conv2d(
            x.to(self.weight.dtype),
            offsets,
            self.weight,
            stride=self.stride,
            padding=self.dilation,
            dilation=self.dilation,
            mask=mask.sigmoid(),
        )
