"""Feature Pyramid Network (Lin et al., CVPR 2017): a neck that adds the context of coarser levels to every level."""

from collections.abc import Sequence
from typing import Literal

from torch import Tensor, nn
from torch.nn import functional as F

from .layers import xavier_convs


class FPN(nn.Module):
    """Lateral 1x1 convolutions, a top-down path of upsampling, 3x3 output convolutions, and coarser levels on top.

    The coarser levels are stride-2 3x3 convolutions on the last output ("extra convs on output"): P6 on P5, P7 on P6. In YOLACT, the
    first is on the last input, C5. In R-CNNs and SOLOv2 they are every second cell of the last output.

    Args:
        in_channels: channels of the backbone's features, from fine to coarse.
        out_channels: channels of every level.
        levels: total number of levels.
        extra_convs: whether the coarser levels are convolutions.
        from_input: whether the first of them is on the last input.
        upsampling: of the top-down path. For CARAFE see `CarafeFPN`.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        out_channels: int = 256,
        levels: int = 5,
        extra_convs: bool = True,
        *,
        from_input: bool = False,
        upsampling: Literal["nearest", "bilinear"] = "nearest",
    ):
        super().__init__()
        self.channels = out_channels
        self.from_input, self.upsampling = from_input, upsampling
        self.laterals = nn.ModuleList(nn.Conv2d(channels, out_channels, 1) for channels in in_channels)
        self.outputs = nn.ModuleList(nn.Conv2d(out_channels, out_channels, 3, padding=1) for _ in in_channels)
        extras = levels - len(in_channels)
        sources = [in_channels[-1] if from_input else out_channels] + [out_channels] * (extras - 1)
        self.extras = nn.ModuleList(
            nn.Conv2d(source, out_channels, 3, stride=2, padding=1) if extra_convs else nn.MaxPool2d(1, stride=2)
            for source in sources[:extras]
        )
        xavier_convs(self)

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        """Map the backbone's features from fine to coarse, [B, C_l, H_l, W_l], to `levels` maps [B, out_channels, H_l, W_l]."""
        maps = [lateral(x) for lateral, x in zip(self.laterals, features, strict=True)]
        for fine in range(len(maps) - 2, -1, -1):
            maps[fine] = maps[fine] + F.interpolate(maps[fine + 1], size=maps[fine].shape[-2:], mode=self.upsampling)
        maps = [output(x) for output, x in zip(self.outputs, maps, strict=True)]
        for i, extra in enumerate(self.extras):
            maps.append(extra(features[-1] if self.from_input and i == 0 else maps[-1]))
        return maps
