"""The sums among the positives that RS, AP and aLRP Loss need, in running sums instead of pairs; `counting.py` has the steps H."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import pad

from .counting import Breakpoints

_FAN_OUT_BITS = 3  # a node of the tree over the positives has 2^3 children


def _indicator(compare: Callable[..., Tensor], rows: Tensor, column: Tensor) -> Tensor:
    """Compare [L, 1, T] with [C, 1]: 0 or 1 in their dtype, [L, C, T]. A result of type bool takes four times as long on a CPU."""
    return compare(rows, column, out=rows.new_empty(len(rows), len(column), rows.shape[2]))


class PositivesAbove:
    """The relation H(p_j - p_i) among P positives.

    Args:
        breakpoints: of the positives.

    Attributes:
        begin: the position in the order of logits where the step around p starts to rise, int32 [P].
        end: the position where it stops rising, int32 [P].
    """

    def __init__(self, breakpoints: Breakpoints):
        p, self.delta, self.foot = breakpoints.positives, breakpoints.delta, breakpoints.foot
        self.begin = torch.searchsorted(p, p - self.delta, right=self.delta > 0, out_int32=True)
        self.end = torch.searchsorted(p, p + self.delta, out_int32=True)

    def moments(self, weights: Tensor) -> Tensor:
        """[K, P] -> [2K, P]: w and w x."""
        return torch.cat([weights, weights * (self.foot + 0.5)])

    def sum(self, weights: Tensor) -> Tensor:
        """Return Σ_j H(p_j - p_i) weights_j for every i; weights and result float64 [K, P]."""
        running = pad(self.moments(weights).cumsum(1), (1, 0))
        begin, begin_x = running.index_select(1, self.begin).chunk(2)
        end, end_x = running.index_select(1, self.end).chunk(2)
        return running[: len(weights), -1:] - end + (end_x - begin_x) - self.foot * (end - begin)

    def sum_over_others(self, weights: Tensor) -> Tensor:
        """Return Σ_{j≠i} H(p_j - p_i) weights_j for every i; weights and result float64 [K, P]."""
        return self.sum(weights) - (1.0 if self.delta == 0 else 0.5) * weights


class WorsePositivesAbove:
    """The relation H(p_j - p_i) [y_j < y_i] among P positives, in O(P log² P) time and O(P log P) memory.

    A tree over the positives in the order of quality: the root has all of them, and each child a part that is better than the previous
    child. On every level, the positives worse than i are in the children to the left of the path to i. The nodes of a level are stored
    side by side in one row of P positives, sorted by logit within each node, so that differences of running sums along the row give the
    sums above i. For example, with two children and positives named by quality, with logits d < a < c < b:

        d a c b      the path to c goes right: a and b are worse, and of these, b comes after c in the row and so is above c
        a b | d c    it goes left; d is to the right: better
        a | b | c | d

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

        # A row is ordered by node, then logit. It starts with an extra entry, where running sums are 0.
        level = torch.arange(depth, dtype=torch.int32, device=p.device)[:, None]
        shift = (depth - 1 - level) * _FAN_OUT_BITS  # maps a rank to its child
        in_row = (rank >> shift + _FAN_OUT_BITS).sort(stable=True).indices
        child_in_row = pad((rank >> shift & fan_out - 1).gather(1, in_row), (1, 0), value=-1)[:, None]
        children = torch.arange(fan_out, dtype=torch.int32, device=p.device)[:, None]
        in_child = _indicator(torch.eq, child_in_row, children).cumsum_(2).flatten()  # of the first t in a row
        self.in_row = pad(in_row, (1, 0), value=total).flatten()
        self.child, self.children = child_in_row.double(), children.double()

        # Two paths from i: to the first rank that is not worse, and to the last that is not better. Sums are needed up to the
        # positions where the step around p starts and ends, and up to the end or the start of the row. A hard step counts ties among
        # the worse, but not among the better.
        worse = torch.searchsorted(in_order, in_order, out_int32=True).index_select(0, rank)
        not_better = torch.searchsorted(in_order, in_order, right=True, out_int32=True).index_select(0, rank) - 1
        begin, end = self.positives.begin, self.positives.end
        ties_end = torch.searchsorted(p, p, right=True, out_int32=True) if breakpoints.delta == 0 else None
        begin_better, end_better = (begin, end) if ties_end is None else (ties_end, ties_end)
        places = torch.stack([begin, end, torch.full_like(end, total), begin_better, end_better, torch.zeros_like(end)])

        key = torch.stack([worse, not_better])[:, None]
        child, node = key >> shift[..., None, None], key >> (shift + _FAN_OUT_BITS)[..., None, None]
        column = (level[..., None, None] * fan_out + (child & fan_out - 1)) * (total + 1)
        # Where the child starts in the next row, minus the entries of the same child in nodes to the left.
        begin_below = (child - node) << shift[..., None, None]
        asked = [column[0] + places.view(2, 3, total)]
        for below, here in zip(begin_below[:-1], column[1:], strict=True):
            asked.append(in_child.index_select(0, asked[-1].flatten()).view(2, 3, total) + (below + here))
        self.asked_worse, self.asked_better = torch.stack(asked, 1).flatten(1)

    def sum(self, weights: Tensor) -> Tensor:
        """Return Σ_j H(p_j - p_i) [y_j < y_i] weights_j for every i; weights and result float64 [K, P]."""
        sums = self._running_sums(weights, torch.lt, self.asked_worse)
        (begin, end, last), (begin_x, end_x, _) = sums
        return last - end + (end_x - begin_x) - self.positives.foot * (end - begin)

    def spread(self, weights: Tensor) -> Tensor:
        """Return Σ_i H(p_j - p_i) [y_j < y_i] weights_i for every j; weights and result float64 [P]."""
        # Seen from j, H(p_j - p_i) = 1 - H(p_i - p_j).
        sums = self._running_sums(weights[None], torch.gt, self.asked_better)
        (begin, end, first), (begin_x, end_x, _) = sums.squeeze(2)
        return begin - first + (1 + self.positives.foot) * (end - begin) - (end_x - begin_x)

    def _running_sums(self, weights: Tensor, beside: Callable[..., Tensor], asked: Tensor) -> Tensor:
        """Return Σ w and Σ w x over the positives beside the path and before the three given positions in its rows, [2, 3, K, P]."""
        where = _indicator(beside, self.child, self.children)

        def sums(moment: Tensor) -> Tensor:
            in_row = moment.index_select(0, self.in_row).view(len(where), 1, -1)
            running = (in_row * where).cumsum_(2).flatten()
            return running.index_select(0, asked).view(len(where), 3, -1).sum(0)

        moments = pad(self.positives.moments(weights), (0, 1))
        return torch.stack([sums(x) for x in moments]).view(2, len(weights), 3, -1).transpose(1, 2)
