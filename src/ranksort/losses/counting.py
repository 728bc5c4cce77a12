"""Exact smoothed counting: the sums which RS, AP and aLRP Loss are made of, without pairing every logit with every positive.

All three losses ask, for each positive i, how many examples j are scored above it, where "above" is the smoothed step

    H(x) = clamp(x / 2δ + 1/2, 0, 1),    x_ij = s_j - s_i,    and H(x) = [x >= 0] for δ = 0,

and then hand each positive's error back to those j. As a function of s_j, H(x_ij) is 0 below s_i - δ, 1 above s_i + δ and linear
between. So the 2P *breakpoints* s_i ± δ cut the score axis into intervals (`Breakpoints`), and all that the positives need to know
of the negatives is the count and the sum of the logits in each (`NegativesAbove`). Among the positives the sums carry the
additional condition y_j < y_i, which makes them two-dimensional dominance sums (`PositivesAbove`, `WorsePositivesAbove`).

What has the size of P is computed in float64: float32 prefix sums would lose everything to cancellation.
"""

from collections.abc import Callable, Iterator

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.functional import pad

# Of use on a CPU alone:
_BLOCKS = 8  # a pass over the logits goes block by block: its temporaries are small and stay in the cache
_ROW = 32  # logits which are looked at together
_GRID_PAYS = 4096  # logits from which on a grid is made to place them
_CELLS_PER_EDGE, _LOGITS_PER_CELL, _MOST_CELLS = 32, 16, 1 << 19

_FEW = 0.1  # share of the logits in reach of a positive up to which they are taken out and the others left alone
_FAN_OUT_BITS = 3  # a node of the tree over the positives has 2^3 children


def on_cpu(x: Tensor) -> bool:
    """Whether `x` is where passes over memory cost most; elsewhere it is the number of operators and waiting for their results."""
    return x.device.type == "cpu"


def has_float64(device: torch.device) -> bool:
    """Whether `device` computes in float64. Where it does not, what has the size of P is computed on the CPU."""
    return device.type != "mps"


def find(values: Tensor, wanted: Callable[[Tensor], Tensor]) -> Tensor:
    """Returns where the values, [A], are wanted, int64; what is higher than a wanted value must be wanted, too."""
    rows = len(values) // _ROW
    if not on_cpu(values) or rows == 0:
        return wanted(values).nonzero().squeeze(1)
    # On a CPU `nonzero` takes as long as ten maxima, so that it pays to look into those rows alone which have a wanted value.
    table, rest = values[: rows * _ROW].view(rows, _ROW), values[rows * _ROW :]
    hit = wanted(table.amax(1)).nonzero().squeeze(1)
    row, column = wanted(table.index_select(0, hit)).nonzero(as_tuple=True)
    return torch.cat([hit.index_select(0, row) * _ROW + column, wanted(rest).nonzero().squeeze(1) + rows * _ROW])


