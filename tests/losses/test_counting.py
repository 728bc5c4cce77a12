import numpy as np
import pytest
import torch
from ranking_cases import DELTAS, WAYS, count_in

from ranksort.losses.counting import Breakpoints, NegativesAbove, find
from ranksort.losses.positives_above import PositivesAbove, WorsePositivesAbove

RANDOM = np.random.default_rng(0)


def step(x, delta):
    return (x >= 0) * 1.0 if delta == 0 else np.clip(x / (2 * delta) + 0.5, 0, 1)


def positives(number, ties):
    """Rising scores and their qualities, from a coarse raster where `ties`."""
    p, y = np.sort(RANDOM.normal(0, 2, number)), RANDOM.uniform(0.01, 1, number)
    return (p.round(1), y.round(1)) if ties else (p, y)


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("number", [1, 2, 7, 8, 9, 63, 64, 65, 513])
@pytest.mark.parametrize("delta", DELTAS)
def test_sums_over_positives(delta, number, ties):
    p, y = positives(number, ties)
    weights = RANDOM.uniform(size=(2, number))
    above = step(p - p[:, None], delta)  # [i, j]
    worse = above * (y < y[:, None])
    breakpoints = Breakpoints(torch.from_numpy(p), delta)
    relation = WorsePositivesAbove(breakpoints, torch.from_numpy(y))
    for actual, expected in (
        (PositivesAbove(breakpoints).sum(torch.from_numpy(weights)), weights @ above.T),
        (relation.sum(torch.from_numpy(weights)), weights @ worse.T),
        (relation.spread(torch.from_numpy(weights[0])), weights[0] @ worse),
    ):
        np.testing.assert_allclose(actual.numpy(), expected, rtol=0, atol=1e-11)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", ["ties", "close", "spread", "far", "outlier", "equal", "one interval", "out of reach"])
@pytest.mark.parametrize("delta", DELTAS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_sums_over_negatives(dtype, delta, kind, way, monkeypatch):
    count_in(way, monkeypatch)
    p, _ = positives(40, ties=kind == "ties")
    n = RANDOM.normal(0, 2, 6000)
    if kind == "ties":
        n = n.round(1)
    elif kind == "close":
        p, n = p * 1e-3, n * 1e-3
    elif kind == "spread":
        p, n = p * 1e4, n * 1e4
    elif kind == "far":  # coarse in float32
        p, n = p * 0.05 + 1e6, n * 0.05 + 1e6
    elif kind == "outlier":
        p[0], n[:3] = -1e6, (1e6, -1e7, 1e7)
    elif kind == "equal":
        p[:], n[:] = 1.5, 1.5
    elif kind == "one interval":
        p, n = p * 1e-3 * delta, n * 1e-3 * delta
    else:
        n -= 100
    others = [(n.size, 3.0), (n.size, -50.0)]  # logits which are no negatives
    logits = torch.from_numpy(np.concatenate([n, [x for _, x in others]])).to(dtype)
    p, n = np.sort(torch.from_numpy(p).to(dtype).double().numpy()), logits[: n.size].double().numpy()
    targets = torch.zeros(len(logits))
    targets[-2:] = torch.tensor([0.5, -1.0])
    breakpoints = Breakpoints(torch.from_numpy(p), delta)
    ends = torch.bucketize(torch.stack(logits.double().aminmax()), breakpoints.edges, right=True).tolist()
    negatives = NegativesAbove(
        breakpoints, logits, targets, torch.tensor([n.size]), ignored=True, edges_among=tuple(ends), reach=0.5
    )
    above = step(n - p[:, None], delta)
    weights = RANDOM.uniform(size=len(p))
    rounding = {"outlier": 1e-8, "far": 1e-6}.get(kind, 1e-9)  # of the edges in float64, times 6000
    np.testing.assert_allclose(negatives.count(logits).numpy(), above.sum(1), rtol=1e-11, atol=rounding)
    spread = weights @ above
    tolerance = (2e-6 if dtype == torch.float32 else 1e-9) * max(spread.max(), 1e-12)
    for _ in range(2):  # the second time from the start
        update = negatives.spread(torch.from_numpy(weights), logits).double().numpy()
        np.testing.assert_allclose(update[: n.size], spread, rtol=0, atol=tolerance)
        assert (update[n.size :] == 0).all()


@pytest.mark.parametrize("number", [0, 1, 31, 32, 33, 1000])
def test_find(number):
    values = torch.from_numpy(RANDOM.normal(0, 1, number))
    for least in (-10, 0, 2, 10):
        assert torch.equal(find(values, lambda x, least=least: x > least), (values > least).nonzero().squeeze(1))
