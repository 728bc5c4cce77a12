"""The Triton kernels of RS Loss, without a GPU: Triton's interpreter runs them on the CPU. On a GPU, `test_losses_cuda.py` runs them."""

import math
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles.rank_sort import rank_sort
from ranking_cases import (
    DELTAS,
    GOLDEN,
    HALF_TO_DOUBLE,
    UNREAD,
    assert_gradient_close,
    golden_case,
    random_batch,
    unread_where_ignored,
)
from torch import Tensor

from ranksort.losses import rank_sort_loss

if torch.cuda.is_available():
    pytest.skip("kernels are compiled where there is a GPU", allow_module_level=True)
kernels = pytest.importorskip("ranksort.losses.kernels", reason="Triton is not installed")
# What is interpreted takes a while.
CASES = [path.stem for path in sorted(GOLDEN.glob("ranksort_*.npz")) if "_P500" not in path.stem]


@pytest.fixture(autouse=True)
def in_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules["ranksort.losses.rank_sort"], "_kernels_for", lambda logits: kernels)


def loss_and_gradient(
    logits: Tensor, targets: Tensor, delta: float = 0.5, weights: tuple[float, float] = (1, 1)
) -> tuple[float, float, Tensor]:
    leaf = logits.detach().clone().requires_grad_()
    ranking, sorting = rank_sort_loss(leaf, targets, delta=delta)
    (weights[0] * ranking + weights[1] * sorting).backward()
    assert leaf.grad is not None
    return ranking.item(), sorting.item(), leaf.grad


@pytest.mark.parametrize("name", CASES)
def test_golden(name: str):
    golden = golden_case(name)
    logits, targets = torch.from_numpy(golden["logits"]), torch.from_numpy(golden["targets"])
    dtype, tolerance = (torch.float64, 1e-9) if logits.dtype == torch.float64 else (torch.float32, 1e-5)
    *losses, gradient = loss_and_gradient(logits.to(dtype), targets.to(dtype), golden["delta"].item())
    assert losses == pytest.approx([golden["ranking_loss"].item(), golden["sorting_loss"].item()], abs=tolerance)
    assert_gradient_close(gradient, golden["grad"], tolerance)


# Whole numbers of steps, so that scores tie and fall on the ends of the smoothed step; qualities tie as well.
EXAMPLES = st.lists(
    st.tuples(st.integers(-12, 12), st.sampled_from([-1.0, 0.0, 0.0, 0.0, 0.05, 0.5, 0.5, 0.7, 1.0])), max_size=24
)


@settings(deadline=None, max_examples=40)
@given(examples=EXAMPLES, scale=st.sampled_from([0.0625, 1.0, 50.0]), delta=st.sampled_from(DELTAS))
def test_follows_the_equations(examples: list[tuple[int, float]], scale: float, delta: float):
    logits = torch.tensor([scale * ticks for ticks, _ in examples], dtype=torch.float64)
    targets = torch.tensor([target for _, target in examples], dtype=torch.float64)
    expected = rank_sort(logits.tolist(), targets.tolist(), delta)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys.modules["ranksort.losses.rank_sort"], "_kernels_for", lambda logits: kernels)
        ranking, sorting, gradient = loss_and_gradient(logits, targets, delta, weights=(1, 0.3))
    assert (ranking, sorting) == pytest.approx((expected.ranking, expected.sorting), abs=1e-12)
    wanted = np.asarray(expected.ranking_gradient) + 0.3 * np.asarray(expected.sorting_gradient)
    torch.testing.assert_close(gradient.numpy(), wanted, rtol=0, atol=1e-12)


@pytest.mark.parametrize("delta", [0.0, 0.1, 0.5])
def test_several_programs_and_copies(delta: float):
    """More positives than a program takes at a time, more logits, and several copies of the sums."""
    logits, targets = random_batch(300, 2500, ignored=50)
    expected = rank_sort(logits.tolist(), targets.tolist(), delta)
    ranking, sorting, gradient = loss_and_gradient(logits, targets, delta)
    assert (ranking, sorting) == pytest.approx((expected.ranking, expected.sorting), abs=1e-12)
    wanted = torch.tensor(expected.ranking_gradient) + torch.tensor(expected.sorting_gradient)
    assert_gradient_close(gradient, wanted, 1e-10)


