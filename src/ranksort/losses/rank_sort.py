"""Rank & Sort (RS) Loss: Oksuz, Cam, Akbas, Kalkan, ICCV 2021 (arXiv 2107.11669), section 3.

RS Loss trains a classifier by ranking. Every positive should be scored above every negative (*ranking*), and the positives in the
order of their localisation quality (*sorting*). Both errors are counts, so they have no useful derivative. Instead, each positive
passes its error on, as an *error-driven update*, to the examples that cause it by being scored above it.
"""

from types import ModuleType
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ._ranking import ErrorDrivenUpdate, Examples, check_arguments, no_loss, select_examples
from .positives_above import WorsePositivesAbove

_EPS = 1e-10


class RankSortOutput(NamedTuple):
    """The two parts of RS Loss, scalars in [0, 1]; `L_RS = ranking + sorting`. Each carries its own gradient.

    Examples:
        >>> import torch
        >>> from ranksort import rank_sort_loss
        >>> losses = rank_sort_loss(torch.tensor([0.0, 1.0]), torch.tensor([1.0, 0.0]))  # the positive is below the negative
        >>> losses.ranking.item(), losses.sorting.item()
        (0.6667, 0.0)
    """

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
            0: a negative. Below 0: ignored: it is not counted and its gradient is 0, even if the logit is -inf or NaN.
        delta: half the width of the smoothed step, in units of the logits, >= 0.
        process_group: rank over the examples of all processes of this group, exactly. All of them have to call it, and get the same
            losses; the gradients are those of their own examples. DDP averages the processes' gradients, so multiply the losses by the
            number of processes. None: rank over the examples of this process only.

    Returns:
        `RankSortOutput(ranking, sorting)`, means over the positives, float64 for float64 logits, else float32. Both are 0, with a zero
        gradient, if there are no positives. The gradient has the dtype of `logits`.

    Raises:
        ValueError: shapes differ, logits are not floating point, a target is above 1, or a value that is not ignored is not finite.

    The host waits for the device at most three times per call, five with a process group, and once more if ignored logits are not
    finite. On CUDA with Triton and without a process group, `kernels.py` computes the losses, unless
    `torch.use_deterministic_algorithms` is set.

    Examples:
        >>> import torch
        >>> from ranksort import rank_sort_loss
        >>> logits = torch.tensor([2.0, 0.0, 1.0], requires_grad=True)
        >>> targets = torch.tensor([0.6, 0.9, 0.0])  # two positives with their IoUs, one negative
        >>> ranking, sorting = rank_sort_loss(logits, targets)
        >>> ranking.item(), sorting.item()
        (0.2, 0.1)
        >>> (ranking + sorting).backward()
        >>> logits.grad  # descent raises the better positive, and lowers the negative and the positive above it
        tensor([ 0.1000, -0.3000,  0.2000])
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
    """The module `kernels`, if it can be used; its sums depend on the order in which a GPU adds, by about one part in 10^15."""
    if logits.device.type != "cuda" or torch.are_deterministic_algorithms_enabled() or torch.compiler.is_compiling():
        return None
    try:
        from . import kernels
    except ImportError:  # PyTorch includes Triton only on Linux
        return None
    return kernels if kernels.work_on(logits.device) else None


@torch.no_grad()
def _errors_and_updates(examples: Examples) -> tuple[Tensor, Tensor, Tensor]:
    """L_R and L_S, float64 [2], the updates of the positives, and the updates that they pass on to the negatives, [2, P]."""
    rank_positive, sorting, handed_on = _sorting(examples)
    fp = examples.negatives.count(examples.logits)
    rank = rank_positive + fp
    ranking = fp / rank

    losses = torch.stack([ranking.mean(), sorting.mean()])
    to_positive = torch.stack([-ranking, handed_on - sorting])
    to_negative = torch.stack([1 / rank, torch.zeros_like(rank)])  # ℓ_R(i) / FP(i) is 1 / rank(i)
    return losses, to_positive / len(rank), to_negative / len(rank)


def _sorting(examples: Examples) -> tuple[Tensor, Tensor, Tensor]:
    """For each positive its rank among the positives, its sorting error, and the errors it receives from others, [P]."""
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
    """`rank_sort_loss` as a module without state; see there for shapes, ranges and errors.

    Examples:
        >>> import torch
        >>> from ranksort import RankSortLoss
        >>> loss = RankSortLoss(delta=0.5)
        >>> sum(loss(torch.tensor([3.0, 2.0, -2.0]), torch.tensor([0.9, 0.6, 0.0]))).item()  # perfectly ranked and sorted
        0.0
    """

    def __init__(self, delta: float = 0.5):
        super().__init__()
        self.delta = delta

    def forward(self, logits: Tensor, targets: Tensor) -> RankSortOutput:
        return rank_sort_loss(logits, targets, delta=self.delta)

    def extra_repr(self) -> str:
        return f"delta={self.delta}"
