import math
import weakref
from contextlib import contextmanager

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
    WAYS,
    assert_gradient_close,
    count_in,
    golden_case,
    random_batch,
    unread_where_ignored,
    without_float64,
)
from torch.utils._python_dispatch import TorchDispatchMode

from ranksort.losses import RankSortLoss, counting, positives_above, rank_sort_loss

CASES = sorted(path.stem for path in GOLDEN.glob("ranksort_*.npz"))
LARGE_CASES = [
    "ranksort_04_P1_N50000_d0.5_wide_iou",
    "ranksort_25_P64_N50000_d0.5_init_iou",
    "ranksort_31_P500_N50000_d0.5_trained_iou_corr",
    "ranksort_32_P500_N50000_d1_init_iou",
]


def loss_and_gradient(logits, targets, delta=0.5, weights=(1, 1)):
    """Both losses, and the gradient of their weighted sum."""
    logits = torch.as_tensor(logits).detach().requires_grad_()
    ranking, sorting = rank_sort_loss(logits, torch.as_tensor(targets), delta=delta)
    (weights[0] * ranking + weights[1] * sorting).backward()
    return ranking.detach(), sorting.detach(), logits.grad


# ---- values


def test_an_example_computed_by_hand():
    # Hard steps, by falling score: a positive of quality .4, a negative, a positive of .9.
    # Ranking: the last positive has one false positive above it and rank 3. Sorting: (.6 + .1) / 2 where .1 was due.
    ranking, sorting, gradient = loss_and_gradient([3.0, 2.0, 1.0], [0.4, 0.0, 0.9], delta=0)
    assert ranking.item() == pytest.approx((0 + 1 / 3) / 2)
    assert sorting.item() == pytest.approx((0 + 0.25) / 2)
    assert gradient.tolist() == pytest.approx([0.25 / 2, 1 / 3 / 2, -(1 / 3 + 0.25) / 2])


@pytest.mark.parametrize("name", CASES + LARGE_CASES)
def test_golden(name, sums):
    golden = golden_case(name)
    logits, targets = torch.from_numpy(golden["logits"]), torch.from_numpy(golden["targets"])
    for dtype, tolerance in ((torch.float64, 1e-9), (torch.float32, 1e-5)):
        ranking, sorting, gradient = loss_and_gradient(logits.to(dtype), targets.to(dtype), golden["delta"].item())
        assert ranking.item() == pytest.approx(golden["ranking_loss"].item(), abs=tolerance)
        assert sorting.item() == pytest.approx(golden["sorting_loss"].item(), abs=tolerance)
        assert_gradient_close(gradient, golden["grad"], tolerance)


# Whole numbers of steps, so that scores tie and fall on the ends of the smoothed step; qualities tie as well.
EXAMPLES = st.lists(
    st.tuples(st.integers(-12, 12), st.sampled_from([-1.0, 0.0, 0.0, 0.0, 0.05, 0.5, 0.5, 0.7, 1.0])), max_size=24
)


@pytest.mark.parametrize("way", WAYS)
@settings(deadline=None, max_examples=150)
@given(examples=EXAMPLES, scale=st.sampled_from([0.0625, 0.1, 1.0, 50.0]), delta=st.sampled_from(DELTAS))
def test_follows_the_equations(way, examples, scale, delta):
    logits = torch.tensor([scale * ticks for ticks, _ in examples], dtype=torch.float64)
    targets = torch.tensor([target for _, target in examples], dtype=torch.float64)
    expected = rank_sort(logits.tolist(), targets.tolist(), delta)
    with pytest.MonkeyPatch.context() as patch:
        count_in(way, patch)
        for weights in ((1, 0), (0, 1), (2, 3)):
            ranking, sorting, gradient = loss_and_gradient(logits, targets, delta, weights)
            assert ranking.item() == pytest.approx(expected.ranking, abs=1e-12)
            assert sorting.item() == pytest.approx(expected.sorting, abs=1e-12)
            update = weights[0] * expected.ranking_gradient + weights[1] * expected.sorting_gradient
            np.testing.assert_allclose(gradient.numpy(), update, rtol=0, atol=1e-11)


