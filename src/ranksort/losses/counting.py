"""Exact smoothed counting: the sums in RS, AP and aLRP Loss, without pairing every logit with every positive.

All three losses ask, for each positive i, how many examples j are scored above it, where "above" is the smoothed step

    H(x) = clamp(x / 2δ + 1/2, 0, 1),    x_ij = s_j - s_i,    and H(x) = [x >= 0] for δ = 0,

and then pass each positive's error back to those j. As a function of s_j, H(x_ij) is 0 below s_i - δ, 1 above s_i + δ and linear
between. So the 2P *breakpoints* s_i ± δ divide the score axis into intervals (`Breakpoints`), and the positives only need the number of
negatives and the sum of their logits in each interval (`NegativesAbove`). Among the positives, the sums have the additional condition
y_j < y_i, which makes them two-dimensional dominance sums (`positives_above.py`). Tensors of size P are float64: in float32, prefix sums
would suffer from cancellation.
"""

from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.functional import pad

# Used only on a CPU:
_BLOCK = 1 << 16  # logits for each thread: passes over them go block by block, so that temporaries stay in the cache
_LEAST_BLOCKS = 16  # for small inputs: blocks of 2^16 would add to their peak memory
_SERIAL = (1 << 15) - 1  # up to this size, PyTorch's operators run in one thread and do not wait for others
_THREADS_PAY = 1 << 21  # number of logits from which these waits pay
_ROW = 32  # logits processed together
_GRID_PAYS = 4096  # number of logits from which a grid is used to place them
_CELLS_PER_EDGE, _LOGITS_PER_CELL, _MOST_CELLS = 32, 8, 1 << 18
_SPARE_BINS = 64  # for logits below all edges, in turn: sums into a single place would have to wait for one another

_COPIES = 64  # of each bin, on a GPU
_FEW = 0.1  # up to this fraction of logits in reach of a positive, only those are processed


def on_cpu(x: Tensor) -> bool:
    """Whether passes over memory dominate the cost on the device of `x`; elsewhere, the number of operators and synchronisation do."""
    return x.device.type == "cpu"


def has_float64(device: torch.device) -> bool:
    """Whether `device` supports float64. If not, tensors of size P are computed on the CPU."""
    return device.type != "mps"


def converted(x: Tensor, like: Tensor) -> Tensor:
    """`x` with the device and dtype of `like`. A device without float64 cannot convert to it while it copies: it copies first."""
    return x.to(like.device).to(like.dtype)


def find(values: Tensor, wanted: Callable[[Tensor], Tensor]) -> Tensor:
    """The positions of the selected values among [A], int64; every value above a selected one must also be selected."""
    rows = len(values) // _ROW
    if not on_cpu(values) or rows == 0:
        return wanted(values).nonzero().squeeze(1)
    # On a CPU, `nonzero` takes as long as ten maxima, so it pays to search only rows with a selected value.
    table, rest = values[: rows * _ROW].view(rows, _ROW), values[rows * _ROW :]
    hit = wanted(table.amax(1)).nonzero().squeeze(1)
    row, column = wanted(table.index_select(0, hit)).nonzero(as_tuple=True)
    return torch.cat([hit.index_select(0, row) * _ROW + column, wanted(rest).nonzero().squeeze(1) + rows * _ROW])


def _blocks(*tensors: Tensor) -> list[tuple[Tensor, ...]]:
    # A list, because torch.compile of PyTorch 2.9 cannot interrupt its work within a strict `zip`.
    return list(zip(*(x.split(_block_size(x)) for x in tensors), strict=True))


