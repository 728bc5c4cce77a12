"""Against scikit-learn's GaussianMixture, one row at a time."""

import numpy as np
import pytest
import torch
from oracles import paa as oracle
from torch import Tensor

from ranksort.models.mixture import low_component


def _rows(lists: list[list[float]], width: int, seed: int = 0) -> Tensor:
    """The lists as a table, their values in random columns, which is infinite elsewhere."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.full((len(lists), width), torch.inf, dtype=torch.float64)
    for i, row in enumerate(lists):
        columns = torch.randperm(width, generator=generator)[: len(row)].sort().values
        values[i, columns] = torch.tensor(row, dtype=torch.float64)
    return values


def _assert_as_oracle(lists: list[list[float]], width: int = 45) -> None:
    values = _rows(lists, width)
    valid = values.isfinite()
    belongs, likelihood = low_component(values)
    assert not bool((belongs & ~valid).any())
    for i, row in enumerate(lists):
        expected, score = oracle.mixture(row)
        assert belongs[i, valid[i]].tolist() == expected, row
        np.testing.assert_allclose(
            likelihood[i, valid[i]] - np.log(len(row)) - np.log(2 * np.pi) / 2, score, rtol=1e-6, atol=1e-3
        )


def _random(count: int, seed: int) -> list[list[float]]:
    """Losses like those of candidates: one heap, two, a long tail, a few far off; of 2 to 45 values."""
    rng = np.random.default_rng(seed)
    rows = []
    for _ in range(count):
        n, centre, spread = int(rng.integers(2, 46)), rng.uniform(0.5, 6), rng.uniform(0.001, 1.5)
        one, other = rng.normal(centre, spread, n), rng.normal(centre + rng.uniform(0, 4), 2 * spread, n)
        row = [one, np.where(rng.random(n) < 0.5, one, other), centre + rng.exponential(spread, n)][rng.integers(3)]
        row[: rng.integers(0, 2)] *= 100
        rows.append(row.tolist())
    return rows


def test_random_problems() -> None:
    _assert_as_oracle(_random(400, seed=0))


@pytest.mark.slow  # for scikit-learn
def test_ten_thousand_random_problems() -> None:
    _assert_as_oracle(_random(10_000, seed=1))


def test_degenerate_problems() -> None:
    equal = [[1.5] * n for n in (2, 3, 9, 45)]
    pairs = [[0.3, 0.32], [0.3, 0.4], [0.3, 1.3], [0.3, 7.0], [0.3, 1000.0]]
    steps = [[0.0] * 5 + [1.0] * 5, [0.0] + [1.0] * 8, [0.0] * 8 + [1.0], [float(i) for i in range(45)]]
    _assert_as_oracle([*equal, *pairs, *steps])


def test_nearly_equal_values_belong_together() -> None:
    """Here the components differ by less than scikit-learn's rounding errors."""
    values = _rows([[1.5, 1.5 + 1e-9, 1.5 - 1e-9], [2.0, 2.0 + 1e-6], [0.1] * 8 + [0.10001], [0.3, 0.3001]], 9)
    assert torch.equal(low_component(values)[0], values.isfinite())


def test_float32_hardly_differs() -> None:
    """For devices without float64."""
    values = _rows(_random(400, seed=2), 45)
    exact, _ = low_component(values)
    rough, _ = low_component(values.float())
    assert (exact != rough).any(1).float().mean() < 0.01


def test_rows_do_not_see_one_another() -> None:
    values = _rows(_random(50, seed=3), 45)
    together = low_component(values)
    alone = [low_component(values[i : i + 1]) for i in range(len(values))]
    assert torch.equal(together[0], torch.cat([belongs for belongs, _ in alone]))


def test_rows_without_values_and_no_rows() -> None:
    values = _rows([[], [0.5, 0.6, 3.0], []], 6)
    belongs, _ = low_component(values)
    assert belongs.sum(1).tolist() == [0, 2, 0]
    assert low_component(values[:0])[0].shape == (0, 6)
