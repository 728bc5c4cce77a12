import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles.average_precision import average_precision
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
)

from ranksort.losses import APLoss, average_precision_loss

CASES = sorted(path.stem for path in GOLDEN.glob("ap_*.npz"))
LARGE_CASES = ["ap_06_P500_N50000_d1_trained"]


def loss_and_gradient(logits, targets, delta=1.0):
    logits = torch.as_tensor(logits).detach().requires_grad_()
    loss = average_precision_loss(logits, torch.as_tensor(targets), delta=delta)
    loss.backward()
    return loss.detach(), logits.grad


# ---- values


def test_an_example_computed_by_hand():
    # Hard steps, by falling score: negative, positive, negative, positive, positive. The precisions 1/2, 2/4, 3/5 all become 3/5.
    loss, gradient = loss_and_gradient([5.0, 4.0, 3.0, 2.0, 1.0], [0.0, 1.0, 0.0, 1.0, 1.0], delta=0)
    assert loss.item() == pytest.approx(2 / 5)
    # The first negative has all of the first positive's error and half of the others'.
    assert (3 * gradient).tolist() == pytest.approx([0.4 + 0.2 + 0.2, -0.4, 0.2 + 0.2, -0.4, -0.4])


@pytest.mark.parametrize("name", CASES + LARGE_CASES)
def test_golden(name, sums):
    golden = golden_case(name)
    logits, targets = torch.from_numpy(golden["logits"]), torch.from_numpy(golden["targets"])
    for dtype, tolerance in ((torch.float64, 1e-9), (torch.float32, 1e-5)):
        loss, gradient = loss_and_gradient(logits.to(dtype), targets.to(dtype), golden["delta"].item())
        assert loss.item() == pytest.approx(golden["loss"].item(), abs=tolerance)
        assert_gradient_close(gradient, golden["grad"], tolerance)


# Whole numbers of steps, so that scores tie and fall on the ends of the smoothed step.
EXAMPLES = st.lists(st.tuples(st.integers(-12, 12), st.sampled_from([-1.0, 0.0, 0.0, 0.0, 0.3, 1.0, 1.0])), max_size=24)


@pytest.mark.parametrize("way", WAYS)
@settings(deadline=None, max_examples=150)
@given(examples=EXAMPLES, scale=st.sampled_from([0.0625, 0.1, 1.0, 50.0]), delta=st.sampled_from(DELTAS))
def test_follows_the_equations(way, examples, scale, delta):
    logits = torch.tensor([scale * ticks for ticks, _ in examples], dtype=torch.float64)
    targets = torch.tensor([target for _, target in examples], dtype=torch.float64)
    expected_loss, expected_gradient = average_precision(logits.tolist(), targets.tolist(), delta)
    with pytest.MonkeyPatch.context() as patch:
        count_in(way, patch)
        loss, gradient = loss_and_gradient(logits, targets, delta)
    assert loss.item() == pytest.approx(expected_loss, abs=1e-12)
    np.testing.assert_allclose(gradient.numpy(), expected_gradient, rtol=0, atol=1e-11)


def test_right_order_costs_nothing():
    loss, gradient = loss_and_gradient([7.0, 5.0, 3.0, 0.0, -1.0], [1.0, 1.0, 1.0, 0.0, 0.0])
    assert loss == 0
    assert not gradient.any()


def test_wrong_order_costs_all_that_interpolation_leaves():
    loss, _ = loss_and_gradient([0.0, 0.0, 10.0], [1.0, 1.0, 0.0], delta=0)
    assert loss.item() == pytest.approx(1 - 2 / 3)


@pytest.mark.parametrize("positives", [1, 20_000])
@pytest.mark.parametrize("negatives", [0, 1, 20_000])
def test_up_to_20000_of_both(positives, negatives):
    logits, targets = random_batch(positives, negatives)
    loss, _ = loss_and_gradient(logits, targets, delta=0)
    # With hard steps all counts are places in sorted lists.
    p, n = np.sort(logits[targets > 0].numpy()), np.sort(logits[targets == 0].numpy())
    hits = positives - np.searchsorted(p, p)
    precision = hits / (hits + negatives - np.searchsorted(n, p))
    assert loss.item() == pytest.approx(1 - np.maximum.accumulate(precision).mean(), abs=1e-12)

    smooth, gradient = loss_and_gradient(logits, targets, delta=0.1)
    assert smooth.item() == pytest.approx(loss.item(), abs=0.1)
    assert abs(gradient.sum().item()) < 1e-11
    assert gradient.abs().sum().item() == pytest.approx(2 * smooth.item())


# ---- properties


