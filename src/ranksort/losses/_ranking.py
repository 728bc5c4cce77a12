"""Common code of RS, AP and aLRP Loss besides counting: argument checks, the positives of all processes, and gradients."""

import math
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.functional import pad

from .counting import Breakpoints, NegativesAbove, converted, find, has_float64
from .not_finite import NotFinite

_SAMPLE = 1 << 13  # sample of logits to estimate the fraction in reach


class Examples(NamedTuple):
    """The examples of a batch. The P positives are those of all processes of the group.

    Attributes:
        logits: of this process, flat, float32 or float64 [A].
        breakpoints: of the positives, by ascending logit.
        qualities: targets of the positives, float64 [P].
        order: maps positives by ascending logit to their original order, process by process, int64 [P].
        negatives: negatives of this process.
        positive: positions of this process's positives among its logits, int64.
        own: which of the P positives these are.
        unread: the ignored examples, bool [A], for which `logits` has 0; None: `logits` has the original values.
    """

    logits: Tensor
    breakpoints: Breakpoints
    qualities: Tensor
    order: Tensor
    negatives: NegativesAbove
    positive: Tensor
    own: Tensor
    unread: Tensor | None


@torch.no_grad()
def select_examples(
    logits: Tensor, targets: Tensor, delta: float, group: "dist.ProcessGroup | None", **errors: Tensor
) -> Examples | None:
    """The examples of a batch, or None without positives. `errors`, one for each positive, are only checked.

    The host waits for the device at most three times: for the positions of the positives, for the numbers that the checks and the
    choice of the method need, and for the positions of either a few negatives in reach or of the ignored examples. A group adds two
    waits, and logits that are not finite, or so large that their sums would not be, add one.

    Raises:
        ValueError: shapes differ, logits are not floating point, `delta` is invalid, a target is above 1, an error is below 0, or a
            value is NaN or infinite, except for ignored logits; or the same in another process of the group.
    """
    try:
        local = _look_at(logits, targets, delta, errors)
        # Without a group, an invalid value is reported with the choice of the method, which saves a transfer.
        if group is not None:
            extremes = local.extremes.tolist()
            if _may_overflow(local, extremes):
                local = _without_ignored(local)
                extremes = local.extremes.tolist()
            _check_values(local.seen, extremes)
    except ValueError as error:
        if group is not None:  # otherwise the others would wait for this process
            _exchange_sizes(-2 if isinstance(error, NotFinite) else -1, group, logits.device)
        raise
    (p, qualities), own = gather(torch.stack([local.positives, local.qualities]), group)
    p, order = p.nan_to_num().sort()  # values that are not finite are reported below
    breakpoints = Breakpoints(p, delta)
    spread = _measure_spread(local, breakpoints)
    if group is None and _may_overflow(local, spread.extremes):
        local = _without_ignored(local)
        spread = _measure_spread(local, breakpoints)
    _check_values(local.seen, spread.extremes)
    if len(p) == 0:
        return None
    negatives = NegativesAbove(
        breakpoints,
        local.logits,
        local.targets,
        local.places,
        ignored=spread.any_ignored,
        edges_among=spread.edges_among,
        reach=spread.reach,
        group=group,
    )
    place = torch.empty_like(order).scatter_(0, order, torch.arange(len(p), device=p.device))
    return Examples(
        local.logits, breakpoints, qualities[order], order, negatives, local.places, place[own], local.unread
    )


class _Local(NamedTuple):
    """The batch of this process. Tensors with the size of its positives are float64, on a device that supports it.

    Attributes:
        logits: flat, [A].
        targets: flat, [A].
        places: positions of the positives among them, int64.
        positives: logits of the positives.
        qualities: targets of the positives.
        seen: tensors that have to be finite and in range, by name; none is empty.
        extremes: minimum and maximum of each of these.
        unread: see `Examples`.
    """

    logits: Tensor
    targets: Tensor
    places: Tensor
    positives: Tensor
    qualities: Tensor
    seen: dict[str, Tensor]
    extremes: Tensor
    unread: Tensor | None = None