def test_hard_step_tells_close_positives_apart(sums):
    logits = np.array([1e-18, 0, 1000, 1000, 1000])
    targets = np.array([0.5, 0.9, 0.3, 0.3, 0.3])
    expected = rank_sort(logits, targets, 0)
    ranking, sorting, gradient = loss_and_gradient(logits, targets, 0)
    assert (ranking.item(), sorting.item()) == pytest.approx((expected.ranking, expected.sorting))
    assert gradient.tolist() == pytest.approx(expected.sorting_gradient.tolist())


def test_right_order_costs_nothing():
    ranking, sorting, gradient = loss_and_gradient([6.0, 4.5, 3.0, 1.5, 0.0], [0.9, 0.6, 0.5, 0.0, 0.0])
    assert (ranking.item(), sorting.item()) == (0, 0)
    assert not gradient.any()


# ---- properties


def test_each_loss_carries_its_own_gradient(sums):
    logits, targets = random_batch(40, 300)
    *_, ranking = loss_and_gradient(logits, targets, weights=(1, 0))
    *_, sorting = loss_and_gradient(logits, targets, weights=(0, 1))
    *_, both = loss_and_gradient(logits, targets, weights=(2, 3))
    torch.testing.assert_close(both, 2 * ranking + 3 * sorting)
    assert not sorting[targets == 0].any()
    assert (ranking[targets == 0] >= 0).all()
    assert (ranking[targets > 0] <= 0).all()
    for part in (ranking, sorting):
        assert part.abs().max() > 1e-3
        assert abs(part.sum().item()) < 1e-12


@pytest.mark.parametrize("delta", DELTAS)
def test_order_of_examples_and_origin_of_scores_are_free(delta, sums):
    logits, targets = random_batch(60, 400, ignored=20)
    ranking, sorting, gradient = loss_and_gradient(logits, targets, delta)
    order = torch.randperm(len(logits), generator=torch.Generator().manual_seed(1))
    permuted = loss_and_gradient(logits[order], targets[order], delta)
    shifted = loss_and_gradient(logits + 4096, targets, delta)
    for actual, expected in ((permuted, (ranking, sorting, gradient[order])), (shifted, (ranking, sorting, gradient))):
        torch.testing.assert_close(actual, expected, rtol=0, atol=1e-12)


def test_ignored_examples_take_no_part(sums):
    logits, targets = random_batch(40, 300, ignored=100)
    kept = targets >= 0
    ranking, sorting, gradient = loss_and_gradient(logits, targets)
    expected = loss_and_gradient(logits[kept], targets[kept])
    assert not gradient[~kept].any()
    torch.testing.assert_close((ranking, sorting, gradient[kept]), expected, rtol=0, atol=1e-14)


@pytest.mark.parametrize("delta", [0.0, 0.5])
@pytest.mark.parametrize("dtype", HALF_TO_DOUBLE)
@pytest.mark.parametrize("value", UNREAD)
def test_ignored_logits_are_not_read(value, dtype, delta, sums):
    logits, targets = random_batch(20, 150, ignored=60)
    logits, kept = unread_where_ignored(value, dtype, targets, logits), targets >= 0
    ranking, sorting, gradient = loss_and_gradient(logits, targets, delta)
    expected = rank_sort(logits[kept].tolist(), targets[kept].tolist(), delta)
    assert (gradient[~kept] == 0).all()
    tolerance = 1e-12 if dtype == torch.float64 else 1e-5
    assert (ranking.item(), sorting.item()) == pytest.approx((expected.ranking, expected.sorting), abs=tolerance)
    expected_gradient = torch.tensor(expected.ranking_gradient) + torch.tensor(expected.sorting_gradient)
    assert_gradient_close(gradient[kept], expected_gradient, max(tolerance, torch.finfo(dtype).eps))


def test_ignored_logits_are_not_read_among_equal_ones():
    targets = torch.tensor([0.5, 0.0, 0.0, -1.0, -1.0])
    logits = torch.tensor([2.0, 2.0, 2.0, -math.inf, math.nan])
    *_, gradient = loss_and_gradient(logits, targets)
    *_, expected = loss_and_gradient(logits[:3], targets[:3])
    torch.testing.assert_close(gradient, torch.cat([expected, torch.zeros(2)]))


