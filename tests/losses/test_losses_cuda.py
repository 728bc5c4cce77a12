"""The losses on a GPU: the recorded values, half precision, and how often the host waits for the device."""

import sys
import warnings
from collections.abc import Callable

import pytest
import torch
from ranking_cases import GOLDEN, assert_gradient_close, golden_case
from torch import Tensor

from ranksort.losses import average_lrp_loss, average_precision_loss, rank_sort_loss

kernels = pytest.importorskip("ranksort.losses.kernels", reason="Triton is not installed")
pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU that torch can use"),
]
LARGE = ["ranksort_31_P500_N50000_d0.5_trained_iou_corr", "ap_06_P500_N50000_d1_trained"]
CASES = sorted(path.stem for path in GOLDEN.glob("*.npz"))


def losses(name: str, logits: Tensor, targets: Tensor, errors: Tensor | None, delta: float) -> list[Tensor]:
    if name.startswith("ranksort"):
        return list(rank_sort_loss(logits, targets, delta=delta))
    if name.startswith("ap"):
        return [average_precision_loss(logits, targets, delta=delta)]
    assert errors is not None
    return [average_lrp_loss(logits, targets, errors, delta=delta).classification]


@pytest.mark.parametrize("name", CASES + LARGE)
def test_golden(name: str):
    golden = golden_case(name)
    recorded = ["ranking_loss", "sorting_loss"] if name.startswith("ranksort") else ["loss"]
    for dtype, tolerance in ((torch.float64, 1e-9), (torch.float32, 1e-5)):
        logits, targets, errors = (
            torch.from_numpy(golden[x]).to("cuda", dtype) if x in golden else None
            for x in ("logits", "targets", "regression_losses")
        )
        found = losses(name, logits.requires_grad_(), targets, errors, golden["delta"].item())
        sum(found).backward()
        assert [x.item() for x in found] == pytest.approx([golden[x].item() for x in recorded], abs=tolerance)
        assert_gradient_close(logits.grad.cpu(), golden["grad"], tolerance)


def atss_batch(kind: str) -> tuple[Tensor, Tensor]:
    """Logits and targets of the size of a batch of RS-ATSS, on the GPU."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(7_000_000, generator=generator)
    logits = logits * 0.05 - 4.6 if kind == "untrained" else logits * 1.5 - 6
    targets = torch.zeros(7_000_000)
    places = torch.randperm(7_000_000, generator=generator)[:1000]
    targets[places] = torch.rand(1000, generator=generator).clamp(0.01)
    logits[places] += 0 if kind == "untrained" else 6
    return logits.cuda(), targets.cuda()


@pytest.mark.parametrize("kind", ["untrained", "trained"])
def test_a_large_batch_is_as_on_the_cpu(kind: str):
    """In all dtypes: logits in half precision are those numbers, and ranked exactly."""
    logits, targets = atss_batch(kind)
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        found = []
        for device in ("cuda", "cpu"):
            leaf = logits.to(device, dtype, copy=True).requires_grad_()
            ranking, sorting = rank_sort_loss(leaf, targets.to(device))
            (ranking + sorting).backward()
            found.append((ranking.item(), sorting.item(), leaf.grad.cpu()))
        (ranking, sorting, gradient), (expected_ranking, expected_sorting, expected_gradient) = found
        assert ranking == pytest.approx(expected_ranking, rel=1e-5)
        assert sorting == pytest.approx(expected_sorting, rel=1e-4, abs=1e-7)
        assert_gradient_close(gradient, expected_gradient, 1e-5 + torch.finfo(dtype).eps)


def test_autocast_ranks_in_full_precision():
    logits, targets = atss_batch("trained")
    with torch.autocast("cuda", torch.bfloat16):
        inside = rank_sort_loss(logits, targets)
    assert [x.item() for x in inside] == pytest.approx([x.item() for x in rank_sort_loss(logits, targets)], rel=1e-6)


def waits(function: Callable[[], object]) -> int:
    """How often the host waits for the device during a call."""
    torch.cuda.synchronize()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            function()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return sum("synchroniz" in str(warning.message) for warning in caught)


@pytest.mark.parametrize("kind", ["untrained", "trained"])
def test_the_host_waits_three_times_at_most(kind: str):
    logits, targets = atss_batch(kind)
    leaf = logits.requires_grad_()
    assert 1 <= waits(lambda: sum(rank_sort_loss(leaf, targets)).backward()) <= 3


def test_the_kernels_are_used():
    """Without a word they would be left out where Triton cannot compile."""
    assert kernels.work_on(torch.device("cuda", torch.cuda.current_device()))


def test_the_plain_path_gives_the_same(monkeypatch: pytest.MonkeyPatch):
    """It is taken for unusual input, and where there is no Triton."""
    for kind in ("untrained", "trained"):
        logits, targets = atss_batch(kind)
        found = []
        for of in (lambda x: kernels, lambda x: None):
            monkeypatch.setattr(sys.modules["ranksort.losses.rank_sort"], "_kernels_for", of)
            leaf = logits.clone().requires_grad_()
            losses = rank_sort_loss(leaf, targets)
            sum(losses).backward()
            found.append((*(loss.item() for loss in losses), leaf.grad.cpu()))
        assert found[0][:2] == pytest.approx(found[1][:2], rel=1e-6)
        assert_gradient_close(found[0][2], found[1][2], 1e-5)


def test_memory_of_a_large_batch():
    """Less than ten times the logits, where pairs of positives and logits would be a thousand times."""
    logits, targets = atss_batch("trained")
    leaf = logits.requires_grad_()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    sum(rank_sort_loss(leaf, targets)).backward()
    assert torch.cuda.max_memory_allocated() - before < 10 * logits.nbytes
