"""Does it help to ask for the level of the scores, too? RS-ATSS with a term beside RS Loss, which is blind to it.

1 - Lin's concordance coefficient between the scores of the positives and their IoUs, times .2, as in Correlation Loss (Kahraman et al.,
AAAI 2023). `benchmarks/mixture.py --detectors concordance` trains it; protocol and numbers are in benchmarks/mixture.md.
"""

from typing import Any

import torch
from torch import Tensor

from ranksort.losses.detection import DetectionLosses, rank_sort_detection_losses
from ranksort.models.atss import ATSS

WEIGHT = 0.2


def concordance(a: Tensor, b: Tensor) -> Tensor:
    """Lin's concordance coefficient of two columns [P]: 2 cov / (var a + var b + (mean a - mean b)²); 1 where they are equal, 0 where both
    are constant and differ.
    """
    covariance = ((a - a.mean()) * (b - b.mean())).mean()
    spread = a.var(correction=0) + b.var(correction=0) + (a.mean() - b.mean()) ** 2
    return 2 * covariance / spread.clamp(min=1e-10)


def with_concordance(logits: Tensor, positive: Tensor, labels: Tensor, *args: Any, **kwargs: Any) -> DetectionLosses:
    """RS Loss and the term; boxes are balanced to RS Loss alone, as without it."""
    found = rank_sort_detection_losses(logits, positive, labels, *args, **kwargs)
    scores = logits.float()[positive, labels].sigmoid()
    term = WEIGHT * (1 - concordance(scores, found.quality)) if len(positive) > 1 else logits.sum() * 0
    return found._replace(losses=found.losses | {"concordance": term})


class ConcordantATSS(ATSS):
    """RS-ATSS with the term; named in recipes as benchmarks/concordance.py:ConcordantATSS."""

    def __init__(self, *args: Any, losses: Any = None, **settings: Any):
        super().__init__(*args, losses=with_concordance, **settings)


if __name__ == "__main__":  # closed forms
    x = torch.linspace(0.1, 0.9, 50, dtype=torch.float64)
    variance = x.var(correction=0)
    shift = concordance(x + 0.1, x)
    print(concordance(x, x).item(), shift.item(), (2 * variance / (2 * variance + 0.01)).item())
