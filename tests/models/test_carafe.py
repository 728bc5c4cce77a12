import torch
from oracles import rcnn as oracle
from torch.nn import functional as F

from ranksort.models.carafe import Carafe, CarafeFPN


def test_agrees_with_the_definition() -> None:
    carafe = Carafe(3, compressed=4)
    torch.nn.init.normal_(carafe.encode.weight)
    x = torch.randn(2, 3, 5, 4)
    weights = F.pixel_shuffle(carafe.encode(carafe.compress(x)), 2).softmax(1)  # [B, 25, 2H, 2W]
    with torch.no_grad():
        ours = carafe(x)
        for i in range(2):
            torch.testing.assert_close(ours[i], oracle.carafe(x[i], weights[i], 5))


def test_gradient() -> None:
    carafe = Carafe(2, compressed=3, kernel=3).double()
    torch.nn.init.normal_(carafe.encode.weight)
    x = torch.randn(1, 2, 3, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(carafe, (x,))
    weight = carafe.encode.weight.detach().clone().requires_grad_()
    assert torch.autograd.gradcheck(
        lambda w: torch.func.functional_call(carafe, {"encode.weight": w}, (x.detach(),)), (weight,)
    )


def test_at_the_start_it_is_nearly_a_mean_of_the_neighbourhood() -> None:
    x = torch.randn(1, 8, 6, 7)
    with torch.no_grad():
        ours = Carafe(8)(x)
    mean = F.avg_pool2d(x, 5, stride=1, padding=2)
    torch.testing.assert_close(ours, mean.repeat_interleave(2, 2).repeat_interleave(2, 3), rtol=0, atol=0.05)


def test_pyramid_on_odd_sizes() -> None:
    """P6 comes from C5 by a convolution of its own, and upsampled maps are cut to the size of the finer level."""
    sizes = [(26, 42), (13, 21), (7, 11), (4, 6)]
    features = [torch.randn(2, c, *size) for c, size in zip((4, 8, 12, 16), sizes, strict=True)]
    fpn = CarafeFPN((4, 8, 12, 16), 32)
    maps = fpn(features)
    assert [tuple(x.shape) for x in maps] == [(2, 32, *size) for size in [*sizes, (2, 3)]]
    torch.testing.assert_close(maps[4], fpn.outputs[4](fpn.laterals[4](features[3])))
    top = fpn.laterals[3](features[3]) + fpn.upsamplers[3](fpn.laterals[4](features[3]))[:, :, :4, :6]
    torch.testing.assert_close(maps[3], fpn.outputs[3](top))
    sum(x.sum() for x in maps).backward()
    assert all(p.grad is not None for p in fpn.parameters())
