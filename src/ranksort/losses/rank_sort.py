"""Rank & Sort (RS) Loss: Oksuz, Cam, Akbas, Kalkan, ICCV 2021 (arXiv 2107.11669), section 3.

RS Loss trains a classifier by ranking. Every positive should be scored above every negative (*ranking*), and the positives in the
order of their localisation quality (*sorting*). Both errors are counts, so they have no useful derivative. Instead each positive
hands its error, as *error-driven update*, to those examples that cause it by being scored above it.
"""

from types import ModuleType
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ._ranking import ErrorDrivenUpdate, Examples, check_arguments, no_loss, select_examples
from .counting import WorsePositivesAbove

_EPS = 1e-10


class RankSortOutput(NamedTuple):
    """The two parts of RS Loss, scalars in [0, 1]; `L_RS = ranking + sorting`. Each carries its own gradient."""

    ranking: Tensor
    sorting: Tensor


def rank_sort_loss(
    logits: Tensor, targets: Tensor, *, delta: float = 0.5, process_group: "dist.ProcessGroup | None" = None
) -> RankSortOutput:
    """Rank & Sort Loss, exact, in O((P + N) log P + P log² P) time for P positives and N negatives.

    For each positive i, with H the step smoothed over ± `delta` and x_ij = s_j - s_i:

        ranking error  ℓ_R(i) = FP(i) / rank(i),  FP(i) = Σ_{j∈N} H(x_ij),  rank(i) = FP(i) + Σ_{j∈P} H(x_ij)
        sorting error  ℓ_S(i) = mean of 1 - y_j over the positives above i, minus the same over those of them with y_j >= y_i

    Args:
        logits: s, floating point, any shape. The whole tensor is ranked as one: pass all images of a batch together.
        targets: y, same shape. In (0, 1]: a positive and its localisation quality (IoU or Dice of its prediction, without gradient).
            0: a negative. Below 0: ignored: whatever the logit is, even -inf or NaN, it is not counted and its gradient is 0.
        delta: half the width of the smoothed step, in units of the logits, >= 0.
        process_group: rank over the examples of all its processes, exactly. Each must call, and gets the same losses; the gradients
            are those of its own examples. Since DDP takes the mean of the processes' gradients, multiply the losses by their number.
            None: over this process's alone.

    Returns:
        `RankSortOutput(ranking, sorting)`, means over the positives, float64 for float64 logits and else float32. Both are 0, with a
        zero gradient, if there is no positive. The gradient reaches `logits` in their own dtype.

    Raises:
        ValueError: shapes differ, logits are not floating point, a target is above 1, or a value is not finite that is not ignored.

    The host waits for the device at most three times a call, five with a process group; once more where
    ignored logits are not finite. On CUDA, with Triton and without a process group, it is `kernels.py` that computes the losses, unless
    `torch.use_deterministic_algorithms` is set.
    """
    kernels = _kernels_for(logits) if process_group is None else None
    if kernels is not None:
        check_arguments(logits, targets, delta)
        losses = kernels.rank_sort(logits, targets, float(delta))
        if losses is not None:
            return RankSortOutput(*losses)
    examples = select_examples(logits, targets, float(delta), process_group)
    if examples is None:
        return RankSortOutput(no_loss(logits), no_loss(logits))
    return RankSortOutput(*ErrorDrivenUpdate.apply(logits, examples, *_errors_and_updates(examples)))


def _kernels_for(logits: Tensor) -> ModuleType | None:
    """The module `kernels`, where it is of use; its sums depend on the order in which a GPU adds them up, by a part in 10^15 or so."""
    if logits.device.type != "cuda" or torch.are_deterministic_algorithms_enabled() or torch.compiler.is_compiling():
        return None
    try:
        from . import kernels
    except ImportError:  # Triton comes with PyTorch on Linux alone
        return None
    return kernels if kernels.work_on(logits.device) else None


@torch.no_grad()
def _errors_and_updates(examples: Examples) -> tuple[Tensor, Tensor, Tensor]:
    """Return L_R and L_S, float64 [2], and of each what goes to the positives and what they hand on to the negatives, [2, P]."""
    rank_positive, sorting, handed_on = _sorting(examples)
    fp = examples.negatives.count(examples.logits)
    rank = rank_positive + fp
    ranking = fp / rank

    losses = torch.stack([ranking.mean(), sorting.mean()])
    to_positive = torch.stack([-ranking, handed_on - sorting])
    to_negative = torch.stack([1 / rank, torch.zeros_like(rank)])  # ℓ_R(i) / FP(i) is 1 / rank(i)
    return losses, to_positive / len(rank), to_negative / len(rank)


def _sorting(examples: Examples) -> tuple[Tensor, Tensor, Tensor]:
    """Return of each positive its rank among the positives, its sorting error, and what it is handed of others' errors, [P]."""
    quality = examples.qualities
    one_and_error = torch.stack([torch.ones_like(quality), 1 - quality])
    worse_above = WorsePositivesAbove(examples.breakpoints, quality)
    rank_positive, error_sum = worse_above.positives.sum(one_and_error)
    worse, worse_error_sum = worse_above.sum(one_and_error)

    current = error_sum / rank_positive
    target = (error_sum - worse_error_sum) / (rank_positive - worse)
    sorting = torch.where(worse > _EPS, current - target, 0.0)
    return rank_positive, sorting, worse_above.spread(sorting / worse.clamp(min=_EPS))


class RankSortLoss(nn.Module):
    """`rank_sort_loss` as a module without state; see there for shapes, ranges and errors."""

    def __init__(self, delta: float = 0.5):
        super().__init__()
        self.delta = delta

    def forward(self, logits: Tensor, targets: Tensor) -> RankSortOutput:
        return rank_sort_loss(logits, targets, delta=self.delta)

    def extra_repr(self) -> str:
        return f"delta={self.delta}"
