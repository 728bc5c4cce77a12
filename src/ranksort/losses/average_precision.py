"""AP Loss: Chen, Li, Lin et al., CVPR 2019 (arXiv 1904.06373), section 3, with interpolated precision.

The loss is 1 - AP, with the precision measured at each positive. What it lacks to 1 is handed, as error-driven update, to the
negatives that are scored above that positive.
"""

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ._ranking import ErrorDrivenUpdate, Examples, no_loss, select_examples
from .counting import PositivesAbove


def average_precision_loss(
    logits: Tensor, targets: Tensor, *, delta: float = 1.0, process_group: "dist.ProcessGroup | None" = None
) -> Tensor:
    """AP Loss, exact, in O((P + N) log P) time for P positives and N negatives.

    For each positive i, with H the step smoothed over ± `delta` and x_ij = s_j - s_i:

        FP(i) = Σ_{j∈N} H(x_ij),  rank(i) = 1 + Σ_{j∈P, j≠i} H(x_ij) + FP(i),  precision error e(i) = FP(i) / rank(i)
        interpolated  ℓ(i) = min of e(k) over the positives k with s_k <= s_i;  the loss is their mean

    The gradient is the error-driven update divided by P: -ℓ(i) to positive i, and Σ_i ℓ(i) H(x_ij) / FP(i) to negative j.

    Args:
        logits: s, floating point, any shape. The whole tensor is ranked as one: pass all images of a batch together.
        targets: same shape. In (0, 1]: a positive, of whatever value. 0: a negative. Below 0: ignored: whatever the logit is,
            even -inf or NaN, it is not counted and its gradient is 0.
        delta: half the width of the smoothed step, in units of the logits, >= 0. For 0 the step is hard with H(0) = 1: a tie with a
            negative counts as an error.
        process_group: rank over the examples of all its processes, as in `rank_sort_loss`.

    Returns:
        The loss, a scalar in [0, 1], float64 for float64 logits and else float32. It is 0, with a zero gradient, if there is no
        positive. The gradient reaches `logits` in their own dtype.

    Raises:
        ValueError: shapes differ, logits are not floating point, a target is above 1, or a value is not finite that is not ignored.

    The host waits for the device at most three times a call, five with a process group; once more where
    ignored logits are not finite.
    """
    examples = select_examples(logits, targets, float(delta), process_group)
    if examples is None:
        return no_loss(logits)
    return ErrorDrivenUpdate.apply(logits, examples, *_error_and_update(examples)).squeeze(0)


@torch.no_grad()
def _error_and_update(examples: Examples) -> tuple[Tensor, Tensor, Tensor]:
    """Return the loss, float64 [1], what goes to the positives and what they hand on to the negatives, [1, P]."""
    p = examples.breakpoints.positives
    fp = examples.negatives.count(examples.logits)
    (num_above,) = PositivesAbove(examples.breakpoints).sum_over_others(torch.ones_like(p)[None])
    rank = 1 + num_above + fp

    # The precision at a recall is the best one at this recall or beyond it: of this positive, or of one scored lower.
    error = (fp / rank).cummin(0).values

    to_negative = torch.where(fp > 0, error / fp, 0.0)
    return error.mean()[None], -error[None] / len(p), to_negative[None] / len(p)


class APLoss(nn.Module):
    """`average_precision_loss` as a module without state; see there for shapes, ranges and errors."""

    def __init__(self, delta: float = 1.0):
        super().__init__()
        self.delta = delta

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        return average_precision_loss(logits, targets, delta=self.delta)

    def extra_repr(self) -> str:
        return f"delta={self.delta}"