@pytest.mark.parametrize("dtype", HALF_TO_DOUBLE)
@pytest.mark.parametrize("value", UNREAD)
def test_ignored_logits_are_not_read(value: str, dtype: torch.dtype):
    logits, targets = random_batch(20, 150, ignored=60)
    logits, kept = unread_where_ignored(value, dtype, targets, logits), targets >= 0
    ranking, sorting, gradient = loss_and_gradient(logits, targets)
    expected = rank_sort(logits[kept].tolist(), targets[kept].tolist(), 0.5)
    assert gradient.dtype == dtype
    assert (gradient[~kept] == 0).all()
    assert (ranking, sorting) == pytest.approx((expected.ranking, expected.sorting), abs=1e-5)
    wanted = torch.tensor(expected.ranking_gradient) + torch.tensor(expected.sorting_gradient)
    assert_gradient_close(gradient[kept], wanted, max(1e-5, torch.finfo(dtype).eps))


@pytest.mark.parametrize(
    ("logit", "target", "message"),
    [
        (math.nan, 0.0, "logits must be finite"),
        (math.inf, 0.5, "logits must be finite"),
        (1.0, 1.5, "targets are qualities"),
        (1.0, math.nan, "targets must be finite"),
    ],
)
def test_what_cannot_be_ranked_is_refused_as_ever(logit: float, target: float, message: str):
    with pytest.raises(ValueError, match=message):
        rank_sort_loss(torch.tensor([0.0, logit, 1.0]), torch.tensor([0.0, target, 0.5]))


@pytest.mark.parametrize("targets", [[], [0.0, 0.0], [-1.0, 0.0]])
def test_no_positives(targets: list[float]):
    ranking, sorting, gradient = loss_and_gradient(torch.zeros(len(targets)), torch.tensor(targets))
    assert ranking == sorting == 0
    assert not gradient.any()


def test_very_many_positives_take_the_plain_path(monkeypatch: pytest.MonkeyPatch):
    logits, targets = random_batch(20, 100)
    expected = loss_and_gradient(logits, targets)
    monkeypatch.setattr(kernels, "MOST_POSITIVES", 19)
    assert kernels.rank_sort(logits, targets, 0.5) is None
    *losses, gradient = loss_and_gradient(logits, targets)
    assert losses == pytest.approx(expected[:2], abs=1e-12)
    assert_gradient_close(gradient, expected[2], 1e-10)


def test_the_logits_may_have_any_shape_and_strides():
    logits, targets = (x[:360].view(12, 30) for x in random_batch(60, 300))
    expected = loss_and_gradient(logits, targets)
    *losses, gradient = loss_and_gradient(logits.T, targets.T)
    assert losses == pytest.approx(expected[:2], abs=1e-12)
    assert_gradient_close(gradient.T, expected[2], 1e-12)


def test_a_device_for_which_triton_cannot_compile_is_said_once(monkeypatch: pytest.MonkeyPatch):
    def fails(*_: object) -> None:
        raise RuntimeError("Failed to find C compiler. Please specify via CC environment variable.\nmore")

    monkeypatch.setattr(kernels, "rank_sort", fails)
    kernels.work_on.cache_clear()
    with pytest.warns(UserWarning, match=r"slower implementation on cpu.*Failed to find C compiler"):
        assert not kernels.work_on(torch.device("cpu"))
    assert not kernels.work_on(torch.device("cpu"))
    kernels.work_on.cache_clear()


def test_wrong_numbers_are_noticed(monkeypatch: pytest.MonkeyPatch):
    """Those of Triton 3.0 and 3.1, whose interpreter is wrong about these kernels, came without an error."""
    right = kernels.rank_sort
    kernels.work_on.cache_clear()
    assert kernels.work_on(torch.device("cpu"))
    for wrong in (
        lambda *a: 1.01 * right(*a),
        lambda *a: right(*a).detach() - a[0].sum() + a[0].sum().detach(),
        lambda *a: right(*a) * torch.tensor([1.0, torch.nan]),
    ):
        monkeypatch.setattr(kernels, "rank_sort", wrong)
        kernels.work_on.cache_clear()
        with pytest.warns(UserWarning, match=r"slower implementation on cpu.*it returns \["):
            assert not kernels.work_on(torch.device("cpu"))
    kernels.work_on.cache_clear()
