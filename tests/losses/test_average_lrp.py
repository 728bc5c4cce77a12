import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles.average_lrp import average_lrp
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

from ranksort.losses import ALRPLoss, average_lrp_loss

CASES = sorted(path.stem for path in GOLDEN.glob("alrp_*.npz"))
LARGE_CASES = ["alrp_07_P500_N50000_d1_trained_uniform"]


def losses_and_gradients(logits, targets, errors, delta=1.0, weights=(1, 1)):
    """Both losses, and the gradients by logits and localisation errors of their weighted sum."""
    logits, errors = (torch.as_tensor(x).detach().requires_grad_() for x in (logits, errors))
    classification, localization = average_lrp_loss(logits, torch.as_tensor(targets), errors, delta=delta)
    (weights[0] * classification + weights[1] * localization).backward()
    return classification.detach(), localization.detach(), logits.grad, errors.grad


def random_case(positives, negatives, ignored=0, seed=0):
    """A `random_batch`, and localisation errors in [0, 1]."""
    logits, targets = random_batch(positives, negatives, ignored, seed)
    random = torch.Generator().manual_seed(seed)
    return logits, targets.sign(), torch.rand(positives, generator=random, dtype=torch.float64)


def published_localization(errors, rank, order):
    """The localisation part as the authors compute it, from the recorded ranks and one order by rising score."""
    return (np.cumsum(errors[order][::-1]) / rank[order][::-1]).mean()


# ---- values


def test_an_example_computed_by_hand():
    # Hard steps, by falling score: a positive with error .4, a negative, a positive with error .1.
    classification, localization, gradient, error_gradient = losses_and_gradients(
        [3.0, 2.0, 1.0], [1.0, 0.0, 1.0], [0.4, 0.1], delta=0
    )
    assert classification.item() == pytest.approx((0 + 1 / 3) / 2)
    assert localization.item() == pytest.approx((0.4 / 1 + (0.4 + 0.1) / 3) / 2)
    # The last positive answers for its false positive and for the error above it.
    assert gradient.tolist() == pytest.approx([0, 1.4 / 3 / 2, -1.4 / 3 / 2])
    assert error_gradient.tolist() == pytest.approx([(1 + 1 / 3) / 2, 1 / 3 / 2])


@pytest.mark.parametrize("name", CASES + LARGE_CASES)
def test_golden(name, sums):
    golden = golden_case(name)
    inputs = [torch.from_numpy(golden[name]) for name in ("logits", "targets", "regression_losses")]
    scores = golden["logits"][golden["targets"] > 0]
    for dtype, tolerance in ((torch.float64, 1e-9), (torch.float32, 1e-5)):
        classification, localization, gradient, _ = losses_and_gradients(
            *(x.to(dtype) for x in inputs), golden["delta"].item(), weights=(1, 0)
        )
        assert classification.item() == pytest.approx(golden["loss"].item(), abs=tolerance)
        assert_gradient_close(gradient, golden["grad"], tolerance)
        errors, rank = golden["regression_losses"].astype(float), golden["rank"]
        if len(np.unique(scores)) == len(scores):
            expected = published_localization(errors, rank, golden["order"])
            assert localization.item() == pytest.approx(expected, abs=tolerance)
        else:
            # Where scores tie, the published value depends on the order: between those by rising and by falling error.
            bounds = [published_localization(errors, rank, np.lexsort((x, scores))) for x in (-errors, errors)]
            assert localization.item() == pytest.approx(sum(bounds) / 2, abs=tolerance)


def test_ties_have_the_mean_of_the_published_values():
    scores, errors = [2.0, 1.0, 1.0, 1.0, 0.0], np.array([0.3, 0.9, 0.1, 0.4, 0.2])
    rank = np.array([1 + sum(np.clip((x - y) / 2 + 0.5, 0, 1) for x in scores) - 0.5 for y in scores])
    published = [published_localization(errors, rank, [4, *tied, 0]) for tied in itertools.permutations([1, 2, 3])]
    _, localization, *_ = losses_and_gradients(torch.tensor(scores), torch.ones(5), torch.from_numpy(errors))
    assert min(published) < localization.item() < max(published)
    assert localization.item() == pytest.approx(np.mean(published))


# Whole numbers of steps, so that scores tie and fall on the ends of the smoothed step; errors tie as well.
EXAMPLES = st.lists(
    st.tuples(
        st.integers(-12, 12), st.sampled_from([-1.0, 0.0, 0.0, 0.0, 0.3, 1.0, 1.0]), st.sampled_from([0, 0.2, 0.7, 2])
    ),
    max_size=24,
)


