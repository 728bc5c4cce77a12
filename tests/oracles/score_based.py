"""Focal, quality focal and varifocal loss, one example at a time, straight from the equations of their papers; float64."""

from collections.abc import Callable, Sequence
from math import exp, log


def focal(logit: float, target: float) -> float:
    """Lin et al., ICCV 2017, equation 5, with α = .25 and γ = 2."""
    p = 1 / (1 + exp(-logit))
    return -0.25 * (1 - p) ** 2 * log(p) if target > 0 else -0.75 * p**2 * log(1 - p)


def quality_focal(logit: float, target: float) -> float:
    """Li et al., NeurIPS 2020, equation 3, with β = 2."""
    p = 1 / (1 + exp(-logit))
    return -(abs(target - p) ** 2) * ((1 - target) * log(1 - p) + target * log(p))


def varifocal(logit: float, target: float) -> float:
    """Zhang et al., CVPR 2021, equation 2, with α = .75 and γ = 2."""
    p, q = 1 / (1 + exp(-logit)), target
    return -q * (q * log(p) + (1 - q) * log(1 - p)) if q > 0 else -0.75 * p**2 * log(1 - p)


def per_positive(loss: Callable[[float, float], float], logits: Sequence[float], targets: Sequence[float]) -> float:
    """The sum over a batch by the number of its positives, at least 1; targets < 0 are ignored."""
    taken = [(s, y) for s, y in zip(logits, targets, strict=True) if y >= 0]
    return sum(loss(s, y) for s, y in taken) / max(sum(y > 0 for _, y in taken), 1)


def gradient(
    loss: Callable[[float, float], float], logits: Sequence[float], targets: Sequence[float], step: float = 1e-6
) -> list[float]:
    """The derivative of `per_positive` by each logit, by central differences."""
    slopes = []
    for i in range(len(logits)):
        up, down = ([*logits[:i], logits[i] + sign * step, *logits[i + 1 :]] for sign in (1, -1))
        slopes.append((per_positive(loss, up, targets) - per_positive(loss, down, targets)) / (2 * step))
    return slopes
