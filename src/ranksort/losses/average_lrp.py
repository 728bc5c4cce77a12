"""Average LRP (aLRP) Loss: Oksuz, Cam, Akbas, Kalkan, NeurIPS 2020 (arXiv 2009.13592).

The localisation-recall-precision error of a positive covers both tasks of a detector: among the examples scored above it, negatives
count 1 and positives their localisation error. Its mean is the sum of a classification part, which is trained by error-driven
updates, and a localisation part, which has a derivative with respect to the localisation errors.
"""

from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ._ranking import ErrorDrivenUpdate, Examples, gather, no_loss, select_examples
from .counting import converted
from .positives_above import PositivesAbove

_EPS = 1e-5


class AverageLRPOutput(NamedTuple):
    """The two parts of aLRP Loss, scalars >= 0; `L_aLRP = classification + localization`.

    The gradient of `classification` reaches only the logits, that of `localization` only the regression losses.

    Examples:
        >>> import torch
        >>> from ranksort import average_lrp_loss
        >>> losses = average_lrp_loss(torch.tensor([3.0, -3.0]), torch.tensor([1.0, 0.0]), torch.tensor([0.2]))
        >>> sum(losses).item()  # only the localisation error is left
        0.2
    """

    classification: Tensor
    localization: Tensor


def average_lrp_loss(
    logits: Tensor,
    targets: Tensor,
    regression_losses: Tensor,
    *,
    delta: float = 1.0,
    process_group: "dist.ProcessGroup | None" = None,
) -> AverageLRPOutput:
    """aLRP Loss, exact, in O((P + N) log P) time for P positives and N negatives.

    For each positive i with localisation error E_i, H the step smoothed over ± `delta` and x_ij = s_j - s_i:

        FP(i) = Σ_{j∈N} H(x_ij),  rank(i) = 1 + Σ_{j∈P, j≠i} H(x_ij) + FP(i)
        classification  ℓ_C(i) = FP(i) / rank(i)
        localisation    ℓ_L(i) = (E_i + Σ_{j∈P, s_j > s_i} E_j) / rank(i)

    and the losses are the means over i. The classifier is also held responsible for the localisation errors above i: with
    e(i) = (FP(i) + Σ_{j∈P, j≠i} H(x_ij) E_j) / rank(i) and where FP(i) > 1e-5, the update divided by P is -e(i) to positive i and
    Σ_i e(i) H(x_ij) / FP(i) to negative j.

    As in the authors' implementation, the step within ℓ_L is hard. Among positives of equal score it counts as H(0), 1/2 (1 for `delta`
    = 0), which is the mean over the possible orders.

    Args:
        logits: s, floating point, any shape. The whole tensor is ranked as one: pass all images of a batch together.
        targets: same shape. In (0, 1]: a positive; the value does not matter. 0: a negative. Below 0: ignored: it is not counted and
            its gradient is 0, even if the logit is -inf or NaN.
        regression_losses: E, floating point [P], >= 0, for example 1 - IoU, for the positives in the order of `targets[targets > 0]`.
        delta: half the width of the smoothed step, in units of the logits, >= 0. For 0 the step is hard with H(0) = 1.
        process_group: rank over the examples of all processes of this group, as in `rank_sort_loss`.

    Returns:
        `AverageLRPOutput(classification, localization)`, float64 for float64 logits (or regression losses), else float32. Both are 0,
        with a zero gradient, if there are no positives.

    Raises:
        ValueError: shapes differ, logits are not floating point, a target is above 1, there is not one regression loss for each
            positive or one is negative, or a value that is not ignored is not finite.

    The host waits for the device at most three times per call, five with a process group, and once more if ignored logits are not finite.

    Examples:
        >>> import torch
        >>> from ranksort import average_lrp_loss
        >>> logits = torch.tensor([3.0, 0.0, -3.0])
        >>> losses = average_lrp_loss(logits, torch.tensor([1.0, 0.0, 1.0]), regression_losses=torch.tensor([0.2, 0.6]))
        >>> losses.classification.item(), losses.localization.item()
        (0.1667, 0.2333)
    """
    examples = select_examples(logits, targets, float(delta), process_group, regression_losses=regression_losses)
    return _losses(logits, examples, regression_losses, delta, process_group)