@pytest.mark.parametrize("way", WAYS)
@settings(deadline=None, max_examples=150)
@given(examples=EXAMPLES, scale=st.sampled_from([0.0625, 0.1, 1.0, 50.0]), delta=st.sampled_from(DELTAS))
def test_follows_the_equations(way, examples, scale, delta):
    logits = torch.tensor([scale * ticks for ticks, _, _ in examples], dtype=torch.float64)
    targets = torch.tensor([target for _, target, _ in examples], dtype=torch.float64)
    errors = torch.tensor([error for _, target, error in examples if target > 0], dtype=torch.float64)
    expected = average_lrp(logits.tolist(), targets.tolist(), errors.tolist(), delta)
    with pytest.MonkeyPatch.context() as patch:
        count_in(way, patch)
        for weights in ((1, 0), (0, 1), (2, 3)):
            classification, localization, gradient, error_gradient = losses_and_gradients(
                logits, targets, errors, delta, weights
            )
            assert classification.item() == pytest.approx(expected.classification, abs=1e-12)
            assert localization.item() == pytest.approx(expected.localization, abs=1e-12)
            np.testing.assert_allclose(gradient.numpy(), weights[0] * expected.gradient, rtol=0, atol=1e-11)
            np.testing.assert_allclose(error_gradient.numpy(), weights[1] * expected.error_gradient, rtol=0, atol=1e-12)


@pytest.mark.parametrize("positives", [1, 20_000])
@pytest.mark.parametrize("negatives", [0, 1, 20_000])
def test_up_to_20000_of_both(positives, negatives):
    logits, targets, errors = random_case(positives, negatives)
    classification, localization, *_ = losses_and_gradients(logits, targets, errors, delta=0)
    # With hard steps all counts are places in sorted lists.
    positive = logits[targets > 0].numpy()
    order = positive.argsort()
    p, n = positive[order], np.sort(logits[targets == 0].numpy())
    place = np.searchsorted(p, p)
    fp = negatives - np.searchsorted(n, p)
    rank = positives - place + fp
    error_above = np.cumsum(errors.numpy()[order][::-1])[::-1][place]
    assert classification.item() == pytest.approx((fp / rank).mean(), abs=1e-12)
    assert localization.item() == pytest.approx((error_above / rank).mean(), abs=1e-12)

    smooth, _, gradient, error_gradient = losses_and_gradients(logits, targets, errors, delta=0.1)
    assert smooth.item() == pytest.approx(classification.item(), abs=0.1)
    assert abs(gradient.sum().item()) < 1e-11
    assert (error_gradient > 0).all()


def test_right_order_leaves_localization_alone():
    classification, localization, gradient, error_gradient = losses_and_gradients(
        [7.0, 5.0, 3.0, 0.0, -1.0], [1.0, 1.0, 1.0, 0.0, 0.0], [0.2, 0.2, 0.5]
    )
    assert classification == 0
    assert not gradient.any()
    assert localization.item() == pytest.approx((0.2 + 0.4 / 2 + 0.9 / 3) / 3)
    # A high score makes an error count more.
    assert error_gradient.tolist() == pytest.approx([(1 + 1 / 2 + 1 / 3) / 3, (1 / 2 + 1 / 3) / 3, 1 / 3 / 3])


def test_a_trace_of_a_false_positive_updates_nothing():
    # The lower positive sees H = 5e-6 and 2e-5 of a negative which is almost out of reach; only the second is above 1e-5.
    for reach, updated in ((1e-5, False), (4e-5, True)):
        *_, gradient, _ = losses_and_gradients(
            torch.tensor([5.0, 0.0, reach - 1]).double(), [1.0, 1.0, 0.0], [0.8, 0.1]
        )
        assert bool(gradient.any()) == updated


# ---- properties


@pytest.mark.parametrize("delta", DELTAS)
def test_order_of_examples_and_origin_of_scores_are_free(delta, sums):
    logits, targets, errors = random_case(60, 400, ignored=20)
    logits = (8 * logits).round() / 8  # with ties
    expected = losses_and_gradients(logits, targets, errors, delta)
    shifted = losses_and_gradients(logits + 4096, targets, errors, delta)
    torch.testing.assert_close(shifted, expected, rtol=0, atol=1e-12)

    order = torch.randperm(len(logits), generator=torch.Generator().manual_seed(1))
    # Where each error goes when the examples are put into this order.
    number = torch.zeros_like(targets, dtype=torch.int64)
    number[targets > 0] = torch.arange(60)
    error_order = number[order][targets[order] > 0]
    permuted = losses_and_gradients(logits[order], targets[order], errors[error_order], delta)
    moved = (*expected[:2], expected[2][order], expected[3][error_order])
    torch.testing.assert_close(permuted, moved, rtol=0, atol=1e-12)