@pytest.mark.parametrize("value", UNREAD)
def test_nothing_but_ignored_logits(value):
    targets = torch.full((6,), -1.0)
    ranking, sorting, gradient = loss_and_gradient(
        unread_where_ignored(value, torch.float32, targets, torch.zeros(6)), targets
    )
    assert ranking == sorting == 0
    assert (gradient == 0).all()


@pytest.mark.parametrize("target", [0.7, 0.0])
def test_other_logits_are_checked_beside_ignored_ones(target):
    logits, targets = torch.tensor([0.0, -math.inf, -math.inf]), torch.tensor([0.5, target, -1.0])
    with pytest.raises(ValueError, match="logits must be finite, 1 of 3 are NaN or infinite"):
        rank_sort_loss(logits, targets)


@pytest.mark.parametrize("layout", ["matrix", "images", "transposed", "strided", "expanded"])
def test_shapes_and_strides(layout):
    logits, targets = random_batch(40, 320)
    reshape = {
        "matrix": lambda x: x.view(36, 10),
        "images": lambda x: x.view(2, 18, 10),
        "transposed": lambda x: x.view(2, 18, 10).permute(2, 0, 1),
        "strided": lambda x: x[::3],
        "expanded": lambda x: x.view(36, 10)[:, :1].expand(36, 4),
    }[layout]
    logits, targets = reshape(logits), reshape(targets)
    ranking, sorting, gradient = loss_and_gradient(logits, targets)
    expected = loss_and_gradient(logits.flatten(), targets.flatten())
    assert gradient.shape == logits.shape
    torch.testing.assert_close((ranking, sorting, gradient.flatten()), expected, rtol=0, atol=1e-14)


def test_gradient_reaches_the_source_of_a_view():
    logits, targets = random_batch(20, 100)
    logits.requires_grad_()
    sum(rank_sort_loss(logits.view(12, 10).T, targets.view(12, 10).T)).backward()
    torch.testing.assert_close(logits.grad, loss_and_gradient(logits, targets)[2])


def test_second_backward():
    logits, targets = random_batch(20, 100)
    logits.requires_grad_()
    total = sum(rank_sort_loss(logits, targets))
    (first,) = torch.autograd.grad(total, logits, retain_graph=True)
    (second,) = torch.autograd.grad(total, logits)
    assert torch.equal(first, second)


def test_kept_loss_does_not_keep_the_logits():
    logits, targets = random_batch(20, 5000)
    model = torch.nn.Parameter(logits)
    scores = model * 1
    alive = weakref.ref(scores)
    loss = sum(rank_sort_loss(scores, targets))
    loss.backward()
    storage = scores.untyped_storage()
    holders = storage._use_count() if hasattr(storage, "_use_count") else None
    del storage, scores
    assert alive() is None
    assert holders is None or holders <= 2
    assert loss > 0


def test_change_of_the_logits_before_backward_is_noticed():
    logits, targets = random_batch(20, 100)
    scores = torch.nn.Parameter(logits) * 1
    loss = sum(rank_sort_loss(scores, targets))
    scores.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_module_is_the_function():
    logits, targets = random_batch(20, 100)
    module = RankSortLoss(delta=0.1)
    assert repr(module) == "RankSortLoss(delta=0.1)"
    assert not module.state_dict()
    assert module(logits, targets) == rank_sort_loss(logits, targets, delta=0.1)
    assert (
        RankSortLoss()(logits, targets) == rank_sort_loss(logits, targets) == rank_sort_loss(logits, targets, delta=0.5)
    )


# ---- number formats and extreme values


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_dtypes(dtype, sums):
    logits, targets = (x.to(dtype) for x in random_batch(60, 400, ignored=20))
    ranking, sorting, gradient = loss_and_gradient(logits, targets)
    expected = loss_and_gradient(logits.double(), targets.double())
    assert ranking.dtype == sorting.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert gradient.dtype == dtype
    for actual, reference in zip((ranking, sorting), expected[:2], strict=True):
        assert actual.item() == pytest.approx(reference.item(), abs=1e-6)
    assert_gradient_close(gradient, expected[2], 1e-5 + torch.finfo(dtype).eps)