def _look_at(logits: Tensor, targets: Tensor, delta: float, errors: dict[str, Tensor]) -> _Local:
    """Find the positives, and the extremes of everything. The host waits only for the number of positives."""
    check_arguments(logits, targets, delta)
    s, y = _flat(logits), targets.reshape(-1).contiguous()
    places = find(y, lambda target: target > 0)
    for name, x in errors.items():
        if x.shape != places.shape:
            _check_values({"targets": y}, [v.item() for v in y.aminmax()] if len(y) else [])
            raise ValueError(
                f"{name} needs one value for each of the {len(places)} positive targets, in their order; "
                f"got shape {tuple(x.shape)}"
            )
    device = s.device if has_float64(s.device) else torch.device("cpu")
    p, qualities = (x.index_select(0, places).to(device).to(torch.float64) for x in (s, y))
    seen = {name: x for name, x in {"logits": s, "targets": y, **errors}.items() if x.numel() > 0}
    return _Local(s, y, places, p, qualities, seen, _extremes(seen, p))


def _extremes(seen: dict[str, Tensor], like: Tensor) -> Tensor:
    return torch.stack(
        [like.new_zeros(()), *(converted(x, like) for values in seen.values() for x in values.aminmax())]
    )[1:]


def _may_overflow(local: _Local, extremes: list[float]) -> bool:
    """Whether logits, or sums of their differences, may be infinite or NaN, which would remain even in a product with 0."""
    logits = local.logits
    return len(logits) > 0 and not (extremes[1] - extremes[0]) * len(logits) <= torch.finfo(logits.dtype).max


def _without_ignored(local: _Local) -> _Local:
    """A copy with 0 for ignored logits, whose values must not have any effect."""
    unread = local.targets < 0
    logits = local.logits.masked_fill(unread, 0)
    seen = local.seen | {"logits": logits}
    return local._replace(logits=logits, seen=seen, extremes=_extremes(seen, local.positives), unread=unread)


class _Spread(NamedTuple):
    """Position of this process's logits relative to the breakpoints, as plain numbers.

    Attributes:
        edges_among: how many edges are below all logits, and below the highest of them.
        reach: the fraction of the logits that are in reach of a positive, estimated from a sample.
        extremes: see `_Local`.
        any_ignored: whether there are targets below 0.
    """

    edges_among: tuple[int, int]
    reach: float
    extremes: list[float]
    any_ignored: bool