def test_each_loss_has_its_own_gradient(sums):
    logits, targets, errors = random_case(40, 300)
    *_, by_logits, by_errors = losses_and_gradients(logits, targets, errors, weights=(1, 0))
    assert by_logits.abs().max() > 1e-3
    assert not by_errors.any()
    assert (by_logits[targets == 0] >= 0).all()
    assert (by_logits[targets > 0] <= 0).all()
    assert abs(by_logits.sum().item()) < 1e-12
    *_, by_logits, by_errors = losses_and_gradients(logits, targets, errors, weights=(0, 1))
    assert not by_logits.any()
    assert by_errors.min() > 0


def test_localization_has_its_derivative():
    logits, targets, errors = random_case(10, 50)
    assert torch.autograd.gradcheck(lambda x: average_lrp_loss(logits, targets, x)[1], errors.requires_grad_())


def test_gradient_passes_through_the_regression_losses():
    logits, targets, _ = random_case(10, 50)
    ious = torch.linspace(0.1, 0.9, 10, requires_grad=True)
    average_lrp_loss(logits, targets, 1 - ious).localization.backward()
    assert (ious.grad < 0).all()


def test_ignored_examples_take_no_part(sums):
    logits, targets, errors = random_case(40, 300, ignored=100)
    kept = targets >= 0
    *losses, gradient, error_gradient = losses_and_gradients(logits, targets, errors)
    expected = losses_and_gradients(logits[kept], targets[kept], errors)
    assert not gradient[~kept].any()
    torch.testing.assert_close((*losses, gradient[kept], error_gradient), expected, rtol=0, atol=1e-14)


@pytest.mark.parametrize("delta", [0.0, 1.0])
@pytest.mark.parametrize("dtype", HALF_TO_DOUBLE)
@pytest.mark.parametrize("value", UNREAD)
def test_ignored_logits_are_not_read(value, dtype, delta, sums):
    logits, targets, errors = random_case(20, 150, ignored=60)
    logits, kept = unread_where_ignored(value, dtype, targets, logits), targets >= 0
    classification, localization, gradient, to_errors = losses_and_gradients(logits, targets, errors, delta)
    expected = average_lrp(logits[kept].tolist(), targets[kept].tolist(), errors.tolist(), delta)
    assert (gradient[~kept] == 0).all()
    tolerance = 1e-12 if dtype == torch.float64 else 1e-5
    losses = classification.item(), localization.item()
    assert losses == pytest.approx((expected.classification, expected.localization), abs=tolerance)
    assert_gradient_close(gradient[kept], expected.gradient, max(tolerance, torch.finfo(dtype).eps))
    assert to_errors.isfinite().all()


def test_nothing_but_ignored_logits():
    logits, targets, errors = torch.full((6,), -math.inf), torch.full((6,), -1.0), torch.zeros(0)
    classification, localization, gradient, _ = losses_and_gradients(logits, targets, errors)
    assert classification == localization == 0
    assert (gradient == 0).all()


@pytest.mark.parametrize("target", [0.7, 0.0])
def test_other_logits_are_checked_beside_ignored_ones(target):
    logits, targets = torch.tensor([0.0, -math.inf, -math.inf]), torch.tensor([0.5, target, -1.0])
    with pytest.raises(ValueError, match="logits must be finite, 1 of 3 are NaN or infinite"):
        average_lrp_loss(logits, targets, torch.ones(int((targets > 0).sum())))


def test_any_quality_is_a_positive():
    logits, targets, errors = random_case(40, 300, ignored=20)
    qualities = torch.rand(len(targets), generator=torch.Generator().manual_seed(1)).clamp(min=0.01)
    expected = losses_and_gradients(logits, targets, errors)
    torch.testing.assert_close(losses_and_gradients(logits, targets * qualities, errors), expected)
    torch.testing.assert_close(losses_and_gradients(logits, targets.long(), errors), expected)


