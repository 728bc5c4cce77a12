"""CARAFE: content-aware reassembly of features (Wang et al., ICCV 2019), and a pyramid that uses it for upsampling."""

from collections.abc import Sequence
from typing import Literal

from torch import Tensor, nn
from torch.nn import functional as F

from .fpn import FPN
from .layers import xavier_convs

Upsampling = Literal["nearest", "carafe"]


class Carafe(nn.Module):
    """Double the size of a map: every new cell is a weighted mean of the 5x5 old cells around it, with weights predicted from the map.

    Args:
        channels: channels of the map.
        compressed: channels that the weights are predicted from.
        kernel: side of the neighbourhood, odd.
    """

    def __init__(self, channels: int, compressed: int = 64, kernel: int = 5):
        super().__init__()
        self.kernel = kernel
        self.compress = nn.Conv2d(channels, compressed, 1)
        self.encode = nn.Conv2d(compressed, 4 * kernel**2, 3, padding=1)
        nn.init.xavier_uniform_(self.compress.weight)
        nn.init.normal_(self.encode.weight, std=0.001)
        for layer in (self.compress, self.encode):
            nn.init.zeros_(layer.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        """[B, channels, H, W] -> [B, channels, 2H, 2W]."""
        batch, channels, height, width = x.shape
        # The four new cells of an old one share their neighbourhood, so they stay a separate dimension until the end.
        weights = self.encode(self.compress(x)).unflatten(1, (self.kernel**2, 4)).softmax(1).to(x.dtype)
        padded = F.pad(x, [self.kernel // 2] * 4)
        out = x.new_zeros(batch, channels, 4, height, width)
        for tap in range(self.kernel**2):  # all at once would need 25 times the memory
            row, column = divmod(tap, self.kernel)
            neighbour = padded[:, :, row : row + height, column : column + width]
            out = out.addcmul_(neighbour[:, :, None], weights[:, None, tap])
        return F.pixel_shuffle(out.flatten(1, 2), 2)


class CarafeFPN(nn.Module):
    """A Feature Pyramid Network P2..P6 whose top-down path upsamples with CARAFE and starts at P6, a stride-2 3x3 convolution of C5.

    Args:
        in_channels: channels of the backbone's features, from fine to coarse.
        out_channels: channels of every level.
    """

    def __init__(self, in_channels: Sequence[int], out_channels: int = 256):
        super().__init__()
        self.channels = out_channels
        self.laterals = nn.ModuleList(nn.Conv2d(channels, out_channels, 1) for channels in in_channels)
        self.laterals.append(nn.Conv2d(in_channels[-1], out_channels, 3, stride=2, padding=1))
        self.outputs = nn.ModuleList(nn.Conv2d(out_channels, out_channels, 3, padding=1) for _ in self.laterals)
        xavier_convs(self)
        self.upsamplers = nn.ModuleList(Carafe(out_channels) for _ in in_channels)

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        """Map the backbone's features from fine to coarse, [B, C_l, H_l, W_l], to maps [B, out_channels, H_l, W_l], one more."""
        maps = [lateral(x) for lateral, x in zip(self.laterals, [*features, features[-1]], strict=True)]
        for fine in range(len(maps) - 2, -1, -1):
            height, width = maps[fine].shape[-2:]
            maps[fine] = maps[fine] + self.upsamplers[fine](maps[fine + 1])[:, :, :height, :width]
        return [output(x) for output, x in zip(self.outputs, maps, strict=True)]


def region_pyramid(in_channels: Sequence[int], channels: int, upsampling: Upsampling) -> FPN | CarafeFPN:
    """The pyramid P2..P6 of an R-CNN on C2..C5 with `in_channels`; its top-down path uses nearest-neighbour upsampling or CARAFE."""
    return CarafeFPN(in_channels, channels) if upsampling == "carafe" else FPN(in_channels, channels, extra_convs=False)