def test_autocast_leaves_the_loss_in_full_precision(sums):
    logits, targets = (x.float() for x in random_batch(60, 400))
    expected = loss_and_gradient(logits, targets)
    with torch.autocast("cpu", torch.bfloat16):
        assert all(map(torch.equal, loss_and_gradient(logits, targets), expected))
        model = torch.nn.Linear(4, 1)
        scores = model(torch.randn(len(targets), 4)).squeeze(1)
        loss = sum(rank_sort_loss(scores, targets))
    loss.backward()
    assert scores.dtype == torch.bfloat16
    assert loss.dtype == torch.float32
    assert model.weight.grad.abs().max() > 0


def test_one_hopeless_positive_costs_no_precision(sums):
    logits, targets = (x.float() for x in random_batch(60, 2000))
    logits[targets.argmax()] = -1e6
    ranking, sorting, gradient = loss_and_gradient(logits, targets)
    expected = rank_sort(logits.tolist(), targets.tolist(), 0.5)
    assert (ranking.item(), sorting.item()) == pytest.approx((expected.ranking, expected.sorting), abs=1e-6)
    assert_gradient_close(gradient, expected.ranking_gradient + expected.sorting_gradient, 1e-5)


@pytest.mark.parametrize("delta", DELTAS)
def test_huge_logits(delta, sums):
    logits, targets = random_batch(60, 1000)
    logits = (1e4 * logits).float()
    ranking, sorting, gradient = loss_and_gradient(logits, targets.float(), delta)
    expected = rank_sort(logits.tolist(), targets.float().tolist(), delta)
    assert (ranking.item(), sorting.item()) == pytest.approx((expected.ranking, expected.sorting), abs=1e-6)
    assert_gradient_close(gradient, expected.ranking_gradient + expected.sorting_gradient, 1e-5)


@pytest.mark.parametrize("targets", [[], [0.0, 0.0], [-1.0, -1.0, -1.0], [0.0, -1.0]])
def test_no_positives(targets):
    logits = torch.randn(len(targets), requires_grad=True)
    ranking, sorting = rank_sort_loss(logits, torch.tensor(targets))
    assert (ranking.item(), sorting.item()) == (0, 0)
    (ranking + sorting).backward()
    assert torch.equal(logits.grad, torch.zeros_like(logits))


def test_no_negatives(sums):
    logits, targets = random_batch(40, 0)
    ranking, sorting, gradient = loss_and_gradient(logits, targets)
    expected = rank_sort(logits.tolist(), targets.tolist(), 0.5)
    assert ranking == 0
    assert sorting.item() == pytest.approx(expected.sorting)
    np.testing.assert_allclose(gradient.numpy(), expected.sorting_gradient, rtol=0, atol=1e-12)


def test_logits_too_far_apart():
    with pytest.raises(ValueError, match=r"logits from -2e\+38 to 2e\+38 are too far apart"):
        rank_sort_loss(torch.tensor([-2e38, 2e38]), torch.tensor([1.0, 0.0]))


@pytest.mark.parametrize("scale", [1e-320, 1e-310, 1e-40])
def test_denormal_logits(scale):
    logits, targets = random_batch(20, 5000)
    ranking, sorting, _ = loss_and_gradient(logits * scale, targets, delta=0)
    expected = rank_sort((logits * scale).tolist(), targets.tolist(), 0)
    assert (ranking.item(), sorting.item()) == pytest.approx((expected.ranking, expected.sorting))


@pytest.mark.parametrize(("value", "delta"), [(3.3, 0.001), (1000.0, 0.1), (1e5, 0.5)])
def test_equal_scores_among_many_ignored(value, delta):
    targets = torch.cat([torch.full((7,), 0.5), torch.zeros(1), torch.full((1_000_000,), -1.0)]).double()
    ranking, *_ = loss_and_gradient(torch.full_like(targets, value), targets, delta)
    assert ranking.item() == pytest.approx(0.5 / 4, abs=1e-9)


# ---- wrong input


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("place", [0, 2])
def test_values_which_are_not_finite(value, place):
    logits, targets = torch.zeros(3), torch.tensor([0.5, 0.0, 0.0])
    logits[place] = value
    with pytest.raises(ValueError, match=r"logits must be finite, 1 of 3 are NaN or infinite"):
        rank_sort_loss(logits, targets)
    with pytest.raises(ValueError, match=r"targets must be finite, 1 of 3 are NaN or infinite"):
        rank_sort_loss(targets, logits)


