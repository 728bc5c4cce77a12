"""AP Loss: Chen, Li, Lin et al., CVPR 2019 (arXiv 1904.06373), section 3, with interpolated precision.

The loss is 1 - AP, with the precision measured at each positive. The precision error of a positive is passed on, as an error-driven
update, to the negatives scored above it.
"""

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ._ranking import ErrorDrivenUpdate, Examples, no_loss, select_examples
from .positives_above import PositivesAbove


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
        targets: same shape. In (0, 1]: a positive; the value does not matter. 0: a negative. Below 0: ignored: it is not counted and
            its gradient is 0, even if the logit is -inf or NaN.
        delta: half the width of the smoothed step, in units of the logits, >= 0. For 0 the step is hard with H(0) = 1: a tie with a
            negative counts as an error.
        process_group: rank over the examples of all processes of this group, as in `rank_sort_loss`.

    Returns:
        The loss, a scalar in [0, 1], float64 for float64 logits, else float32. It is 0, with a zero gradient, if there are no
        positives. The gradient has the dtype of `logits`.

    Raises:
        ValueError: shapes differ, logits are not floating point, a target is above 1, or a value that is not ignored is not finite.

    The host waits for the device at most three times per call, five with a process group, and once more if ignored logits are not finite.

    Examples:
        >>> import torch
        >>> from ranksort import average_precision_loss
        >>> logits = torch.tensor([3.0, 1.0, -1.0, -3.0])
        >>> average_precision_loss(logits, torch.tensor([1.0, 0.0, 1.0, 0.0])).item()  # 1 - (1 / 1 + 2 / 3) / 2
        0.1667
    """
    examples = select_examples(logits, targets, float(delta), process_group)
    if examples is None:
        return no_loss(logits)
    return ErrorDrivenUpdate.apply(logits, examples, *_error_and_update(examples)).squeeze(0)


@torch.no_grad()
def _error_and_update(examples: Examples) -> tuple[Tensor, Tensor, Tensor]:
    """The loss, float64 [1], the updates of the positives, and the updates that they pass on to the negatives, [1, P]."""
    p = examples.breakpoints.positives
    fp = examples.negatives.count(examples.logits)
    (num_above,) = PositivesAbove(examples.breakpoints).sum_over_others(torch.ones_like(p)[None])
    rank = 1 + num_above + fp

    # The interpolated precision at a recall is the highest at this recall or beyond: of this positive or one scored lower.
    error = (fp / rank).cummin(0).values

    to_negative = torch.where(fp > 0, error / fp, 0.0)
    return error.mean()[None], -error[None] / len(p), to_negative[None] / len(p)


class APLoss(nn.Module):
    """`average_precision_loss` as a module without state; see there for shapes, ranges and errors.

    Examples:
        >>> import torch
        >>> from ranksort import APLoss
        >>> APLoss()(torch.tensor([3.0, -3.0]), torch.tensor([0.0, 1.0])).item()  # precision 1 / 2 at the only positive
        0.5
    """

    def __init__(self, delta: float = 1.0):
        super().__init__()
        self.delta = delta

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        return average_precision_loss(logits, targets, delta=self.delta)

    def extra_repr(self) -> str:
        return f"delta={self.delta}"
