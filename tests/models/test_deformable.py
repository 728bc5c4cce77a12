import pytest
import torch
from torch import nn
from torch.nn import functional as F

from ranksort.models.backbones import build_backbone
from ranksort.models.deformable import DeformableConv2d


@pytest.mark.parametrize(("stride", "dilation", "groups"), [(1, 1, 1), (2, 1, 1), (1, 2, 1), (2, 1, 4)])
def test_begins_as_half_the_convolution(stride: int, dilation: int, groups: int) -> None:
    conv = nn.Conv2d(8, 12, 3, stride, padding=dilation, dilation=dilation, groups=groups, bias=False)
    x = torch.randn(2, 8, 9, 11)
    torch.testing.assert_close(DeformableConv2d(conv)(x), conv(x) / 2)


def test_offsets_move_the_taps_of_their_group_of_channels() -> None:
    """The first channels are looked at one row further down and two columns further to the right."""
    conv = nn.Conv2d(8, 5, 3, padding=1, bias=False)
    deformable = DeformableConv2d(conv)
    offsets = torch.zeros(4, 9, 2)
    offsets[0] = torch.tensor([1.0, 2.0])  # y, x
    with torch.no_grad():
        deformable.conv_offset.bias[:72] = offsets.flatten()
        deformable.conv_offset.bias[72:] = 100.0  # masks of 1
        x = torch.randn(1, 8, 10, 12)
        moved = torch.cat([F.pad(x, (0, 2, 0, 1))[:, :2, 1:, 2:], x[:, 2:]], 1)
        torch.testing.assert_close(deformable(x)[..., 1:-2, 1:-3], conv(moved)[..., 1:-2, 1:-3])


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_stages_2_to_4_of_a_backbone(name: str) -> None:
    plain = build_backbone(name, pretrained=False)
    backbone = build_backbone(name, pretrained=False, deformable_convs=True)
    added = {n for n in backbone.state_dict() if n not in plain.state_dict()}
    assert set(plain.state_dict()) <= set(backbone.state_dict())
    blocks = {
        f"body.{n}"
        for n, m in plain.body.named_modules()
        if n.startswith(("layer2", "layer3", "layer4")) and hasattr(m, "conv2")
    }
    assert added == {f"{b}.conv2.conv_offset.{p}" for b in blocks for p in ("weight", "bias")}
    features = backbone(torch.randn(1, 3, 64, 96))
    features[-1].mean().backward()
    assert all(p.grad.any() for n, p in backbone.named_parameters() if "conv_offset" in n and p.grad is not None)


def test_timm_cannot_be_deformed() -> None:
    with pytest.raises(ValueError, match="timm/resnet10t cannot have deformable convolutions: choose a ResNet"):
        build_backbone("timm/resnet10t", pretrained=False, deformable_convs=True)