def test_finite_values_whose_sum_overflows_are_fine():
    ranking, _ = rank_sort_loss(torch.tensor([3e38, 3e38, 0.0]), torch.tensor([0.0, 0.0, 1.0]))
    assert ranking.item() == pytest.approx(2 / 2.5)


@pytest.mark.parametrize(
    ("logits", "targets", "delta", "message"),
    [
        (torch.zeros(3), torch.ones(2), 0.5, r"the same shape, got \(3,\) and \(2,\)"),
        (torch.zeros(2, 3), torch.ones(3, 2), 0.5, r"the same shape, got \(2, 3\) and \(3, 2\)"),
        (torch.zeros(2, dtype=torch.int64), torch.ones(2), 0.5, r"floating point .* got torch.int64"),
        (torch.zeros(2), torch.tensor([0.0, 7.0]), 0.5, r"targets are qualities in \(0, 1\].* largest is 7"),
        (torch.zeros(2), torch.ones(2), -0.5, r"delta must be 0 or more, got -0.5"),
    ],
)
def test_errors(logits, targets, delta, message):
    with pytest.raises(ValueError, match=message):
        rank_sort_loss(logits, targets, delta=delta)


# ---- cost


class Operators(TorchDispatchMode):
    """Counts the operators which run, those which make the host wait, and those which PyTorch shares out among its threads on a CPU,
    and keeps the size of the largest result in bytes."""

    WAITS = ("nonzero", "_local_scalar_dense", "masked_select", "item", "unique", "is_nonzero", "equal")

    def __init__(self):
        super().__init__()
        self.count, self.waits, self.shared, self.largest = 0, 0, 0, 0

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        result = operator(*args, **(kwargs or {}))
        self.count += not operator.is_view
        self.waits += operator._opname in self.WAITS
        tensors = result if isinstance(result, (tuple, list)) else [result]
        self.largest = max([self.largest, *(x.nbytes for x in tensors if isinstance(x, torch.Tensor))])
        sizes = [x.numel() for x in (*args, *tensors) if isinstance(x, torch.Tensor)]
        in_one_thread = operator.is_view or operator._opname in ("index_select", "empty_like", "new_empty")
        self.shared += not in_one_thread and max(sizes, default=0) > counting._SERIAL
        return result


def operators(positives, negatives, ignored=0):
    logits, targets = (x.float() for x in random_batch(positives, negatives, ignored))
    with Operators() as seen:
        loss_and_gradient(logits, targets)
    return seen


@pytest.mark.parametrize(
    ("way", "most", "a_step"), [("default", 800, 5 * counting._LEAST_BLOCKS), ("accelerator", 300, 0)]
)
def test_number_of_operators(way, most, a_step, monkeypatch):
    count_in(way, monkeypatch)
    counts = [operators(positives, 500_000).count for positives in (100, 1_000, 10_000)]
    assert max(counts) <= most
    # They grow with the levels of the tree, and where a cell of the grid has more edges it is searched in one step more.
    assert 0 <= counts[-1] - counts[0] <= 20 + 2 * a_step
    # Else they do not grow with the negatives.
    assert abs(operators(1_000, 50_000).count - counts[1]) <= a_step


@contextmanager
def threads(number):
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("few", [-1.0, 1.0])
def test_threads_are_woken_for_few_operators(few, monkeypatch):
    monkeypatch.setattr(counting, "_FEW", few)
    with threads(2):
        counts = [operators(1_000, negatives).shared for negatives in (100_000, 500_000)]
    assert counts[0] <= counts[1] <= 40  # whatever the number of blocks


