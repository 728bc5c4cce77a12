"""What RS, AP and aLRP Loss share besides counting: the look at their arguments, the processes' positives, the kind of gradient."""

import math
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.functional import pad

from .counting import Breakpoints, NegativesAbove, find, has_float64

_SAMPLE = 1 << 16  # logits which tell the share in reach


class Examples(NamedTuple):
    """A batch as the losses see it. The P positives are those of all processes of the group.

    Attributes:
        breakpoints: of the positives, by rising logit.
        qualities: targets of the positives, float64 [P].
        order: the positives as they come, process by process, from those by rising logit, int64 [P].
        negatives: of this process.
        positive: where this process has its positives in the flattened batch, int64.
        own: which of the P these are.
    """

    breakpoints: Breakpoints
    qualities: Tensor
    order: Tensor
    negatives: NegativesAbove
    positive: Tensor
    own: Tensor


@torch.no_grad()
def select_examples(
    logits: Tensor, targets: Tensor, delta: float, group: "dist.ProcessGroup | None", **errors: Tensor
) -> Examples | None:
    """Returns the examples of a batch, or None where there is no positive. `errors` are checked and nothing else.

    The host waits for the device three times at most: for the places of the positives, for what the checks and the choice of the
    method need to know, and for the places either of few negatives in reach or of all that is ignored. A group costs one more.

    Raises:
        ValueError: where shapes differ, logits are not floating point, `delta` is no width, a target is above 1, an error is below
            0, or a value is NaN or infinite.
    """
    if logits.shape != targets.shape:
        raise ValueError(f"logits and targets need one shape, got {tuple(logits.shape)} and {tuple(targets.shape)}")
    if not logits.is_floating_point():
        raise ValueError(f"logits must be floating point scores before the sigmoid, got {logits.dtype}")
    if not 0 <= delta < math.inf:
        raise ValueError(
            f"delta must be 0 or more, got {delta}: it is half the width of the smoothed step, a finite number"
        )
    s = logits.reshape(-1).contiguous().to(torch.promote_types(logits.dtype, torch.float32))
    y = targets.reshape(-1).contiguous()
    positive = find(y, lambda target: target > 0)
    device = s.device if has_float64(s.device) else torch.device("cpu")
    mine = torch.stack([x.index_select(0, positive).to(device, torch.float64) for x in (s, y)])
    (p, qualities), own = gather(mine, group)
    p, order = p.nan_to_num().sort()  # what is not finite is reported below
    breakpoints = Breakpoints(p, delta)

    # All that the host has to know comes in one transfer: extremes for the checks, how many edges are below the logits and below the
    # highest of them, and which share of them is in reach.
    seen = {name: x for name, x in {"logits": s, "targets": y, **errors}.items() if x.numel() > 0}
    facts = [torch.stack([x for values in seen.values() for x in values.aminmax()]).to(p)] if seen else []
    if len(s) > 0:
        in_reach = s[:: len(s) // _SAMPLE | 1] >= pad(breakpoints.edges, (0, 1), value=math.inf)[0].to(s)
        facts += [torch.bucketize(facts[0][:2], breakpoints.edges, right=True), in_reach.to(s).mean().to(p)[None]]
    *extremes, first, last, reach = torch.cat(facts).tolist() if facts else (0.0, 0.0, 0.0)
    for (name, values), *pair in zip(seen.items(), extremes[::2], extremes[1::2], strict=True):
        if not all(map(math.isfinite, pair)):
            raise ValueError(
                f"{name} must be finite, {int((~values.isfinite()).sum())} of {values.numel()} are NaN or infinite: "
                "look for a diverged model (lower the learning rate, clip gradients) or an overflow in half precision"
            )
        if name in errors and pair[0] < 0:
            raise ValueError(
                f"{name} must be 0 or more, the smallest is {pair[0]:.6g}: "
                "pass an error like 1 - IoU, not the IoU or its negative"
            )
    if "targets" in seen and extremes[3] > 1:
        raise ValueError(f"targets are qualities in (0, 1], 0 or negative (ignored); the largest is {extremes[3]:.6g}")
    if len(p) == 0:
        return None

    ignored = "targets" in seen and extremes[2] < 0
    negatives = NegativesAbove(
        breakpoints, s, y, positive, ignored=ignored, edges_among=(int(first), int(last)), reach=reach, group=group
    )
    place = torch.empty_like(order).scatter_(0, order, torch.arange(len(p), device=device))
    return Examples(breakpoints, qualities[order], order, negatives, positive, place[own])


def gather(values: Tensor, group: "dist.ProcessGroup | None") -> tuple[Tensor, slice]:
    """Joins [K, n] of this process with those of the others of a group, n may differ; returns [K, Σ n] and which are its own."""
    if group is None:
        return values, slice(0, values.shape[1])
    size, own_rank = values.shape[1], dist.get_rank(group)
    sizes = values.new_empty(dist.get_world_size(group), dtype=torch.int64)
    dist.all_gather_into_tensor(sizes, torch.tensor([size], device=values.device), group=group)
    counts = sizes.tolist()
    padded = values.new_zeros(len(values), max(counts))
    padded[:, :size] = values
    parts = [torch.empty_like(padded) for _ in counts]
    dist.all_gather(parts, padded, group=group)
    start = sum(counts[:own_rank])
    return torch.cat([x[:, :n] for x, n in zip(parts, counts, strict=True)], 1), slice(start, start + size)


class ErrorDrivenUpdate(torch.autograd.Function):
    """Losses whose gradients are given: `ErrorDrivenUpdate.apply(logits, examples, losses, to_positive, shares)`.

    Ranking errors are counts without a useful derivative. The update which each example gets instead is due to Chen et al. (2019): of
    loss k, `to_positive[k, i]` goes to positive i and Σ_i shares[k, i] H(x_ij) to negative j. All three are float64: [K], [K, P], [K, P].
    """

    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, examples: Examples, losses: Tensor, to_positive: Tensor, shares: Tensor
    ) -> Tensor:
        # The examples refer to the logits; saving these makes autograd notice where they were changed meanwhile.
        ctx.save_for_backward(logits)
        ctx.examples, ctx.to_positive, ctx.shares = examples, to_positive, shares
        return losses.to(examples.negatives.logits)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grads: Tensor) -> tuple[Tensor, None, None, None, None]:
        (logits,) = ctx.saved_tensors
        examples, grads = ctx.examples, grads.to(ctx.shares)
        update = examples.negatives.spread(grads @ ctx.shares)
        update.index_copy_(0, examples.positive, (grads @ ctx.to_positive)[examples.own].to(update))
        return update.to(logits.dtype).view(logits.shape), None, None, None, None


def no_loss(logits: Tensor) -> Tensor:
    """The loss without positives: 0, with a gradient of zeros, so that the graph stays connected."""
    return logits.reshape(-1)[:0].sum(dtype=torch.promote_types(logits.dtype, torch.float32))
