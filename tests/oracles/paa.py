"""PAA (Kim and Lee, ECCV 2020, section 3.1) in loops, with scikit-learn's mixture of Gaussians, as published."""

import warnings

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture


def mixture(values: list[float]) -> tuple[list[bool], list[float]]:
    """Whether each value belongs to the component which began at the least one, and its log-likelihood."""
    x = np.array(values, dtype=np.float64)[:, None]
    gaussians = GaussianMixture(
        2,
        weights_init=[0.5, 0.5],
        means_init=[x.min(0), x.max(0)],
        precisions_init=[[1.0], [1.0]],
        covariance_type="diag",
        reg_covar=1e-5,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        gaussians.fit(x)
    return (gaussians.predict(x) == 0).tolist(), gaussians.score_samples(x).tolist()


def choose(losses: list[float], owner: list[int], level: list[int], top_k: int = 9) -> tuple[set[int], set[int]]:
    """The candidates which are positive for certain, and those which may be.

    They differ where the likeliest member of a component is open but for rounding: two alone are always equally likely.
    """
    certain: set[int] = set()
    possible: set[int] = set()
    for g in set(owner):
        kept: list[int] = []
        for k in set(level):
            of_level = [i for i in range(len(losses)) if (owner[i], level[i]) == (g, k)]
            kept += sorted(of_level, key=lambda i: losses[i])[:top_k]
        if len(kept) < 2:
            continue
        belongs, likelihood = mixture([losses[i] for i in kept])
        members = [(value, losses[i]) for i, value, member in zip(kept, likelihood, belongs, strict=True) if member]
        if members:
            limits = [loss for value, loss in members if value > max(members)[0] - 1e-9]
            of_component = [i for i, member in zip(kept, belongs, strict=True) if member]
            certain |= {i for i in of_component if losses[i] <= min(limits)}
            possible |= {i for i in of_component if losses[i] <= max(limits)}
    return certain, possible


def vote(
    box: list[float], label: int, boxes: list[list[float]], scores: list[list[float]], threshold: float, sigma: float
) -> list[float]:
    """Score voting (section 3.3) for one detection, from all regions."""
    total, summed = 0.0, [0.0] * 4
    for other, score in zip(boxes, scores, strict=True):
        width = min(box[2], other[2]) - max(box[0], other[0])
        height = min(box[3], other[3]) - max(box[1], other[1])
        both = max(width, 0) * max(height, 0)
        areas = (box[2] - box[0]) * (box[3] - box[1]) + (other[2] - other[0]) * (other[3] - other[1])
        iou = both / (areas - both)
        if iou > 0.01 and score[label] > threshold:
            weight = score[label] * float(np.exp(-((1 - iou) ** 2) / sigma))
            total += weight
            summed = [s + weight * x for s, x in zip(summed, other, strict=True)]
    return [s / total for s in summed]