@pytest.mark.parametrize("number_of_threads", [1, 2])
@pytest.mark.parametrize("number", [counting._SERIAL, counting._SERIAL + 1, 1_000_000, counting._THREADS_PAY])
def test_result_depends_neither_on_blocks_nor_on_threads(number, number_of_threads, monkeypatch):
    logits, targets = (x.float() for x in random_batch(100, number - 100))
    monkeypatch.setattr(counting, "_block_size", lambda x: max(len(x), 1))
    expected = loss_and_gradient(logits, targets)
    monkeypatch.undo()
    with threads(number_of_threads):
        ranking, sorting, gradient = loss_and_gradient(logits, targets)
    assert (ranking.item(), sorting.item()) == pytest.approx([x.item() for x in expected[:2]], abs=1e-7)
    assert_gradient_close(gradient, expected[2], 1e-6)


def test_no_tensor_holds_all_pairs():
    assert operators(500, 300_000).largest <= 8 * 300_500  # the positions of all, at most
    positives = 8000
    levels = -(-positives.bit_length() // positives_above._FAN_OUT_BITS)
    running_sums = 4 * levels * (1 << positives_above._FAN_OUT_BITS) * (positives + 1)
    assert operators(positives, 1000).largest <= 8 * running_sums


@pytest.mark.parametrize("ignored", [0, 1000])
@pytest.mark.parametrize("few", [-1.0, 1.0])
def test_host_waits_at_most_three_times(ignored, few, monkeypatch):
    count_in("accelerator", monkeypatch)
    monkeypatch.setattr(counting, "_FEW", few)
    lists = []
    monkeypatch.setattr(torch.Tensor, "tolist", lambda x, tolist=torch.Tensor.tolist: lists.append(x) or tolist(x))
    assert operators(300, 20_000, ignored).waits + len(lists) <= 3


# ---- devices without float64


@pytest.mark.parametrize("name", CASES + LARGE_CASES)
def test_golden_without_float64(name, monkeypatch):
    without_float64(monkeypatch)
    golden = golden_case(name)
    logits, targets = torch.from_numpy(golden["logits"]).float(), torch.from_numpy(golden["targets"]).float()
    ranking, sorting, gradient = loss_and_gradient(logits, targets, golden["delta"].item())
    assert ranking.item() == pytest.approx(golden["ranking_loss"].item(), abs=1e-6)
    assert sorting.item() == pytest.approx(golden["sorting_loss"].item(), abs=1e-6)
    assert_gradient_close(gradient, golden["grad"], 1e-5)


@pytest.mark.parametrize(("shift", "delta"), [(0, 0.001), (1000, 0.1), (10_000, 0.1)])
def test_shifted_logits_without_float64(shift, delta, monkeypatch):
    logits, targets = (x.float() for x in random_batch(100, 20_000))
    logits += shift
    expected = loss_and_gradient(logits.double(), targets.double(), delta)
    without_float64(monkeypatch)
    ranking, sorting, gradient = loss_and_gradient(logits, targets, delta)
    assert (ranking.item(), sorting.item()) == pytest.approx([x.item() for x in expected[:2]], abs=1e-6)
    assert_gradient_close(gradient, expected[2], 1e-5)


def test_many_logits_without_float64(monkeypatch):
    logits, targets = (x.float() for x in random_batch(100, 1_000_000))
    expected = loss_and_gradient(logits.double(), targets.double())
    without_float64(monkeypatch)
    ranking, sorting, gradient = loss_and_gradient(logits, targets)
    assert (ranking.item(), sorting.item()) == pytest.approx([x.item() for x in expected[:2]], abs=1e-6)
    assert_gradient_close(gradient, expected[2], 1e-6)

    class NoLargeFloat64(TorchDispatchMode):
        def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
            result = operator(*args, **(kwargs or {}))
            if isinstance(result, torch.Tensor) and result.numel() >= len(logits):
                assert result.dtype != torch.float64, operator
            return result

    with NoLargeFloat64():
        loss_and_gradient(logits, targets)


# ---- with a model


def test_compile():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 1))
    inputs, (_, targets) = torch.randn(120, 4), random_batch(20, 100)

    def total(inputs, targets):
        ranking, sorting = rank_sort_loss(model(inputs).squeeze(1), targets)
        return ranking + sorting

    total(inputs, targets.float()).backward()
    expected = [x.grad.clone() for x in model.parameters()]
    model.zero_grad()
    torch.compile(total, backend="aot_eager")(inputs, targets.float()).backward()
    torch.testing.assert_close([x.grad for x in model.parameters()], expected)