@pytest.mark.parametrize("layout", ["images", "transposed", "strided"])
def test_shapes_and_strides(layout):
    logits, targets, _ = random_case(40, 320)
    reshape = {
        "images": lambda x: x.view(2, 18, 10),
        "transposed": lambda x: x.view(2, 18, 10).permute(2, 0, 1),
        "strided": lambda x: x[::3],
    }[layout]
    logits, targets = reshape(logits), reshape(targets)
    errors = torch.linspace(0, 1, int((targets > 0).sum()), dtype=torch.float64)
    *losses, gradient, error_gradient = losses_and_gradients(logits, targets, errors.repeat_interleave(2)[::2])
    expected = losses_and_gradients(logits.flatten(), targets.flatten(), errors)
    assert gradient.shape == logits.shape
    torch.testing.assert_close((*losses, gradient.flatten(), error_gradient), expected, rtol=0, atol=1e-14)


def test_second_backward():
    logits, targets, errors = random_case(20, 100)
    logits.requires_grad_()
    errors.requires_grad_()
    total = sum(average_lrp_loss(logits, targets, errors))
    first = torch.autograd.grad(total, (logits, errors), retain_graph=True)
    second = torch.autograd.grad(total, (logits, errors))
    assert all(map(torch.equal, first, second))


# ---- number formats and extreme values


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_dtypes(dtype, sums):
    inputs = [x.to(dtype) for x in random_case(60, 400, ignored=20)]
    results = losses_and_gradients(*inputs)
    expected = losses_and_gradients(*(x.double() for x in inputs))
    loss_dtype = torch.float64 if dtype == torch.float64 else torch.float32
    assert [x.dtype for x in results] == [loss_dtype, loss_dtype, dtype, dtype]
    for actual, reference in zip(results[:2], expected[:2], strict=True):
        assert actual.item() == pytest.approx(reference.item(), abs=1e-6)
    for actual, reference in zip(results[2:], expected[2:], strict=True):
        assert_gradient_close(actual, reference, 1e-5 + torch.finfo(dtype).eps)


def test_autocast_leaves_the_loss_in_full_precision(sums):
    logits, targets, errors = (x.float() for x in random_case(60, 400))
    expected = losses_and_gradients(logits, targets, errors)
    with torch.autocast("cpu", torch.bfloat16):
        assert all(map(torch.equal, losses_and_gradients(logits, targets, errors), expected))


@pytest.mark.parametrize("delta", DELTAS)
@pytest.mark.parametrize("kind", ["one hopeless positive", "huge", "heavy ties", "all equal"])
def test_difficult_scores(kind, delta, sums):
    logits, targets, errors = (x.float() for x in random_case(60, 1000))
    if kind == "one hopeless positive":
        logits[targets.argmax()] = -1e6
    else:
        logits = {"huge": 1e4 * logits, "heavy ties": logits.round(), "all equal": 0 * logits}[kind]
    classification, localization, gradient, error_gradient = losses_and_gradients(logits, targets, errors, delta)
    expected = average_lrp(logits.tolist(), targets.tolist(), errors.tolist(), delta)
    assert classification.item() == pytest.approx(expected.classification, abs=1e-6)
    assert localization.item() == pytest.approx(expected.localization, abs=1e-6)
    assert_gradient_close(gradient, expected.gradient, 1e-5)
    assert_gradient_close(error_gradient, expected.error_gradient, 1e-5)


@pytest.mark.parametrize("targets", [[], [0.0, 0.0], [-1.0, -1.0, -1.0], [0.0, -1.0]])
def test_no_positives(targets):
    logits, errors = torch.randn(len(targets), requires_grad=True), torch.zeros(0, requires_grad=True)
    classification, localization = average_lrp_loss(logits, torch.tensor(targets), errors)
    assert (classification.item(), localization.item()) == (0, 0)
    (classification + localization).backward()
    assert torch.equal(logits.grad, torch.zeros_like(logits))
    assert torch.equal(errors.grad, errors)


# ---- self-balancing


def test_module_is_the_function_with_a_weight():
    logits, targets, errors = random_case(20, 100)
    module = ALRPLoss(delta=0.1)
    assert repr(module) == "ALRPLoss(delta=0.1, period=7330)"
    expected = average_lrp_loss(logits, targets, errors, delta=0.1)
    actual = module(logits, targets, errors)
    assert actual.classification == expected.classification
    assert actual.localization.item() == pytest.approx(50 * expected.localization.item())
    assert actual.localization.dtype == expected.localization.dtype
    assert ALRPLoss()(logits, targets, errors).classification == average_lrp_loss(logits, targets, errors, delta=1.0)[0]


