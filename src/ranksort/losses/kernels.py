"""RS Loss on a GPU in a few Triton kernels, where launching operators takes longer than computing.

The plain path (`_ranking.py`, `counting.py`) takes about 300 operators, most of them on tensors of size P: several milliseconds on a
GPU. Here, work of size N is one kernel forward and one backward, and pairs of positives are computed one by one, as in the equations:

    _sort        the positives by ascending logit, and all their breakpoints
    _count       how many negatives are in each interval between neighbouring breakpoints s_i ± δ, and the sum of their distances to its
                 lower end
    _errors      the ranking and sorting error of each positive, from these counts and from the other positives
    _hand_on     the sorting errors that each positive receives from better ones
    _lines       value and slope, on each interval, of the updates of negatives: Σ_i weights_i H(s_j - s_i)
    _update      the gradient

All sums are in float64 and in the order of the logits, so that entries out of reach of a step are skipped. Input that the plain path
would refuse or treat specially is only detected here, and left to the plain path.
"""

import functools
import struct
import warnings
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

MOST_POSITIVES = 1 << 15  # with more positives, pairs take longer than the operators of the plain path
_BLOCK = 1024  # logits for each program
_ROWS, _COLUMNS = 16, 128  # a program computes sums for this many rows, over this many columns at a time
_COPIES, _MOST_BINS = 64, 1 << 21  # sums into a single place have to wait for one another


@triton.jit
def _step(x, scale, HARD: tl.constexpr):
    """H(x), where `scale` is 1 / 2δ; HARD: δ is 0."""
    if HARD:
        return (x >= 0).to(tl.float64)
    else:
        return tl.minimum(tl.maximum(x * scale + 0.5, 0.0), 1.0)


@triton.jit
def _double(high, low):
    """A float64 number, passed to Triton as two float32 numbers."""
    return tl.full((), 0.0, tl.float64) + high + low


@triton.jit
def _cast(x, dtype: tl.constexpr):
    """Convert between half precision and float64 through float32."""
    if x.dtype == dtype:
        return x
    return x.to(tl.float32).to(dtype)


@triton.jit
def _interval(x, edges, number, highest, BLOCK: tl.constexpr):
    """How many of the edges are at or below x, by binary search; `highest` is the largest power of 2 up to their number."""
    found = tl.zeros([BLOCK], tl.int32)
    width = highest
    while width > 0:
        probe = found + width
        edge = tl.load(edges + probe - 1, mask=probe <= number, other=float("inf"))
        found = tl.where((probe <= number) & (edge <= x), probe, found)
        width = width // 2
    return found


