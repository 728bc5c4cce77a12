from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import score_based as oracle
from torch import Tensor
from torchvision.ops import sigmoid_focal_loss

from ranksort.losses import focal_loss, quality_focal_loss, varifocal_loss

LOSSES = {
    "focal": (focal_loss, oracle.focal),
    "quality_focal": (quality_focal_loss, oracle.quality_focal),
    "varifocal": (varifocal_loss, oracle.varifocal),
}
EXAMPLES = st.lists(
    st.tuples(st.floats(-12, 12), st.sampled_from([-1.0, 0.0, 0.0, 0.0]) | st.floats(0.01, 1)), max_size=8
)


@pytest.fixture(params=LOSSES)
def loss(request: pytest.FixtureRequest) -> Callable[[Tensor, Tensor], Tensor]:
    return LOSSES[request.param][0]


@pytest.mark.parametrize("name", LOSSES)
@settings(deadline=None, max_examples=40)
@given(EXAMPLES)
def test_papers(name: str, examples: list[tuple[float, float]]) -> None:
    loss, of_example = LOSSES[name]
    logits = torch.tensor([s for s, _ in examples], dtype=torch.float64, requires_grad=True)
    targets = torch.tensor([y for _, y in examples], dtype=torch.float64)
    value = loss(logits, targets)
    value.backward()
    inputs = of_example, logits.tolist(), targets.tolist()
    assert value.item() == pytest.approx(oracle.per_positive(*inputs), rel=1e-9, abs=1e-12)
    assert logits.grad.tolist() == pytest.approx(oracle.gradient(*inputs), rel=1e-4, abs=1e-7)


def test_focal_loss_is_torchvisions() -> None:
    random = torch.Generator().manual_seed(0)
    logits = (5 * torch.randn(50, 4, generator=random)).requires_grad_()
    targets = (torch.rand(50, 4, generator=random) < 0.1).float()
    for alpha, gamma in ((0.25, 2.0), (0.6, 1.5)):
        ours = focal_loss(logits, targets, alpha=alpha, gamma=gamma)
        theirs = sigmoid_focal_loss(logits, targets, alpha, gamma, reduction="sum") / targets.sum()
        torch.testing.assert_close(ours, theirs)
        gradients = (torch.autograd.grad(value, logits)[0] for value in (ours, theirs))
        torch.testing.assert_close(*gradients)


def test_where_the_target_is_met_there_is_nothing_to_learn() -> None:
    logits = torch.tensor([1.5], requires_grad=True)
    quality_focal_loss(logits, logits.detach().sigmoid()).backward()
    assert logits.grad.item() == 0


def test_focal_loss_takes_any_positive_for_one() -> None:
    logits, targets = torch.randn(20), torch.rand(20).round(decimals=1)
    assert focal_loss(logits, targets) == focal_loss(logits, (targets > 0).float())
    assert quality_focal_loss(logits, targets) != quality_focal_loss(logits, (targets > 0).float())


@pytest.mark.parametrize("unread", [float("nan"), float("inf"), float("-inf"), 5.0])
def test_what_is_ignored_is_not_read(loss: Callable[[Tensor, Tensor], Tensor], unread: float) -> None:
    logits = torch.tensor([1.0, unread, -2.0], requires_grad=True)
    value = loss(logits, torch.tensor([0.7, -1.0, 0.0]))
    value.backward()
    assert value == loss(logits.detach()[::2], torch.tensor([0.7, 0.0]))
    assert (logits.grad != 0).tolist() == [True, False, True]


def test_without_positives(loss: Callable[[Tensor, Tensor], Tensor]) -> None:
    logits = torch.tensor([0.5, -1.0, 2.0], requires_grad=True)
    value = loss(logits, torch.zeros(3))
    value.backward()
    assert value > 0
    assert bool((logits.grad > 0).all())
    assert loss(torch.zeros(0, requires_grad=True), torch.zeros(0)).requires_grad


def test_extreme_logits_are_finite(loss: Callable[[Tensor, Tensor], Tensor]) -> None:
    logits = torch.tensor([1e4, -1e4, 1e4, -1e4, 0.0], requires_grad=True)
    value = loss(logits, torch.tensor([1.0, 1.0, 0.0, 0.0, 0.5]))
    value.backward()
    assert bool(value.isfinite())
    assert bool(logits.grad.isfinite().all())


@pytest.mark.parametrize("exponent", [0.0, 0.5])
@pytest.mark.parametrize("name", LOSSES)
def test_small_exponents_have_finite_gradients(name: str, exponent: float) -> None:
    loss = LOSSES[name][0]
    logits = torch.tensor([20.0, -120.0, 1e4, -1e4, 0.0, 3.0], requires_grad=True)
    targets = torch.tensor([1.0, 0.0, 1.0, 0.0, 0.5, -1.0])  # the first five are met exactly
    value = loss(logits, targets, **{"beta" if name == "quality_focal" else "gamma": exponent})
    value.backward()
    assert bool(value.isfinite())
    assert bool(logits.grad.isfinite().all())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_computes_in_float32_or_better(loss: Callable[[Tensor, Tensor], Tensor], dtype: torch.dtype) -> None:
    logits = (4 * torch.randn(30, generator=torch.Generator().manual_seed(0))).to(dtype).requires_grad_()
    targets = torch.tensor([1.0, 0.0, 0.5]).repeat(10)
    value = loss(logits, targets)
    value.backward()
    assert value.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert logits.grad.dtype == dtype
    assert value.item() == pytest.approx(loss(logits.detach().double(), targets).item(), rel=1e-5)


def test_shapes_have_to_agree(loss: Callable[[Tensor, Tensor], Tensor]) -> None:
    with pytest.raises(ValueError, match=r"the same shape, got \(3, 2\) and \(3,\)"):
        loss(torch.zeros(3, 2), torch.zeros(3))