@pytest.mark.parametrize("delta", DELTAS)
def test_order_of_examples_and_origin_of_scores_are_free(delta, sums):
    logits, targets = random_batch(60, 400, ignored=20)
    loss, gradient = loss_and_gradient(logits, targets, delta)
    order = torch.randperm(len(logits), generator=torch.Generator().manual_seed(1))
    permuted = loss_and_gradient(logits[order], targets[order], delta)
    shifted = loss_and_gradient(logits + 4096, targets, delta)
    for actual, expected in ((permuted, (loss, gradient[order])), (shifted, (loss, gradient))):
        torch.testing.assert_close(actual, expected, rtol=0, atol=1e-12)


def test_positives_gain_what_negatives_lose(sums):
    logits, targets = random_batch(60, 400)
    loss, gradient = loss_and_gradient(logits, targets)
    assert (gradient[targets == 0] >= 0).all()
    assert gradient[targets == 0].sum().item() == pytest.approx(loss.item(), abs=1e-12)
    assert (gradient[targets > 0] <= 0).all()
    assert gradient[targets > 0].sum().item() == pytest.approx(-loss.item(), abs=1e-12)


def test_gradient_scales_with_what_comes_from_above():
    logits, targets = random_batch(20, 100)
    _, expected = loss_and_gradient(logits, targets)
    logits.requires_grad_()
    (-3 * average_precision_loss(logits, targets)).backward()
    torch.testing.assert_close(logits.grad, -3 * expected)


def test_ignored_examples_take_no_part(sums):
    logits, targets = random_batch(40, 300, ignored=100)
    kept = targets >= 0
    loss, gradient = loss_and_gradient(logits, targets)
    expected = loss_and_gradient(logits[kept], targets[kept])
    assert not gradient[~kept].any()
    torch.testing.assert_close((loss, gradient[kept]), expected, rtol=0, atol=1e-14)


@pytest.mark.parametrize("delta", [0.0, 0.5])
@pytest.mark.parametrize("dtype", HALF_TO_DOUBLE)
@pytest.mark.parametrize("value", UNREAD)
def test_ignored_logits_are_not_read(value, dtype, delta, sums):
    logits, targets = random_batch(20, 150, ignored=60)
    logits, kept = unread_where_ignored(value, dtype, targets, logits), targets >= 0
    loss, gradient = loss_and_gradient(logits, targets, delta)
    expected, expected_gradient = average_precision(logits[kept].tolist(), targets[kept].tolist(), delta)
    assert (gradient[~kept] == 0).all()
    tolerance = 1e-12 if dtype == torch.float64 else 1e-5
    assert loss.item() == pytest.approx(expected, abs=tolerance)
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
    loss, gradient = loss_and_gradient(unread_where_ignored(value, torch.float32, targets, torch.zeros(6)), targets)
    assert loss == 0
    assert (gradient == 0).all()


@pytest.mark.parametrize("target", [0.7, 0.0])
def test_other_logits_are_checked_beside_ignored_ones(target):
    logits, targets = torch.tensor([0.0, -math.inf, -math.inf]), torch.tensor([0.5, target, -1.0])
    with pytest.raises(ValueError, match="logits must be finite, 1 of 3 are NaN or infinite"):
        average_precision_loss(logits, targets)


def test_any_quality_is_a_positive():
    logits, targets = random_batch(40, 300, ignored=20)
    targets = targets.sign()
    qualities = torch.rand(len(targets), generator=torch.Generator().manual_seed(1)).clamp(min=0.01)
    expected = loss_and_gradient(logits, targets)
    torch.testing.assert_close(loss_and_gradient(logits, targets * qualities), expected)
    torch.testing.assert_close(loss_and_gradient(logits, targets.long()), expected)


@pytest.mark.parametrize("layout", ["images", "transposed", "strided", "expanded"])
def test_shapes_and_strides(layout):
    logits, targets = random_batch(40, 320)
    reshape = {
        "images": lambda x: x.view(2, 18, 10),
        "transposed": lambda x: x.view(2, 18, 10).permute(2, 0, 1),
        "strided": lambda x: x[::3],
        "expanded": lambda x: x.view(36, 10)[:, :1].expand(36, 4),
    }[layout]
    logits, targets = reshape(logits), reshape(targets)
    loss, gradient = loss_and_gradient(logits, targets)
    expected = loss_and_gradient(logits.flatten(), targets.flatten())
    assert gradient.shape == logits.shape
    torch.testing.assert_close((loss, gradient.flatten()), expected, rtol=0, atol=1e-14)


def test_second_backward():
    logits, targets = random_batch(20, 100)
    logits.requires_grad_()
    loss = average_precision_loss(logits, targets)
    (first,) = torch.autograd.grad(loss, logits, retain_graph=True)
    (second,) = torch.autograd.grad(loss, logits)
    assert torch.equal(first, second)