def test_weight_follows_the_last_period():
    module = ALRPLoss(period=3)
    batches = [random_case(20, 100, seed=seed) for seed in range(7)]
    plain = [average_lrp_loss(*batch) for batch in batches]
    balanced = [module(*batch) for batch in batches]
    weights = [50.0, 50.0]
    for i in (0, 3):
        classification, localization = (sum(x.item() for x in part) for part in zip(*plain[i : i + 3], strict=True))
        weights += [(classification + localization) / localization] * 3
    weights = weights[:7]
    for actual, expected, weight in zip(balanced, plain, weights, strict=True):
        assert actual.classification == expected.classification
        assert actual.localization.item() == pytest.approx(weight * expected.localization.item(), rel=1e-5)


def test_weight_stays_without_training_positives_or_localization_error():
    logits, targets, errors = random_case(20, 100)
    module = ALRPLoss(period=1)
    module(logits, 0 * targets, errors[:0])
    module.eval()
    module(logits, targets, errors)
    assert module.localization_weight == 50
    module.train()
    module(logits, targets, 0 * errors)
    assert module.localization_weight == 50
    module(logits, targets, errors)
    assert module.localization_weight != 50


def test_calls_without_positives_are_not_counted():
    logits, targets, errors = random_case(20, 100)
    module = ALRPLoss(period=2)
    module(logits, targets, errors)
    module(logits, 0 * targets, errors[:0])
    assert module.iterations == 1
    assert module.localization_weight == 50


def test_weight_may_change_before_backward():
    logits, targets, errors = random_case(20, 100)
    errors.requires_grad_()
    module = ALRPLoss(period=2)
    first, second = module(logits, targets, errors).localization, module(logits, targets, errors).localization
    (expected,) = torch.autograd.grad(average_lrp_loss(logits, targets, errors).localization, errors)
    (gradient,) = torch.autograd.grad(first, errors)
    torch.testing.assert_close(gradient, 50 * expected)
    (gradient,) = torch.autograd.grad(second, errors)
    torch.testing.assert_close(gradient, module.localization_weight * expected, check_dtype=False)


def test_the_weight_stays_in_its_buffer():
    """DDP copies the buffers that it finds at first to all processes: in a new tensor, each process would have its own weight."""
    module = ALRPLoss(period=1)
    buffers = dict(module.named_buffers())
    module(*random_case(20, 100))
    assert module.localization_weight != 50
    assert all(tensor is buffers[name] for name, tensor in module.named_buffers())


def test_checkpoint_carries_on(tmp_path):
    module, restored = ALRPLoss(period=3), ALRPLoss(period=3)
    batches = [random_case(20, 100, seed=seed) for seed in range(6)]
    for batch in batches[:4]:
        module(*batch)
    torch.save(module.state_dict(), tmp_path / "loss.pt")
    restored.load_state_dict(torch.load(tmp_path / "loss.pt", weights_only=True))
    for batch in batches[4:]:
        assert restored(*batch) == module(*batch)
    assert restored.localization_weight == module.localization_weight
    assert restored.iterations == 0


# ---- wrong input


@pytest.mark.parametrize(
    ("logits", "targets", "errors", "delta", "message"),
    [
        (torch.zeros(3), torch.ones(2), torch.ones(2), 1.0, r"the same shape, got \(3,\) and \(2,\)"),
        (torch.zeros(2).long(), torch.ones(2), torch.ones(2), 1.0, r"floating point .* got torch.int64"),
        (torch.zeros(2), torch.tensor([0.0, 7.0]), torch.ones(1), 1.0, r"targets are qualities .* largest is 7"),
        (torch.zeros(2), torch.ones(2), torch.ones(2), -0.5, r"delta must be 0 or more, got -0.5"),
        (torch.zeros(2), torch.ones(2), torch.ones(3), 1.0, r"one value for each of the 2 positive .* shape \(3,\)"),
        (torch.zeros(2), torch.ones(2), torch.tensor(1.0), 1.0, r"one value for each of the 2 .* shape \(\)"),
        (torch.zeros(2), torch.zeros(2), torch.ones(1), 1.0, r"one value for each of the 0 .* shape \(1,\)"),
        (torch.zeros(2), torch.ones(2), torch.tensor([0.5, -0.3]), 1.0, r"must be 0 or more, the smallest is -0.3"),
        (torch.full((2,), math.inf), torch.ones(2), torch.ones(2), 1.0, r"logits must be finite, 2 of 2"),
        (torch.zeros(2), torch.full((2,), math.nan), torch.ones(2), 1.0, r"targets must be finite, 2 of 2"),
        (torch.zeros(2), torch.ones(2), torch.tensor([0, math.nan]), 1.0, r"regression_losses must be finite, 1 of 2"),
    ],
)
def test_errors(logits, targets, errors, delta, message):
    with pytest.raises(ValueError, match=message):
        average_lrp_loss(logits, targets, errors, delta=delta)
