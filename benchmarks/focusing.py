"""Does focal loss confuse classes because it focuses too much, or too little? ATSS with focal loss of other γ than 2.

`benchmarks/compare_losses.py DATA --losses focal --detector benchmarks/focusing.py:Gamma1` trains with another γ, and with the α that
Lin et al. (Focal Loss for Dense Object Detection, ICCV 2017, table 1b) found best for it; numbers are in benchmarks/losses.md.
"""

from functools import partial
from typing import Any

from ranksort.losses.criteria import FixedWeights
from ranksort.losses.score_based import focal_loss
from ranksort.models.atss import ATSS


class _OtherFocus(ATSS):
    """ATSS with focal loss of the γ and α of a subclass; the loss that the recipe names is not used."""

    gamma: float
    alpha: float

    def __init__(self, *args: Any, losses: Any = None, **settings: Any):
        loss = partial(focal_loss, alpha=self.alpha, gamma=self.gamma)
        super().__init__(*args, losses=FixedWeights(loss), **settings)


class GammaHalf(_OtherFocus):
    gamma, alpha = 0.5, 0.5


class Gamma1(_OtherFocus):
    gamma, alpha = 1.0, 0.25


class Gamma3(_OtherFocus):
    gamma, alpha = 3.0, 0.25


class Gamma5(_OtherFocus):
    gamma, alpha = 5.0, 0.25