def test_module_is_the_function():
    logits, targets = random_batch(20, 100)
    module = APLoss(delta=0.1)
    assert repr(module) == "APLoss(delta=0.1)"
    assert not module.state_dict()
    assert module(logits, targets) == average_precision_loss(logits, targets, delta=0.1)
    assert APLoss()(logits, targets) == average_precision_loss(logits, targets, delta=1.0)


# ---- number formats and extreme values


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_dtypes(dtype, sums):
    logits, targets = (x.to(dtype) for x in random_batch(60, 400, ignored=20))
    loss, gradient = loss_and_gradient(logits, targets)
    expected_loss, expected_gradient = loss_and_gradient(logits.double(), targets.double())
    assert loss.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert gradient.dtype == dtype
    assert loss.item() == pytest.approx(expected_loss.item(), abs=1e-6)
    assert_gradient_close(gradient, expected_gradient, 1e-5 + torch.finfo(dtype).eps)


def test_autocast_leaves_the_loss_in_full_precision(sums):
    logits, targets = (x.float() for x in random_batch(60, 400))
    expected = loss_and_gradient(logits, targets)
    with torch.autocast("cpu", torch.bfloat16):
        assert all(map(torch.equal, loss_and_gradient(logits, targets), expected))
        model = torch.nn.Linear(4, 1)
        scores = model(torch.randn(len(targets), 4)).squeeze(1)
        loss = average_precision_loss(scores, targets)
    loss.backward()
    assert scores.dtype == torch.bfloat16
    assert loss.dtype == torch.float32
    assert model.weight.grad.abs().max() > 0


@pytest.mark.parametrize("delta", DELTAS)
@pytest.mark.parametrize("kind", ["one hopeless positive", "huge", "heavy ties", "all equal"])
def test_difficult_scores(kind, delta, sums):
    logits, targets = (x.float() for x in random_batch(60, 1000))
    if kind == "one hopeless positive":
        logits[targets.argmax()] = -1e6
    else:
        logits = {"huge": 1e4 * logits, "heavy ties": logits.round(), "all equal": 0 * logits}[kind]
    loss, gradient = loss_and_gradient(logits, targets, delta)
    expected_loss, expected_gradient = average_precision(logits.tolist(), targets.tolist(), delta)
    assert loss.item() == pytest.approx(expected_loss, abs=1e-6)
    assert_gradient_close(gradient, expected_gradient, 1e-5)


@pytest.mark.parametrize("targets", [[], [0.0, 0.0], [-1.0, -1.0, -1.0], [0.0, -1.0]])
def test_no_positives(targets):
    logits = torch.randn(len(targets), requires_grad=True)
    loss = average_precision_loss(logits, torch.tensor(targets))
    assert loss.item() == 0
    loss.backward()
    assert torch.equal(logits.grad, torch.zeros_like(logits))


# ---- wrong input


@pytest.mark.parametrize(
    ("logits", "targets", "delta", "message"),
    [
        (torch.zeros(3), torch.ones(2), 1.0, r"the same shape, got \(3,\) and \(2,\)"),
        (torch.zeros(2, dtype=torch.int64), torch.ones(2), 1.0, r"floating point .* got torch.int64"),
        (torch.zeros(2), torch.tensor([0.0, 7.0]), 1.0, r"targets are qualities in \(0, 1\].* largest is 7"),
        (torch.zeros(2), torch.ones(2), -0.5, r"delta must be 0 or more, got -0.5"),
        (torch.zeros(2), torch.ones(2), math.nan, r"delta must be .* got nan: .* a finite number"),
        (torch.tensor([0.0, math.nan]), torch.ones(2), 1.0, r"logits must be finite, 1 of 2 are NaN or infinite"),
        (torch.zeros(2), torch.tensor([0.0, math.inf]), 1.0, r"targets must be finite, 1 of 2 are NaN or infinite"),
    ],
)
def test_errors(logits, targets, delta, message):
    with pytest.raises(ValueError, match=message):
        average_precision_loss(logits, targets, delta=delta)


def test_compile():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 1))
    inputs, (_, targets) = torch.randn(120, 4), random_batch(20, 100)

    def loss(inputs, targets):
        return average_precision_loss(model(inputs).squeeze(1), targets)

    loss(inputs, targets.float()).backward()
    expected = [x.grad.clone() for x in model.parameters()]
    model.zero_grad()
    torch.compile(loss, backend="aot_eager")(inputs, targets.float()).backward()
    torch.testing.assert_close([x.grad for x in model.parameters()], expected)