def _blocks(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    return zip(*(x.chunk(_BLOCKS if on_cpu(x) else 1) for x in tensors), strict=True)


class Breakpoints:
    """The score axis as the positives cut it.

    Args:
        positives: logits p, float64 [P], rising.
        delta: half the width of the smoothed step.

    Attributes:
        edges: the breakpoints p ± delta, sorted, [2P]. Interval k reaches from edge k - 1 up to edge k; interval 0 is below all.
        order: where the edges come from in the list of all p - delta and then all p + delta, int64 [2P].
        lower, upper: the inverse: where p - delta and p + delta are among the edges, int64 [P].
        axis: coordinates x of the edges in units of 2δ, [2P], with wider gaps cut down to one unit. No step rises all through such a
            gap, so H stays the same, and sums of coordinates stay precise however far apart the scores are.
    """

    def __init__(self, positives: Tensor, delta: float):
        self.positives, self.delta = positives, delta
        begins, ends = positives - delta, positives + delta
        number = torch.arange(2 * len(positives), device=positives.device)
        # Both lists are sorted: the place among all edges is that in the own list plus that in the other one.
        self.lower = number[: len(positives)] + torch.searchsorted(ends, begins)
        self.upper = number[: len(positives)] + torch.searchsorted(begins, ends, right=True)
        self.order = torch.empty_like(number).scatter_(0, torch.cat([self.lower, self.upper]), number)
        self.edges = torch.cat([begins, ends]).index_select(0, self.order)
        gaps = self.edges.diff(prepend=self.edges[:1])
        self.axis = (gaps / (2 * delta)).clamp(max=1).cumsum(0) if delta > 0 else torch.zeros_like(gaps)


class NegativesAbove:
    """The relation H(n_j - p_i) between P positives and N negatives, in O((P + N) log P) time and O(P + N) memory.

    Args:
        breakpoints: of the positives.
        logits: float32 or float64 [A], those of the negatives and of others.
        targets: [A], 0 for the negatives.
        positive: int64, where the targets are above 0.
        ignored: whether some targets are below 0.
        edges_among: how many edges are at or below the lowest and at or below the highest logit.
        reach: share of the logits which are not below all edges; a guess will do.
        group: counts over the negatives of all its processes.
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
        self.breakpoints, self.logits, self.group = breakpoints, logits, group
        # Compared in the dtype of the logits and rounded up, the edges divide these exactly as the breakpoints would.
        edges = breakpoints.edges.to(logits.dtype)
        up = torch.nextafter(edges, edges.new_tensor(torch.inf))
        self.edges = torch.where(edges < breakpoints.edges, up, edges).to(logits.device)
        self.edges_among = edges_among
        self.in_one_interval = edges_among[0] == edges_among[1] and len(logits) > 0 and has_float64(logits.device)
        self.taken: Tensor | None = None
        if not self.in_one_interval and reach <= _FEW:
            self.taken = find(logits, lambda x: x >= self.edges[0])
            self.values = logits.index_select(0, self.taken)
            self.others = targets.index_select(0, self.taken) != 0
        else:
            self.values = logits
            self.others = (targets != 0).nonzero().squeeze(1) if ignored else positive
        self.placed: tuple[Tensor, Tensor] | None = None

    def count(self) -> Tensor:
        """Returns FP(i) = Σ_j H(n_j - p_i) for every positive, float64 [P]."""
        cut = self.breakpoints
        totals = self._totals().to(cut.edges)
        if self.group is not None:
            dist.all_reduce(totals, group=self.group)
        counts, inside = totals[:, 1:]
        sums = cut.axis * counts + inside
        at_or_above = torch.stack([counts, sums]).flip(1).cumsum(1).flip(1)
        above = at_or_above[:, cut.upper]
        rising, rising_x = at_or_above[:, cut.lower] - above
        return above[0] + (rising_x - cut.axis[cut.lower] * rising).clamp(min=0)

    def spread(self, weights: Tensor) -> Tensor:
        """Returns Σ_i weights_i H(n_j - p_i) at the negatives and 0 elsewhere, [A] in the dtype of the logits; weights float64 [P].

        As a function of n_j this is linear within an interval: value at its lower edge + slope · (n_j - edge).
        """
        cut = self.breakpoints
        # Where a step begins to rise, and where it has risen. Their running sums: the number of the steps which rise at an edge, Σ w and
        # Σ w x over these, and Σ w over those which have risen.
        one, none, wx = torch.ones_like(weights), torch.zeros_like(weights), weights * cut.axis[cut.lower]
        changes = torch.cat([torch.stack([one, weights, wx, none]), torch.stack([-one, -weights, -wx, weights])], 1)
        rising, w, wx, risen = changes.index_select(1, cut.order).cumsum(1)
        value, slope = risen, torch.zeros_like(w)
        if cut.delta > 0:
            slope = torch.where(rising > 0, w, 0.0) / (2 * cut.delta)
            value = risen + cut.axis * w - wx + slope * (self.edges.to(cut.edges) - cut.edges)
        tables = pad(torch.stack([value, slope]), (1, 0)).to(self.logits)
        tables = torch.cat([tables, pad(self.edges, (1, 0))[None]])

        if self.in_one_interval:
            value, slope, edge = tables.index_select(1, self._interval()).unbind(0)
            return (self.logits - edge).mul_(slope).add_(value).index_fill_(0, self.others, 0)
        bins, interval_of_bin = self.placed or self._place()
        self.placed = None  # its memory becomes the result; a second call places the logits again
        update = bins.view(torch.float32) if self.values.dtype == torch.float32 else torch.empty_like(self.values)
        value, slope, edge = tables.index_select(1, interval_of_bin)
        for bin_, x, out in _blocks(bins, self.values, update):
            # index_select, because indexing by brackets takes twenty times as long on a CPU.
            fall = edge.index_select(0, bin_).sub_(x).mul_(slope.index_select(0, bin_))
            torch.sub(value.index_select(0, bin_), fall, out=out)
        return update if self.taken is None else torch.zeros_like(self.logits).index_copy_(0, self.taken, update)

    def _interval(self) -> Tensor:
        return torch.bucketize(self.logits[:1], self.edges, right=True)

    def _totals(self) -> Tensor:
        """Returns for each interval the number of negatives, and the sum of their distances to its lower edge, float64 [2, 2P + 1].

        The distance is in units; that in the highest and lowest interval, where no step rises, is left open.
        """
        cut, size = self.breakpoints, len(self.edges) + 1
        if not has_float64(self.logits.device):
            return self._totals_without_float64(*self._place())
        if self.in_one_interval:
            others = self.logits.index_select(0, self.others).double()
            total = torch.stack([x.double().sum() for (x,) in _blocks(self.logits)]).sum() - others.sum()
            number = torch.full_like(total, len(self.logits) - len(others))
            counts, sums = total.new_zeros(2, size).index_copy_(
                1, self._interval(), torch.stack([number, total])[:, None]
            )
        else:
            bins, interval_of_bin = self.placed = self._place()
            counts = _histogram(interval_of_bin, _histogram(bins, None, len(interval_of_bin)), size)
            sums = counts.new_zeros(len(interval_of_bin))
            for bin_, x in _blocks(bins, self.values):
                sums += _histogram(bin_, x.double(), len(sums))
            sums = _histogram(interval_of_bin, sums, size)
        if cut.delta == 0:
            return torch.stack([counts, torch.zeros_like(sums)])
        # An interval on which a step rises is at most one unit wide.
        inside = (sums - torch.cat([cut.edges[:1], cut.edges]) * counts) / (2 * cut.delta)
        return torch.stack([counts, inside.clamp(min=0).minimum(counts)])

    def _totals_without_float64(self, bins: Tensor, interval_of_bin: Tensor) -> Tensor:
        """The same in float32: distances, cut to one unit, are split into multiples of 2^-8, whose sums over 2^16 are exact, and rest."""
        size, run = len(interval_of_bin), 1 << 16
        edge = torch.cat([self.edges[:1], self.edges]).index_select(0, interval_of_bin)
        distance = ((self.values - edge.index_select(0, bins)) / (2 * self.breakpoints.delta or 1.0)).clamp_(0, 1)
        coarse = (distance * 256).round_() / 256
        place = torch.arange(len(bins), device=bins.device) // run * size + bins
        runs = len(bins) // run + 1
        parts = [torch.ones_like(distance), coarse, distance - coarse]
        sums = [
            edge.new_zeros(runs * size).index_add_(0, place, x).cpu().double().view(runs, size).sum(0) for x in parts
        ]
        counts, *inside = (_histogram(interval_of_bin.cpu(), x, len(self.edges) + 1) for x in sums)
        return torch.stack([counts, inside[0] + inside[1]])

    def _place(self) -> tuple[Tensor, Tensor]:
        """Returns a bin for every value, int32 [n], and the interval which each bin belongs to; others are in interval 0.

        On a CPU `torch.bucketize` searches all edges for each value. Here a regular grid is laid over the edges, whose cells are the
        bins. Only in cells which an edge divides values have to be searched for, and only among the edges of that cell; they go to
        further bins, one for each interval. Values and edges come to their cells by the same monotone rule, so rounding cannot put
        an edge on the wrong side of a value.
        """
        values, edges = self.values, self.edges
        intervals = torch.arange(len(edges) + 1, dtype=torch.int32, device=values.device)
        first, last = self.edges_among
        if not on_cpu(values) or len(values) < _GRID_PAYS or first == last:
            bins = torch.bucketize(values, edges, out_int32=True, right=True)
            bins[self.others] = 0
            return bins, intervals

        within = edges[first:last]
        cells = min(_CELLS_PER_EDGE * len(within), len(values) // _LOGITS_PER_CELL, _MOST_CELLS)
        width = float(within[-1] - within[0])
        scale = cells / width if width > 0 else 0.0
        # Where most values are below all edges some cells are there, too: a bincount is slow if many fall into one bin. Bin 0 is left
        # for the others.
        most_below = cells // 8
        origin = float(within[0]) - (most_below + 1) / scale if scale > 0 else 0.0

        def cell(x: Tensor) -> Tensor:
            return x.sub(origin).mul_(scale).clamp_(1, cells + most_below + 2)

        edges_in_cell = torch.bincount(cell(within).int(), minlength=cells + most_below + 3)
        first_edge = (edges_in_cell.cumsum(0) - edges_in_cell + first).int()
        first_edge[0] = 0
        bins = torch.empty_like(values, dtype=torch.int32)
        for bin_, x in _blocks(bins, values):
            bin_.copy_(cell(x))

        divided = (edges_in_cell > 0).index_select(0, bins).nonzero().squeeze(1)
        x = values.index_select(0, divided)
        place = first_edge.index_select(0, bins.index_select(0, divided))
        most = int(edges_in_cell.max())
        padded = torch.cat([edges, edges.new_full((2 * most,), torch.inf)])
        for step in (1 << bit for bit in reversed(range(most.bit_length()))):
            place.add_(padded[step - 1 :].index_select(0, place) <= x, alpha=step)
        bins.index_copy_(0, divided, place.add_(len(first_edge)))
        bins[self.others] = 0
        return bins, torch.cat([first_edge, intervals])


def _histogram(bins: Tensor, weights: Tensor | None, size: int) -> Tensor:
    """Returns for each of `size` bins the number of examples in it, or the sum of their weights, float64."""
    if on_cpu(bins):
        return torch.bincount(bins, weights, minlength=size).double()
    # On a GPU bincount waits for the largest bin.
    weights = torch.ones_like(bins, dtype=torch.float64) if weights is None else weights
    return weights.new_zeros(size).index_add_(0, bins, weights)


class PositivesAbove:
    """The relation H(p_j - p_i) among P positives.

    Args:
        breakpoints: of the positives.

    Attributes:
        foot: coordinate of p - delta, [P].
        begin, end: the places in the order of logits where the step around p begins to rise and has risen, int32 [P].
    """

    def __init__(self, breakpoints: Breakpoints):
        p, self.delta = breakpoints.positives, breakpoints.delta
        self.foot = breakpoints.axis[breakpoints.lower]
        self.begin = torch.searchsorted(p, p - self.delta, right=self.delta > 0, out_int32=True)
        self.end = torch.searchsorted(p, p + self.delta, out_int32=True)

    def moments(self, weights: Tensor) -> Tensor:
        """[K, P] -> [2K, P]: w and w x."""
        return torch.cat([weights, weights * (self.foot + 0.5)])

    def sum(self, weights: Tensor) -> Tensor:
        """Returns Σ_j H(p_j - p_i) weights_j for every i; weights and result float64 [K, P]."""
        running = pad(self.moments(weights).cumsum(1), (1, 0))
        begin, begin_x = running.index_select(1, self.begin).chunk(2)
        end, end_x = running.index_select(1, self.end).chunk(2)
        return running[: len(weights), -1:] - end + (end_x - begin_x) - self.foot * (end - begin)

    def sum_over_others(self, weights: Tensor) -> Tensor:
        """Returns Σ_{j≠i} H(p_j - p_i) weights_j for every i; weights and result float64 [K, P]."""
        return self.sum(weights) - (1.0 if self.delta == 0 else 0.5) * weights


class WorsePositivesAbove:
    """The relation H(p_j - p_i) [y_j < y_i] among P positives, in O(P log² P) time and O(P log P) memory.

    A tree over the positives in the order of quality: at the root all of them, in each child a share which is better than the one
    before. Those worse than i are, on every level, in the children to the left of the path which leads to i. The nodes of a level
    lie side by side in one row of P positives, in each the positives by rising logit, so that differences of running sums along the
    row give what is above i.

    Args:
        breakpoints: of the positives.
        qualities: y, float64 [P].
    """

    def __init__(self, breakpoints: Breakpoints, qualities: Tensor):
        self.positives = PositivesAbove(breakpoints)
        p, total = breakpoints.positives, len(qualities)
        depth, fan_out = -(-total.bit_length() // _FAN_OUT_BITS), 1 << _FAN_OUT_BITS
        ranks = torch.arange(total, dtype=torch.int32, device=p.device)
        in_order, by_quality = qualities.sort()
        rank = torch.empty_like(ranks).scatter_(0, by_quality, ranks)

        # A row is in the order of node, then logit.
        level = torch.arange(depth, dtype=torch.int32, device=p.device)[:, None]
        shift = (depth - 1 - level) * _FAN_OUT_BITS  # takes a rank to the child it belongs to
        self.in_row = (rank >> shift + _FAN_OUT_BITS).sort(stable=True).indices
        self.child = (rank >> shift & fan_out - 1).gather(1, self.in_row)
        # Of the first t in a row, `before[level, c, t]` are in a child before c.
        children = torch.arange(fan_out + 1, dtype=torch.int32, device=p.device)[:, None]
        before = pad((self.child[:, None] < children).cumsum(2, dtype=torch.int32), (1, 0)).flatten()

        # Two paths from i: to the first rank which is not worse, and to the last which is not better. Sums are asked for up to the places
        # where the step around p begins and ends, and up to the end or the start of the row. A hard step counts ties among the worse,
        # and not among the better.
        worse = torch.searchsorted(in_order, in_order, out_int32=True).index_select(0, rank)
        not_better = torch.searchsorted(in_order, in_order, right=True, out_int32=True).index_select(0, rank) - 1
        key = torch.cat([worse, worse, worse, not_better, not_better, not_better])
        begin, end = self.positives.begin, self.positives.end
        ties_end = torch.searchsorted(p, p, right=True, out_int32=True) if breakpoints.delta == 0 else None
        begin_better, end_better = (begin, end) if ties_end is None else (ties_end, ties_end)
        place = torch.cat([begin, end, torch.full_like(end, total), begin_better, end_better, torch.zeros_like(end)])

        turn = key >> shift & fan_out - 1
        column = (level * (fan_out + 1) + turn) * (total + 1)
        # Where the child begins in the next row, less what the nodes to the left have of the same child.
        begin_below = ((key >> shift) - (key >> shift + _FAN_OUT_BITS)) << shift
        places = [place]
        for here, below in zip(column[:-1], begin_below[:-1], strict=True):
            place = here + places[-1]
            places.append(before.index_select(0, place + (total + 1)) - before.index_select(0, place) + below)

        # The running sums will have a column for each child but the first, to the left of which is nothing. For the better ones the
        # children are numbered from the right.
        turn[:, 3 * total :] ^= fan_out - 1
        asked = ((turn - 1) * (total + 1) + torch.stack(places)).clamp_(min=0).add_(level * (fan_out - 1) * (total + 1))
        self.asked_worse, self.asked_better = (x.flatten() for x in asked.chunk(2, 1))
        self.turns = children[1:-1]

    def sum(self, weights: Tensor) -> Tensor:
        """Returns Σ_j H(p_j - p_i) [y_j < y_i] weights_j for every i; weights and result float64 [K, P]."""
        left = self.child[:, None] < self.turns
        moments = [self._running_sums(x, left, self.asked_worse) for x in self.positives.moments(weights)]
        (begin, end, last), (begin_x, end_x, _) = torch.stack(moments).unflatten(0, (2, -1)).transpose(1, 2)
        return last - end + (end_x - begin_x) - self.positives.foot * (end - begin)

    def spread(self, weights: Tensor) -> Tensor:
        """Returns Σ_i H(p_j - p_i) [y_j < y_i] weights_i for every j; weights and result float64 [P]."""
        # Seen from j, H(p_j - p_i) = 1 - H(p_i - p_j).
        right = self.child[:, None] > len(self.turns) - self.turns
        moments = [self._running_sums(x, right, self.asked_better) for x in self.positives.moments(weights[None])]
        (begin, end, first), (begin_x, end_x, _) = moments
        return begin - first + (1 + self.positives.foot) * (end - begin) - (end_x - begin_x)

    def _running_sums(self, values: Tensor, beside: Tensor, asked: Tensor) -> Tensor:
        """Returns Σ values over those beside the path and in its rows before the three places asked for, [3, P]."""
        in_row = values.index_select(0, self.in_row.flatten()).view_as(self.in_row)
        running = values.new_empty(*beside.shape[:2], len(values) + 1)
        running[..., 0] = 0
        torch.mul(in_row[:, None], beside, out=running[..., 1:])
        return running.cumsum_(-1).flatten().index_select(0, asked).view(len(beside), 3, len(values)).sum(0)