@triton.jit(do_not_specialize=["positives", "delta", "delta_rest"])
def _sort(
    logits, targets, places, p, quality, place_of, begins, ends, edges, positives, delta, delta_rest,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    i = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    delta = _double(delta, delta_rest)
    own = i < positives
    place = tl.load(places + i, mask=own, other=0)
    p_i = _cast(tl.load(logits + place, mask=own, other=0.0), tl.float64)
    begin, end = p_i - delta, p_i + delta
    lower = tl.zeros([ROWS, COLUMNS], tl.int32)
    ends_below = tl.zeros([ROWS, COLUMNS], tl.int32)
    begins_below = tl.zeros([ROWS, COLUMNS], tl.int32)
    for start in range(0, positives, COLUMNS):
        j = start + tl.arange(0, COLUMNS)
        other = j < positives
        p_j = _cast(tl.load(logits + tl.load(places + j, mask=other, other=0), mask=other, other=0.0), tl.float64)
        is_lower = (p_j[None, :] < p_i[:, None]) | ((p_j[None, :] == p_i[:, None]) & (j[None, :] < i[:, None]))
        lower += (other[None, :] & is_lower).to(tl.int32)
        ends_below += (other[None, :] & (p_j[None, :] + delta < begin[:, None])).to(tl.int32)
        begins_below += (other[None, :] & (p_j[None, :] - delta <= end[:, None])).to(tl.int32)
    row = tl.sum(lower, 1)
    tl.store(p + row, p_i, mask=own)
    tl.store(quality + row, _cast(tl.load(targets + place, mask=own, other=0.0), tl.float64), mask=own)
    tl.store(place_of + row, place, mask=own)
    tl.store(begins + row, begin, mask=own)
    tl.store(ends + row, end, mask=own)
    # Both lists are sorted: the position among all edges is that in the own list plus that in the other list.
    tl.store(edges + row + tl.sum(ends_below, 1), begin, mask=own)
    tl.store(edges + row + tl.sum(begins_below, 1), end, mask=own)


@triton.jit(do_not_specialize=["size", "number", "highest", "copies"])
def _count(logits, targets, edges, totals, unusual, size, number, highest, copies, BLOCK: tl.constexpr):
    program = tl.program_id(0)
    place = program.to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = place < size
    x = _cast(tl.load(logits + place, mask=inside, other=0.0), tl.float64)
    target = _cast(tl.load(targets + place, mask=inside, other=-1.0), tl.float64)
    usual = (tl.abs(x) < 1e100) & (tl.abs(target) < 1e100) & (target <= 1)  # false for NaN
    if tl.max((inside & (usual == 0)).to(tl.int32), 0) > 0:
        tl.store(unusual, 1.0)

    interval = _interval(x, edges, number, highest, BLOCK)
    counted = inside & usual & (target == 0) & (interval > 0)  # below all edges no step has started to rise
    lower = tl.load(edges + interval - 1, mask=counted, other=0.0)
    distance = tl.where(counted & (interval < number), x - lower, 0.0)  # above all edges every step has risen
    number_of = totals + (program % copies).to(tl.int64) * 2 * (number + 1)
    sum_of = number_of + number + 1
    first = tl.min(tl.where(counted, interval, number), 0)
    last = tl.max(tl.where(counted, interval, 0), 0)
    if first == last:  # as before training
        tl.atomic_add(number_of + first, tl.sum(counted.to(tl.float64), 0))
        tl.atomic_add(sum_of + first, tl.sum(distance, 0))
    elif first < last:
        tl.atomic_add(number_of + interval, counted.to(tl.float64), mask=counted)
        tl.atomic_add(sum_of + interval, distance, mask=counted)


@triton.jit(do_not_specialize=["positives", "scale", "scale_rest"])
def _errors(
    p, quality, begins, ends, edges, totals, out, positives, scale, scale_rest,
    HARD: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    i = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    scale = _double(scale, scale_rest)
    own = i < positives
    p_i = tl.load(p + i, mask=own, other=0.0)[:, None]
    y_i = tl.load(quality + i, mask=own, other=0.0)[:, None]
    begin = tl.load(begins + i, mask=own, other=0.0)[:, None]
    end = tl.load(ends + i, mask=own, other=0.0)[:, None]

    number = 2 * positives
    fp = tl.zeros([ROWS, COLUMNS], tl.float64)
    lowest = tl.load(begins + tl.program_id(0) * ROWS)
    for start in range(0, number, COLUMNS):
        if tl.load(edges + tl.minimum(start + COLUMNS, number) - 1) >= lowest:
            k = start + tl.arange(0, COLUMNS)
            known = k < number
            edge = tl.load(edges + k, mask=known, other=0.0)[None, :]
            count = tl.load(totals + k + 1, mask=known, other=0.0)[None, :]
            distance = tl.load(totals + number + 1 + k + 1, mask=known, other=0.0)[None, :]
            rising = (distance + count * (edge - begin)) * scale
            fp += tl.where(edge >= end, count, tl.where(edge >= begin, rising, 0.0))

    above = tl.zeros([ROWS, COLUMNS], tl.float64)
    above_error = tl.zeros([ROWS, COLUMNS], tl.float64)
    worse = tl.zeros([ROWS, COLUMNS], tl.float64)
    worse_error = tl.zeros([ROWS, COLUMNS], tl.float64)
    for start in range(0, positives, COLUMNS):
        if tl.load(p + tl.minimum(start + COLUMNS, positives) - 1) >= lowest:
            j = start + tl.arange(0, COLUMNS)
            other = j < positives
            p_j = tl.load(p + j, mask=other, other=0.0)[None, :]
            y_j = tl.load(quality + j, mask=other, other=0.0)[None, :]
            h = tl.where(other[None, :], _step(p_j - p_i, scale, HARD), 0.0)
            is_worse = y_j < y_i
            above += h
            above_error += h * (1 - y_j)
            worse += tl.where(is_worse, h, 0.0)
            worse_error += tl.where(is_worse, h * (1 - y_j), 0.0)

    fp_sum = tl.sum(fp, 1)
    rank_positive, error_sum = tl.sum(above, 1), tl.sum(above_error, 1)
    worse_sum, worse_error_sum = tl.sum(worse, 1), tl.sum(worse_error, 1)
    rank = tl.where(own, rank_positive + fp_sum, 1.0)
    target = (error_sum - worse_error_sum) / tl.where(own, rank_positive - worse_sum, 1.0)
    current = error_sum / tl.where(own, rank_positive, 1.0)
    sorting = tl.where(worse_sum > 1e-10, current - target, 0.0)
    tl.store(out + i, fp_sum / rank, mask=own)
    tl.store(out + positives + i, sorting, mask=own)
    tl.store(out + 2 * positives + i, 1 / rank, mask=own)
    tl.store(out + 3 * positives + i, sorting / tl.maximum(worse_sum, 1e-10), mask=own)


@triton.jit(do_not_specialize=["positives", "scale", "scale_rest"])
def _hand_on(
    p, quality, begins, errors, to_positive, positives, scale, scale_rest,
    HARD: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    j = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    scale = _double(scale, scale_rest)
    own = j < positives
    p_j = tl.load(p + j, mask=own, other=0.0)[:, None]
    y_j = tl.load(quality + j, mask=own, other=0.0)[:, None]
    handed = tl.zeros([ROWS, COLUMNS], tl.float64)
    highest = tl.load(p + tl.minimum(tl.program_id(0) * ROWS + ROWS, positives) - 1)
    for start in range(0, positives, COLUMNS):
        if tl.load(begins + start) <= highest:
            i = start + tl.arange(0, COLUMNS)
            other = i < positives
            p_i = tl.load(p + i, mask=other, other=0.0)[None, :]
            y_i = tl.load(quality + i, mask=other, other=0.0)[None, :]
            share = tl.load(errors + 3 * positives + i, mask=other, other=0.0)[None, :]
            handed += tl.where(y_j < y_i, _step(p_j - p_i, scale, HARD) * share, 0.0)
    ranking = tl.load(errors + j, mask=own, other=0.0)
    sorting = tl.load(errors + positives + j, mask=own, other=0.0)
    tl.store(to_positive + j, -ranking / positives, mask=own)
    tl.store(to_positive + positives + j, (tl.sum(handed, 1) - sorting) / positives, mask=own)


@triton.jit(do_not_specialize=["positives", "scale", "scale_rest"])
def _lines(
    begins, ends, edges, errors, lines, positives, scale, scale_rest, ROWS: tl.constexpr, COLUMNS: tl.constexpr
):  # fmt: skip
    k = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    scale = _double(scale, scale_rest)
    number = 2 * positives
    own = k < number
    edge = tl.load(edges + k, mask=own, other=0.0)[:, None]
    value = tl.zeros([ROWS, COLUMNS], tl.float64)
    slope = tl.zeros([ROWS, COLUMNS], tl.float64)
    highest = tl.load(edges + tl.minimum(tl.program_id(0) * ROWS + ROWS, number) - 1)
    for start in range(0, positives, COLUMNS):
        if tl.load(begins + start) <= highest:
            i = start + tl.arange(0, COLUMNS)
            other = i < positives
            begin = tl.load(begins + i, mask=other, other=0.0)[None, :]
            end = tl.load(ends + i, mask=other, other=0.0)[None, :]
            share = tl.load(errors + 2 * positives + i, mask=other, other=0.0)[None, :]
            rises = (edge >= begin) & (edge < end)
            value += tl.where(edge >= end, share, tl.where(rises, share * (edge - begin) * scale, 0.0))
            slope += tl.where(rises, share * scale, 0.0)
    tl.store(lines + k, tl.sum(value, 1) / positives, mask=own)
    tl.store(lines + number + k, tl.sum(slope, 1) / positives, mask=own)


@triton.jit(do_not_specialize=["size", "number", "highest"])
def _update(logits, targets, edges, lines, grads, update, size, number, highest, BLOCK: tl.constexpr):
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = place < size
    x = _cast(tl.load(logits + place, mask=inside, other=0.0), tl.float64)
    target = tl.load(targets + place, mask=inside, other=-1.0)
    k = _interval(x, edges, number, highest, BLOCK) - 1
    handed = inside & (target == 0) & (k >= 0)
    edge = tl.load(edges + k, mask=handed, other=0.0)
    value = tl.load(lines + k, mask=handed, other=0.0)
    slope = tl.load(lines + number + k, mask=handed, other=0.0)
    to_negative = tl.where(handed, value + slope * (x - edge), 0.0) * tl.load(grads)
    tl.store(update + place, _cast(to_negative, update.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["positives"])
def _update_positives(to_positive, place_of, grads, update, positives, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    own = i < positives
    place = tl.load(place_of + i, mask=own, other=0)
    ranking = tl.load(to_positive + i, mask=own, other=0.0) * tl.load(grads)
    sorting = tl.load(to_positive + positives + i, mask=own, other=0.0) * tl.load(grads + 1)
    tl.store(update + place, _cast(ranking + sorting, update.dtype.element_ty), mask=own)


def _halves(x: float) -> tuple[float, float]:
    """Split a number into two float32 numbers, for `_double`."""
    high = struct.unpack("f", struct.pack("f", x))[0]
    return high, x - high


class _RankSort(torch.autograd.Function):
    """Both losses, [2], and whether the input was unusual, so that they must not be used, bool []."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor, places: Tensor, delta: float) -> tuple[Tensor, Tensor]:
        s, y = logits.detach().reshape(-1).contiguous(), targets.detach().reshape(-1).contiguous()
        positives, number = len(places), 2 * len(places)
        highest = 1 << number.bit_length() - 1
        copies = max(1, min(_COPIES, _MOST_BINS // number))
        scale, hard = _halves(1 / (2 * delta) if delta > 0 else 0.0), delta == 0
        pairs = {"ROWS": _ROWS, "COLUMNS": _COLUMNS}
        rows, all_logits = (triton.cdiv(positives, _ROWS),), (triton.cdiv(len(s), _BLOCK),)

        sizes = [positives, positives, positives, positives, number, 4 * positives, 2 * positives, 2 * number]
        of_positives = torch.empty(sum(sizes), dtype=torch.float64, device=s.device)
        p, quality, begins, ends, edges, errors, to_positive, lines = of_positives.split(sizes)
        place_of = torch.empty_like(places)
        sums = torch.zeros(copies * 2 * (number + 1) + 1, dtype=torch.float64, device=s.device)
        totals, unusual = sums[:-1], sums[-1]
        _sort[rows](s, y, places, p, quality, place_of, begins, ends, edges, positives, *_halves(delta), **pairs)
        _count[all_logits](s, y, edges, totals, unusual, len(s), number, highest, copies, BLOCK=_BLOCK)
        totals = totals.view(copies, -1).sum(0)
        _errors[rows](p, quality, begins, ends, edges, totals, errors, positives, *scale, HARD=hard, **pairs)
        _hand_on[rows](p, quality, begins, errors, to_positive, positives, *scale, HARD=hard, **pairs)
        _lines[(triton.cdiv(number, _ROWS),)](begins, ends, edges, errors, lines, positives, *scale, **pairs)
        ctx.save_for_backward(logits, targets)
        ctx.of_positives = edges, lines, to_positive, place_of, highest
        ctx.mark_non_differentiable(unusual)
        return errors.view(4, positives)[:2].mean(1).to(torch.promote_types(logits.dtype, torch.float32)), unusual

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grads: Tensor, _: None) -> tuple[Tensor, None, None, None]:
        logits, targets = ctx.saved_tensors
        edges, lines, to_positive, place_of, highest = ctx.of_positives
        s, y = logits.detach().reshape(-1).contiguous(), targets.detach().reshape(-1).contiguous()
        update = torch.empty_like(s)
        number, positives, grads = len(edges), len(place_of), grads.contiguous()
        _update[(triton.cdiv(len(s), _BLOCK),)](
            s, y, edges, lines, grads, update, len(s), number, highest, BLOCK=_BLOCK
        )
        _update_positives[(triton.cdiv(positives, _BLOCK),)](
            to_positive, place_of, grads, update, positives, BLOCK=_BLOCK
        )
        return update.view(logits.shape), None, None, None


def rank_sort(logits: Tensor, targets: Tensor, delta: float) -> Tensor | None:
    """Ranking and sorting loss, [2], as for `rank_sort_loss`; None if the plain path has to compute them, or refuse the input.

    The host waits for the device twice: for the number of positives, and for whether the input is unusual.
    """
    places = (targets.detach().reshape(-1) > 0).nonzero().squeeze(1)
    if not 0 < len(places) <= MOST_POSITIVES or not (delta == 0 or 1e-30 < delta < 1e30):  # in float32, see `_halves`
        return None
    with torch.cuda.device(logits.device if logits.is_cuda else -1):  # Triton starts kernels on the current one
        losses, unusual = _RankSort.apply(logits, targets, places, delta)
    return None if unusual.item() else losses


@functools.cache
def work_on(device: torch.device) -> bool:
    """Whether Triton can compile and run kernels on a device (it needs a C compiler, for example). A warning says why if not.

    They are tried on a negative and two positives, the better of which has the lower score: the interpreter of Triton 3.1 writes nothing
    beside NumPy 2, without an error.
    """
    try:
        with torch.inference_mode(False), torch.enable_grad():
            logits = torch.tensor([2.0, 4.0, 0.0], device=device, requires_grad=True)
            losses = rank_sort(logits, torch.tensor([0.0, 0.5, 1.0], device=device), 0.5)
            assert losses is not None
            losses.sum().backward()
            assert logits.grad is not None
            found = [*losses.tolist(), *logits.grad.tolist()]
        # Each positive counts half a step for itself. Ranking errors: 0 and 1 / 2.5; sorting errors: 0 and .5 / 1.5; their means count.
        expected = [0.2, 1 / 6, 0.2, 1 / 6, -0.2 - 1 / 6]
        if not all(abs(a - b) <= 1e-6 for a, b in zip(found, expected, strict=True)):  # NaN is wrong, too
            raise ValueError(f"it returns {found} for {expected}")
        return True
    except Exception as error:  # compilers fail in many ways
        reason = str(error).strip().splitlines()[:1]
        warnings.warn(
            f"RS Loss uses its slower implementation on {device}, because Triton does not work for it ({''.join(reason)})",
            stacklevel=3,
        )
        return False