def _block_size(x: Tensor) -> int:
    number, threads = len(x), torch.get_num_threads()
    if not on_cpu(x) or number <= _SERIAL:
        return max(number, 1)
    # An operator on a small block takes microseconds; if the core of another thread is busy, it would wait milliseconds for it.
    most = _SERIAL if threads > 1 and number < _THREADS_PAY else _BLOCK * threads
    return min(most, -(-number // _LEAST_BLOCKS))


class Breakpoints:
    """The score axis, divided by the positives.

    Args:
        positives: logits p, float64 [P], ascending.
        delta: half the width of the smoothed step.

    Attributes:
        edges: the breakpoints p ± delta, sorted, [2P]. Interval k reaches from edge k - 1 up to edge k; interval 0 is below all.
        order: positions of the edges in the concatenation of p - delta and p + delta, int64 [2P].
        lower: positions of p - delta among the edges, int64 [P].
        upper: positions of p + delta among the edges, int64 [P].
        axis: coordinates x of the edges in units of 2δ, [2P], with wider gaps shortened to one unit. No step rises throughout such a
            gap, so H does not change, and sums of coordinates stay precise however far apart the scores are.
        foot: coordinates of p - delta, [P].
    """

    def __init__(self, positives: Tensor, delta: float):
        self.positives, self.delta = positives, delta
        begins, ends = positives - delta, positives + delta
        number = torch.arange(2 * len(positives), device=positives.device)
        # Both lists are sorted: the position among all edges is that in the own list plus that in the other list.
        self.lower = number[: len(positives)] + torch.searchsorted(ends, begins)
        self.upper = number[: len(positives)] + torch.searchsorted(begins, ends, right=True)
        self.order = torch.empty_like(number).scatter_(0, torch.cat([self.lower, self.upper]), number)
        self.edges = torch.cat([begins, ends]).index_select(0, self.order)
        gaps = self.edges.diff(prepend=self.edges[:1])
        self.axis = (gaps / (2 * delta)).clamp(max=1).cumsum(0) if delta > 0 else torch.zeros_like(gaps)
        self.foot = self.axis.index_select(0, self.lower)


class NegativesAbove:
    """The relation H(n_j - p_i) between P positives and N negatives, in O((P + N) log P) time and O(P + N) memory.

    It does not store the logits, which are passed to `count` and `spread` again. The positions that `count` finds are kept for the
    first `spread`, which reuses their memory for the result.

    Args:
        breakpoints: of the positives.
        logits: float32 or float64 [A], of the negatives and others.
        targets: [A], 0 for the negatives.
        positive: int64, where the targets are above 0.
        ignored: whether some targets are below 0.
        edges_among: how many edges are at or below the lowest and at or below the highest logit.
        reach: fraction of the logits that are not below all edges; an estimate is enough.
        group: count over the negatives of all its processes.
    """

    def __init__(
        self,
        breakpoints: Breakpoints,
        logits: Tensor,
        targets: Tensor,
        positive: Tensor,
        *,
        ignored: bool,
        edges_among: tuple[int, int],
        reach: float,
        group: "dist.ProcessGroup | None" = None,
    ):
        self.breakpoints, self.group = breakpoints, group
        # In the dtype of the logits and rounded up, the edges divide the logits exactly as the breakpoints would.
        edges = breakpoints.edges.to(logits.dtype)
        up = torch.nextafter(edges, edges.new_full((), torch.inf))
        self.edges = torch.where(edges < breakpoints.edges, up, edges).to(logits.device)
        self.edges_among = edges_among
        self.in_one_interval = edges_among[0] == edges_among[1] and len(logits) > 0 and has_float64(logits.device)
        self.taken: Tensor | None = None
        if not self.in_one_interval and reach <= _FEW:
            self.taken = find(logits, lambda x: x >= self.edges[0])
            self.others = targets.index_select(0, self.taken) != 0
        else:
            self.others = (targets != 0).nonzero().squeeze(1) if ignored else positive
        self.bins: Tensor | None = None

    def count(self, logits: Tensor) -> Tensor:
        """Return FP(i) = Σ_j H(n_j - p_i) for every positive, float64 [P]."""
        cut = self.breakpoints
        totals = self._totals(logits).to(cut.edges)
        if self.group is not None:
            dist.all_reduce(totals, group=self.group)
        counts, inside = totals[:, 1:]
        sums = cut.axis * counts + inside
        at_or_above = torch.stack([counts, sums]).flip(1).cumsum(1).flip(1)
        above = at_or_above.index_select(1, cut.upper)
        rising, rising_x = at_or_above.index_select(1, cut.lower) - above
        return above[0] + (rising_x - cut.foot * rising).clamp(min=0)

    def spread(self, weights: Tensor, logits: Tensor) -> Tensor:
        """Return Σ_i weights_i H(n_j - p_i) at the negatives and 0 elsewhere, [A] in the dtype of the logits; weights float64 [P].

        As a function of n_j this is linear within an interval: value at its lower edge + slope · (n_j - edge).
        """
        value, slope, edge = lines = self._lines(weights).to(logits)
        if self.in_one_interval:
            value, slope, edge = lines.index_select(1, self._interval(logits)).unbind(0)
            return (logits - edge).mul_(slope).add_(value).index_fill_(0, self.others, 0)
        values = self._values(logits)
        bins = self._place(values) if self.bins is None else self.bins
        self.bins = None
        update = bins.view(torch.float32) if values.dtype == torch.float32 else torch.empty_like(values)
        for bin_, x, out in _blocks(bins, values, update):
            # index_select, because indexing by brackets takes twenty times as long on a CPU.
            rise = x - edge.index_select(0, bin_), slope.index_select(0, bin_)
            torch.addcmul(value.index_select(0, bin_), *rise, out=out)
            del rise  # otherwise it would coexist with that of the next block
        return update if self.taken is None else torch.zeros_like(logits).index_copy_(0, self.taken, update)

    def _lines(self, weights: Tensor) -> Tensor:
        """Return value, slope and lower edge of every interval and of the spare bins, float64 [3, 2P + 1 + _SPARE_BINS]."""
        cut = self.breakpoints
        # Where a step starts and stops rising. Their running sums: the number of steps that rise at an edge, Σ w and
        # Σ w x over these, and Σ w over those that have risen.
        one, none, wx = torch.ones_like(weights), torch.zeros_like(weights), weights * cut.foot
        changes = torch.cat([torch.stack([one, weights, wx, none]), torch.stack([-one, -weights, -wx, weights])], 1)
        number, rising, rising_x, risen = changes.index_select(1, cut.order).cumsum(1)
        value, slope = risen, torch.zeros_like(risen)
        if cut.delta > 0:
            slope = torch.where(number > 0, rising, 0.0) / (2 * cut.delta)
            value = risen + cut.axis * rising - rising_x + slope * (converted(self.edges, cut.edges) - cut.edges)
        return pad(torch.stack([value, slope, converted(self.edges, value)]), (1, _SPARE_BINS))

    def _values(self, logits: Tensor) -> Tensor:
        return logits if self.taken is None else logits.index_select(0, self.taken)

    def _interval(self, logits: Tensor) -> Tensor:
        return torch.bucketize(logits[:1], self.edges, right=True)

    def _totals(self, logits: Tensor) -> Tensor:
        """Return for each interval the number of negatives, and the sum of their distances to its lower edge, float64 [2, 2P + 1].

        The distance is in units; in the highest and lowest interval, where no step rises, it is undefined.
        """
        cut, size = self.breakpoints, len(self.edges) + 1
        edge_of = torch.cat([cut.edges[:1], cut.edges])  # also for interval 0, which does not matter
        unit = 2 * cut.delta or 1.0
        values = self._values(logits)
        # Differences to a nearby logit or edge are summed, so that sums are also precise far from 0.
        if not has_float64(logits.device):
            counts, inside = self._totals_without_float64(values)
            rounded = converted(torch.cat([self.edges[:1], self.edges]), edge_of)
            inside += counts * ((rounded - edge_of) / unit)
        elif self.in_one_interval:
            interval = self._interval(logits)
            number = edge_of.new_full((), len(logits) - len(self.others))
            near = logits[:1]
            total = torch.stack([(x - near).sum(dtype=torch.float64) for (x,) in _blocks(logits)]).sum()
            total -= (logits.index_select(0, self.others) - near).sum(dtype=torch.float64)
            total += (number * (near - edge_of.index_select(0, interval))).squeeze(0)
            counts, inside = edge_of.new_zeros(2, size).index_copy_(
                1, interval, torch.stack([number, total / unit])[:, None]
            )
        else:
            self.bins = bins = self._place(values)
            near = edge_of[size // 2]
            sums = edge_of.new_zeros(size + _SPARE_BINS)
            for bin_, x in _blocks(bins, values):
                sums += _histogram(bin_, x.to(torch.float64, copy=True).sub_(near), len(sums))
            counts = _histogram(bins, None, len(sums))[:size]
            inside = (sums[:size] - (edge_of - near) * counts) / unit
        # An interval on which a step rises is at most one unit wide.
        return torch.stack([counts, inside.clamp(min=0).minimum(counts)])

    def _totals_without_float64(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """Counts and sums of distances to the rounded edges, in float32 for tensors of size N.

        Distances, clipped to one unit, are split into multiples of 2^-8, whose sums over 2^16 are exact, and the remainder.
        """
        bins, run = self._place(values), 1 << 16
        size = len(self.edges) + 1 + _SPARE_BINS
        edge = pad(torch.cat([self.edges[:1], self.edges]), (0, _SPARE_BINS))
        distance = ((values - edge.index_select(0, bins)) / (2 * self.breakpoints.delta or 1.0)).clamp_(0, 1)
        coarse = (distance * 256).round_() / 256
        place = torch.arange(len(bins), device=bins.device) // run * size + bins
        runs = len(bins) // run + 1
        counts, *inside = (
            edge.new_zeros(runs * size).index_add_(0, place, x).cpu().double().view(runs, size).sum(0)[:-_SPARE_BINS]
            for x in (torch.ones_like(distance), coarse, distance - coarse)
        )
        return counts, inside[0] + inside[1]

    def _place(self, values: Tensor) -> Tensor:
        """Return the interval of every value, int32 [n]; those below all edges may get a spare bin; for other values it is 0.

        `torch.bucketize` is slow on a CPU. Here a regular grid is laid over the edges: the cell of a value is computed, and only the
        edges in its cell are searched. Values and edges are assigned to cells by the same monotone rule, so rounding cannot put an edge
        on the wrong side of a value.
        """
        edges, (first, last) = self.edges, self.edges_among
        if not on_cpu(values) or len(values) < _GRID_PAYS or first == last:
            return self._without_others(torch.bucketize(values, edges, out_int32=True, right=True))

        cell, first_edge, most = self._grid(len(values))
        padded = pad(edges, (0, _SPARE_BINS + 2 * most), value=torch.inf)
        steps = [1 << bit for bit in reversed(range(most.bit_length()))]
        ahead = [padded[step - 1 :] for step in steps]
        bins = torch.empty_like(values, dtype=torch.int32)
        for bin_, x in _blocks(bins, values):
            torch.index_select(first_edge, 0, cell(x).int(), out=bin_)
            # Branch-free binary search: how many of the next `most` edges are at or below a value.
            for step, edge in zip(steps, ahead, strict=True):
                # A comparison in place keeps the dtype; bool takes four times as long.
                bin_.add_(edge.index_select(0, bin_).le_(x).int(), alpha=step)
        return self._without_others(bins)

    def _grid(self, number: int) -> tuple[Callable[[Tensor], Tensor], Tensor, int]:
        """The rule that assigns values to cells, int32, the first edge in each cell, and the maximum number of edges in a cell."""
        first, last = self.edges_among
        within = self.edges[first:last]
        cells = min(_CELLS_PER_EDGE * len(within), number // _LOGITS_PER_CELL, _MOST_CELLS)
        below = cells // 4  # additional cells, for most values of a trained model
        width = float(within[-1] - within[0])
        scale = cells / width if width > 1e-30 else 0.0
        origin = float(within[0]) - (below + 1) / scale if scale > 0 else 0.0

        def cell(x: Tensor) -> Tensor:
            return x.sub(origin).mul_(scale).clamp_(0, below + cells + 2)

        edges_in_cell = torch.bincount(cell(within).int(), minlength=below + cells + 3).int()
        up_to_cell = edges_in_cell.cumsum(0, dtype=torch.int32)
        first_edge = up_to_cell - edges_in_cell + first
        if first == 0:
            lowest = int(cell(within[:1]))
            first_edge[:lowest] = (torch.arange(lowest, dtype=torch.int32) & _SPARE_BINS - 1) + len(self.edges) + 1
        return cell, first_edge, int(edges_in_cell.max())

    def _without_others(self, bins: Tensor) -> Tensor:
        is_mask = self.others.dtype == torch.bool
        return bins.masked_fill_(self.others, 0) if is_mask else bins.index_fill_(0, self.others, 0)


def _histogram(bins: Tensor, weights: Tensor | None, size: int) -> Tensor:
    """Return for each of `size` bins the number of examples in it, or the sum of their weights, float64."""
    if on_cpu(bins):
        return torch.bincount(bins, weights, minlength=size).double()
    # On a GPU, sums into one bin wait for one another, and bincount waits for the largest bin. So each bin has several copies.
    weights = torch.ones_like(bins, dtype=torch.float64) if weights is None else weights
    place = torch.arange(len(bins), dtype=torch.int32, device=bins.device).remainder_(_COPIES).mul_(size).add_(bins)
    return weights.new_zeros(_COPIES * size).index_add_(0, place, weights).view(_COPIES, size).sum(0)
