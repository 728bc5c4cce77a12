import torch
from torch.nn import functional as F

from ranksort.models.fpn import FPN


def test_levels_and_shapes_on_odd_sizes() -> None:
    sizes = [(13, 21), (7, 11), (4, 6)]
    features = [torch.randn(2, channels, *size) for channels, size in zip((8, 16, 24), sizes, strict=True)]
    maps = FPN((8, 16, 24), 32, levels=5)(features)
    assert [tuple(x.shape) for x in maps] == [(2, 32, *s) for s in [*sizes, (2, 3), (1, 2)]]


def test_without_extra_levels() -> None:
    assert len(FPN((8, 16), 32, levels=2)([torch.randn(1, 8, 4, 4), torch.randn(1, 16, 2, 2)])) == 2


def test_top_down_path_adds_the_nearest_cells() -> None:
    """With all convolutions the identity, P4 is C4 + C5 upsampled, and P3 is C3 + P4 upsampled."""
    fpn = FPN((4, 4, 4), 4, levels=3)
    for module in fpn.laterals:
        torch.nn.init.dirac_(module.weight)
    for module in fpn.outputs:
        torch.nn.init.dirac_(module.weight)
    c3, c4, c5 = torch.randn(1, 4, 8, 12), torch.randn(1, 4, 4, 6), torch.randn(1, 4, 2, 3)
    p3, p4, p5 = fpn([c3, c4, c5])
    twice = torch.ones(1, 1, 2, 2)
    torch.testing.assert_close(p5, c5)
    torch.testing.assert_close(p4, c4 + torch.kron(c5, twice))
    torch.testing.assert_close(p3, c3 + torch.kron(p4, twice))
    odd = torch.randn(1, 4, 7, 11)
    torch.testing.assert_close(fpn([odd, c4, c5])[0], odd + F.interpolate(p4, size=(7, 11)))


def test_extra_levels_come_from_the_last_output() -> None:
    fpn = FPN((4, 4), 4, levels=4)
    maps = fpn([torch.randn(1, 4, 8, 8), torch.randn(1, 4, 4, 4)])
    p4 = F.conv2d(maps[1], fpn.extras[0].weight, fpn.extras[0].bias, stride=2, padding=1)
    torch.testing.assert_close(maps[2], p4)
    torch.testing.assert_close(maps[3], F.conv2d(p4, fpn.extras[1].weight, fpn.extras[1].bias, stride=2, padding=1))


def test_first_extra_level_from_the_input() -> None:
    fpn = FPN((4, 8), 4, levels=4, from_input=True)
    features = [torch.randn(1, 4, 9, 9), torch.randn(1, 8, 5, 5)]
    maps = fpn(features)
    first, second = (lambda x, extra=extra: F.conv2d(x, extra.weight, extra.bias, 2, 1) for extra in fpn.extras)
    torch.testing.assert_close(maps[2], first(features[1]))
    torch.testing.assert_close(maps[3], second(maps[2]))


def test_bilinear_upsampling() -> None:
    fpn = FPN((4, 4), 4, levels=2, upsampling="bilinear")
    for module in (*fpn.laterals, *fpn.outputs):
        torch.nn.init.dirac_(module.weight)
    fine, coarse = torch.randn(1, 4, 9, 7), torch.randn(1, 4, 5, 4)
    torch.testing.assert_close(fpn([fine, coarse])[0], fine + F.interpolate(coarse, (9, 7), mode="bilinear"))


def test_without_extra_convolutions_the_coarser_levels_are_every_second_cell() -> None:
    fpn = FPN((4, 4), 4, levels=4, extra_convs=False)
    maps = fpn([torch.randn(1, 4, 8, 8), torch.randn(1, 4, 5, 4)])
    assert torch.equal(maps[2], maps[1][:, :, ::2, ::2])
    assert torch.equal(maps[3], maps[1][:, :, ::4, ::4])
    assert not list(fpn.extras.parameters())