def _losses(
    logits: Tensor,
    examples: Examples | None,
    regression_losses: Tensor,
    delta: float,
    process_group: "dist.ProcessGroup | None",
) -> AverageLRPOutput:
    losses = regression_losses.to(torch.promote_types(regression_losses.dtype, torch.float32))
    if examples is None:
        return AverageLRPOutput(no_loss(logits), losses.sum())

    with torch.no_grad():
        p = examples.breakpoints.positives
        errors = gather(converted(losses, p)[None], process_group)[0][0, examples.order]
        fp = examples.negatives.count(examples.logits)
        one_and_error = torch.stack([torch.ones_like(p), errors])
        num_above, error_above = PositivesAbove(examples.breakpoints).sum_over_others(one_and_error)
        rank = 1 + num_above + fp
        update = torch.where(fp > _EPS, (fp + error_above) / rank, 0.0)[None] / len(p)
        shares = torch.where(fp > _EPS, update / fp, 0.0)
        # The weight of E_j in the sum of ℓ_L: it counts in every ℓ_L(i) of a positive i scored below j.
        weight = _sum_at_or_below(p, 1 / rank, delta) / len(p)
    classification = ErrorDrivenUpdate.apply(logits, examples, (fp / rank).mean()[None], -update, shares).squeeze(0)
    localization = (losses * weight[examples.own].to(losses)).sum()
    elsewhere = (errors * weight).sum().to(losses) - localization.detach()
    return AverageLRPOutput(classification, localization + elsewhere)


def _sum_at_or_below(p: Tensor, weights: Tensor, delta: float) -> Tensor:
    """Return weights_j + Σ_{i≠j} [p_i < p_j] weights_i for every j, [P], with weight H(0) for the i with p_i = p_j; p ascends."""
    sums = nn.functional.pad(weights.cumsum(0), (1, 0))
    below, not_above = sums[torch.searchsorted(p, p)], sums[torch.searchsorted(p, p, right=True)]
    return below + (not_above - below + weights) / 2 if delta > 0 else not_above


class ALRPLoss(nn.Module):
    """aLRP Loss with the authors' self-balancing, which scales the localisation part to the value of the whole loss.

    Called like `average_lrp_loss` without `delta`, it returns the same with `localization` multiplied by `localization_weight`. That
    weight is initially 50. In training mode, after every `period` calls, it becomes the mean of (classification + localization) divided
    by the mean of localization over these calls, both unweighted. Calls without positives are not counted.

    The weight and its sums are buffers: they move with the module and are saved in checkpoints.

    Args:
        delta: as for `average_lrp_loss`.
        period: number of iterations; the default is an epoch of COCO in batches of 16.

    Examples:
        >>> import torch
        >>> from ranksort import ALRPLoss
        >>> loss = ALRPLoss(period=2)  # balance the losses every two calls
        >>> batch = torch.tensor([3.0, 0.0]), torch.tensor([0.0, 1.0]), torch.tensor([0.2])
        >>> loss(*batch).localization.item()  # 50 * 0.2 / 2
        5.0
        >>> loss(*batch).localization.item()  # balanced: equal to classification + unweighted localization
        0.6
    """

    localization_weight: Tensor
    loss_sums: Tensor
    iterations: Tensor

    def __init__(self, delta: float = 1.0, period: int = 7330):
        super().__init__()
        self.delta, self.period = delta, period
        self.register_buffer("localization_weight", torch.tensor(50.0))
        self.register_buffer("loss_sums", torch.zeros(2))  # classification, localization
        self.register_buffer("iterations", torch.tensor(0))

    def forward(
        self,
        logits: Tensor,
        targets: Tensor,
        regression_losses: Tensor,
        process_group: "dist.ProcessGroup | None" = None,
    ) -> AverageLRPOutput:
        examples = select_examples(
            logits, targets, float(self.delta), process_group, regression_losses=regression_losses
        )
        losses = _losses(logits, examples, regression_losses, self.delta, process_group)
        if self.training and examples is not None:
            self._count(torch.stack(losses).detach())
        # A copy of the weight, because the next call may change it before the backward pass.
        return AverageLRPOutput(losses.classification, self.localization_weight.clone() * losses.localization)

    def _count(self, losses: Tensor) -> None:
        self.loss_sums += losses
        self.iterations += 1
        is_over = self.iterations == self.period  # used to select, because branching on it would wait for the device
        localization = self.loss_sums[1]
        # In place, because DDP copies the buffers that it has seen at first from one process to the others.
        weight = torch.where(
            is_over & (localization > 0), self.loss_sums.sum() / localization, self.localization_weight
        )
        self.localization_weight.copy_(weight)
        self.loss_sums.masked_fill_(is_over, 0)
        self.iterations.masked_fill_(is_over, 0)

    def extra_repr(self) -> str:
        return f"delta={self.delta}, period={self.period}"