def _measure_spread(local: _Local, breakpoints: Breakpoints) -> _Spread:
    """Measure what the checks and the choice of the method need, in one transfer to the host."""
    s, edges = local.logits, breakpoints.edges
    if len(s) == 0:
        return _Spread((0, 0), 0.0, [], False)
    below = torch.bucketize(local.extremes[:2], edges, right=True)
    in_reach = s[:: len(s) // _SAMPLE | 1] >= pad(edges, (0, 1), value=math.inf)[0].to(s)
    first, last, reach, *known = torch.cat(
        [below, converted(in_reach.to(s).mean(), edges)[None], local.extremes]
    ).tolist()
    return _Spread((int(first), int(last)), reach, known, any_ignored=known[2] < 0)


def _flat(logits: Tensor) -> Tensor:
    """The logits as one row, in the dtype that losses and updates are computed in: float32 or float64."""
    return logits.detach().reshape(-1).contiguous().to(torch.promote_types(logits.dtype, torch.float32))


def check_arguments(logits: Tensor, targets: Tensor, delta: float) -> None:
    """Raise ValueError if shapes differ, logits are not floating point, or `delta` is invalid."""
    if logits.shape != targets.shape:
        raise ValueError(
            f"logits and targets must have the same shape, got {tuple(logits.shape)} and {tuple(targets.shape)}"
        )
    if not logits.is_floating_point():
        raise ValueError(f"logits must be floating point scores before the sigmoid, got {logits.dtype}")
    if not 0 <= delta < math.inf:
        raise ValueError(
            f"delta must be 0 or more, got {delta}: it is half the width of the smoothed step, a finite number"
        )


def _check_values(seen: dict[str, Tensor], extremes: list[float]) -> None:
    """Raise ValueError according to the minimum and maximum of each tensor, in turn in `extremes`."""
    for (name, values), least, greatest in zip(seen.items(), extremes[::2], extremes[1::2], strict=bool(extremes)):
        if not (math.isfinite(least) and math.isfinite(greatest)):
            raise NotFinite(
                f"{name} must be finite, {int((~values.isfinite()).sum())} of {values.numel()} are NaN or infinite: "
                "look for a diverged model (lower the learning rate, clip gradients) or an overflow in half precision"
            )
        if name == "logits" and greatest - least > torch.finfo(values.dtype).max:
            raise NotFinite(f"logits from {least:.3g} to {greatest:.3g} are too far apart to be subtracted")
        if name == "targets" and greatest > 1:
            raise ValueError(f"targets are qualities in (0, 1], 0 or negative (ignored); the largest is {greatest:.9g}")
        if name not in ("logits", "targets") and least < 0:
            raise ValueError(
                f"{name} must be 0 or more, the smallest is {least:.6g}: "
                "pass an error like 1 - IoU, not the IoU or its negative"
            )


def gather(values: Tensor, group: "dist.ProcessGroup | None") -> tuple[Tensor, slice]:
    """Concatenate [K, n] over the processes of a group, where n may differ; returns [K, Σ n] and which are this process's own."""
    if group is None:
        return values, slice(0, values.shape[1])
    sizes = _exchange_sizes(values.shape[1], group, values.device)
    if min(sizes) < 0:  # a training loop skips a batch that is not finite in all processes or in none
        kind = ValueError if -1 in sizes else NotFinite
        raise kind("another process of the group was given input that it cannot rank; its own message says what")
    padded = pad(values, (0, max(sizes) - values.shape[1]))
    parts = [torch.empty_like(padded) for _ in sizes]
    dist.all_gather(parts, padded, group=group)
    start = sum(sizes[: dist.get_rank(group)])
    return torch.cat([x[:, :n] for x, n in zip(parts, sizes, strict=True)], 1), slice(start, start + values.shape[1])


def _exchange_sizes(size: int, group: "dist.ProcessGroup", device: torch.device) -> list[int]:
    sizes = torch.empty(dist.get_world_size(group), dtype=torch.int64, device=device)
    dist.all_gather_into_tensor(sizes, sizes.new_full((1,), size), group=group)
    return sizes.tolist()


class ErrorDrivenUpdate(torch.autograd.Function):
    """Losses with given gradients: `ErrorDrivenUpdate.apply(logits, examples, losses, to_positive, shares)`.

    Ranking errors are counts without a useful derivative. The update that each example gets instead is due to Chen et al. (2019): of
    loss k, `to_positive[k, i]` goes to positive i and Σ_i shares[k, i] H(x_ij) to negative j. All three are float64: [K], [K, P], [K, P].
    """

    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, examples: Examples, losses: Tensor, to_positive: Tensor, shares: Tensor
    ) -> Tensor:
        # When saved, logits are freed after the backward pass, and autograd notices if they were changed before it.
        ctx.save_for_backward(logits)
        ctx.negatives, ctx.positive, ctx.unread = examples.negatives, examples.positive, examples.unread
        ctx.to_positive, ctx.shares = to_positive[:, examples.own], shares
        return losses.to(examples.logits)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grads: Tensor) -> tuple[Tensor, None, None, None, None]:
        (logits,) = ctx.saved_tensors
        grads = converted(grads, ctx.shares)
        s = _flat(logits) if ctx.unread is None else _flat(logits).masked_fill(ctx.unread, 0)
        update = ctx.negatives.spread(grads @ ctx.shares, s)
        update.index_copy_(0, ctx.positive, (grads @ ctx.to_positive).to(update))
        return update.to(logits.dtype).view(logits.shape), None, None, None, None


def no_loss(logits: Tensor) -> Tensor:
    """The loss without positives: 0, with a zero gradient, so that the graph stays connected."""
    return logits.reshape(-1)[:0].sum(dtype=torch.promote_types(logits.dtype, torch.float32))
