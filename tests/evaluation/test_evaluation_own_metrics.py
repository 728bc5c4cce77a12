from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from evaluation_data import random_masks

from ranksort.evaluation import evaluate_detections
from ranksort.evaluation.metrics import Family, Metric


def evaluated(compute: Callable[[Any], Any]) -> list[float]:
    """A metric of one's own for the three classes of `random_masks`, whose last one has no objects."""
    truth, detections = random_masks(2)
    metric = Metric("mine", compute, Family("mine", True), in_table=True)
    report = evaluate_detections(truth, detections, metrics=[metric])
    assert "mine" in str(report)
    return [row["mine"] for row in report.per_class]


@pytest.mark.parametrize("values", [[0.5, 0.25, 0.0], np.array([1, 2, 3]), np.float32([0.5, np.nan, 0.0])])
def test_numbers_of_any_kind(values: Any) -> None:
    assert evaluated(lambda _: values) == pytest.approx(list(values)[:2], nan_ok=True)


@pytest.mark.parametrize(
    ("values", "found"),
    [
        (0.5, r"shape \(\)"),
        (np.ones((3, 1)), r"shape \(3, 1\)"),
        (np.ones(4), r"shape \(4,\)"),  # without this check, the first three would be shown
        (None, "dtype object"),
        (["a", "b", "c"], "dtype <U1"),
        ([1j, 2, 3], "dtype complex128"),
        ([np.inf, 1, 2], "an infinite one"),
    ],
)
def test_values_that_do_not_fit_are_named(values: Any, found: str) -> None:
    message = rf"the metric mine must return a number, or NaN, for each of the 3 classes, but returns {found}"
    with pytest.raises(ValueError, match=message):
        evaluated(lambda _: values)


def test_what_a_metric_raises_is_not_hidden() -> None:
    with pytest.raises(KeyError, match="xl"):
        evaluated(lambda results: results["xl"])
