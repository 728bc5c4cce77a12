"""Uncertainty of AP and oLRP: bootstrap over images, exact in each resample.

A resample draws as many images as there are, with replacement (Efron, 1979); the detections and objects of an image drawn twice count
twice. Its metrics are those of the evaluator on such a data set. Nothing is matched or sorted again: with sorted detections, a resample
is a weight of 0, 1, 2, ... per image, and all counts are cumulative sums of weights.
"""

from itertools import pairwise
from typing import NamedTuple

import numpy as np

from .inputs import Detections, GroundTruth
from .lrp import TAU
from .matching import AREA_RANGES, DEFAULT_LIMITS, Candidates, Matched, Matching, Setting, match, take_part
from .precision import RECALLS, needed_true_positives

RESAMPLES, SEED = 1000, 0
_CELLS = 2**23  # entries for true positives in resamples that are in memory at a time
_FEWEST = 50  # resamples at a time
_ROWS = 64  # true positives at a time
_TINY = np.float32(1e-30)  # replaces 0 in denominators, and vanishes when added to 1


class Resampled(NamedTuple):
    """A metric or difference as measured, and in B resamples of the images; fractions."""

    measured: float
    values: np.ndarray  # (B,)

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % interval: the percentiles 2.5 and 97.5 of the resamples, shifted so that their mean is the measured value.

        Resamples are slightly biased, because images drawn twice have equal scores: the precision, of which AP takes the maximum,
        varies more than for as many different images.
        """
        low, high = np.nanquantile(self.values, (0.025, 0.975)) - np.nanmean(self.values) + self.measured
        return float(low), float(high)


class Bootstrap(NamedTuple):
    """AP and oLRP: means over the classes that have objects, in each resample over those that have any there."""

    ap: Resampled
    olrp: Resampled


def bootstrap(
    ground_truth: GroundTruth,
    detections: Detections,
    style: str = "coco",
    *,
    max_detections: int | None = None,
    resamples: int = RESAMPLES,
    seed: int = SEED,
) -> Bootstrap:
    """Evaluate detections on resamples of the images; equal seeds draw equal images.

    Args:
        ground_truth: the objects.
        detections: read for this ground truth.
        style: as in `evaluate_detections`.
        max_detections: as in `evaluate_detections`.
        resamples: their number B.
        seed: seed of the draws.

    Raises:
        ValueError: scipy is missing.
    """
    limit = max_detections or DEFAULT_LIMITS[style]
    candidates = take_part(ground_truth, detections, federated=style == "lvis", limit=limit)
    setting = next(iter(match(ground_truth, candidates, [AREA_RANGES[""]])))
    return bootstrap_matched(Matched(ground_truth, candidates, setting), resamples=resamples, seed=seed)


def bootstrap_matched(matched: Matched, *, resamples: int = RESAMPLES, seed: int = SEED) -> Bootstrap:
    """`bootstrap` for detections that have already been matched."""
    ground_truth, candidates, setting = matched
    random, num_images = np.random.default_rng(seed), len(ground_truth.images)
    most = np.bincount(candidates.detections.category[setting.matchings[0].detection], minlength=1).max()
    block = max(_FEWEST, min(resamples + 1, _CELLS // max(int(most), num_images)))  # at a time
    parts = []
    for begin in range(0, resamples + 1, block):
        weights = np.ones((num_images, min(block, resamples + 1 - begin)), dtype=np.float32)
        for n in range(begin == 0, weights.shape[1]):  # the first column stays 1: as measured
            weights[:, n] = np.bincount(random.integers(num_images, size=num_images), minlength=num_images)
        parts.append(evaluate_weighted(ground_truth, candidates, setting, weights))
    return Bootstrap(*(Resampled(float(x[0]), x[1:]) for x in map(np.concatenate, zip(*parts, strict=True))))


def paired_difference(first: Bootstrap, second: Bootstrap) -> Bootstrap:
    """The difference of `second` from `first`, resample by resample, for two detectors on the same images and with the same seed.

    Both are better or worse on the same images, which cancels out: the interval is narrower than their separate intervals suggest.
    """
    pairs = zip(first, second, strict=True)
    return Bootstrap(*(Resampled(b.measured - a.measured, b.values - a.values) for a, b in pairs))


def evaluate_weighted(
    ground_truth: GroundTruth, candidates: Candidates, setting: Setting, weights: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """AP and oLRP, (B,) each, with a weight for each image.

    Args:
        ground_truth: the objects.
        candidates: the detections.
        setting: the outcome of matching.
        weights: (I, B) whole numbers >= 0, float32: the weight of each image in each of B resamples.
    """
    category, image, scores = (getattr(candidates.detections, name) for name in ("category", "image", "scores"))
    num_classes, num_resamples = len(setting.num_objects), weights.shape[1]
    starts = np.searchsorted(category, np.arange(num_classes + 1))
    buffers = _Buffers(num_resamples)
    ap, olrp, classes = np.zeros((3, num_resamples))
    objects = np.flatnonzero(~setting.ignored)
    objects = objects[np.argsort(ground_truth.category[objects], kind="stable")]
    of_classes = _totals(weights, ground_truth.image[objects], ground_truth.category[objects], num_classes)
    for c in np.flatnonzero(setting.num_objects):
        num_objects = of_classes[c]  # (B,)
        passed = _Passed.of(num_objects)
        of_class = slice(starts[c], starts[c + 1])
        matchings = [matching.select(_range(matching.detection, of_class)) for matching in setting.matchings]
        first = matchings[0].select(~setting.ignored[matchings[0].object])  # true positives of LRP
        falling = -scores[of_class]
        ends = of_class.start + np.searchsorted(falling, -scores[first.detection], side="right") - 1  # of equal scores
        places = np.unique(np.concatenate([ends, *(matching.detection for matching in matchings)]))
        possible = of_class.start + np.flatnonzero(setting.can_be_wrong[of_class])
        all_possible = _summed(weights, image[possible], np.searchsorted(places, possible), len(places))
        np.maximum(all_possible, _TINY, out=all_possible)
        for t, matching in enumerate(matchings):
            is_found = ~setting.ignored[matching.object]
            found = matching.detection[is_found]
            # A true positive may be a detection that could not be wrong; one matched to an ignored object does not count, although it
            # could.
            signs = is_found.astype(np.int8) - setting.can_be_wrong[matching.detection]
            is_odd = signs != 0
            odd, signs = matching.detection[is_odd], signs[is_odd]
            sums = _summed(weights, image[odd], np.arange(len(odd)) + 1, len(odd) + 1, signs)
            counted = _Counted(places, all_possible, odd, signs, sums)
            last = _last_of_runs(counted.number(possible, found) - np.arange(len(found)))
            true = _summed(weights, image[found], np.cumsum(last) - last, int(last.sum()))
            ap += _average_precision(true, counted, found[last], passed, buffers) / len(matchings)
            if t == 0:
                last = _last_of_runs(counted.number(possible, ends) - np.searchsorted(found, ends, side="right"))
                gain = _lrp_gain(first, ends, ends[last], counted, image, weights, num_objects)
                olrp += np.where(num_objects > 0, 1 - gain, 0)
        classes += num_objects > 0
    with np.errstate(invalid="ignore"):
        return ap / classes, olrp / classes


class _Counted(NamedTuple):
    """The number of detections of a class that count, at an IoU threshold, up to given ones, in B resamples."""

    places: np.ndarray  # (Q,) the detections at which `possible` is known
    possible: np.ndarray  # (Q, B) number of detections up to there that can be wrong; _TINY for 0
    odd: np.ndarray  # (K,) detections that count although they cannot be wrong, or can be wrong but do not count
    signs: np.ndarray  # (K,) 1 for the former, -1 for the latter
    sums: np.ndarray  # (K + 1, B) change of the number by the first 0, 1, ..., K of them

    def up_to(self, detections: np.ndarray, out: np.ndarray) -> np.ndarray:
        """(D, B) number of detections up to each of the given positions, (D,); above 0 at true positives."""
        np.take(self.possible, np.searchsorted(self.places, detections), axis=0, out=out, mode="clip")
        if len(self.odd):
            out += self.sums[np.searchsorted(self.odd, detections, side="right")]
            np.maximum(out, _TINY, out=out)
        return out

    def number(self, possible: np.ndarray, detections: np.ndarray) -> np.ndarray:
        """(D,) the same with weight 1 for each image; `possible`: the detections that can be wrong."""
        odd = np.append(0, np.cumsum(self.signs))[np.searchsorted(self.odd, detections, side="right")]
        return np.searchsorted(possible, detections, side="right") + odd


class _Passed(NamedTuple):
    """How many of RECALLS are reached by 0, 1, 2, ..., n - 1 true positives in B resamples."""

    table: np.ndarray  # (V · n,) uint8, for each of the V numbers of objects that occur
    start: np.ndarray  # (B,) start of each resample

    @classmethod
    def of(cls, num_objects: np.ndarray) -> "_Passed":
        """For the given numbers of objects, (B,)."""
        values, which = np.unique(num_objects.astype(np.int64), return_inverse=True)
        needed = needed_true_positives(values)
        width = int(needed.max()) + 1
        places = needed + width * np.arange(len(needed))[:, None]
        reached = np.bincount(places.ravel(), minlength=width * len(needed)).reshape(-1, width)
        return cls(reached.cumsum(axis=1, dtype=np.uint8).ravel(), which * width)


class _Buffers:
    """Buffers for `_ROWS` runs in B resamples, which fit into the processor's cache."""

    def __init__(self, num_resamples: int) -> None:
        shape = (_ROWS, num_resamples)
        self.found, self.rise = np.empty((2, *shape), dtype=np.float32)
        self.highest = np.empty((_ROWS + 1, num_resamples), dtype=np.float32)
        self.places, self.reached = np.empty(shape, dtype=np.int64), np.empty(shape, dtype=np.uint8)


def _average_precision(
    true: np.ndarray, counted: _Counted, last: np.ndarray, passed: _Passed, buffers: _Buffers
) -> np.ndarray:
    """(B,) mean over RECALLS of the highest precision at that recall or more.

    Goes from the last run of true positives to the first, `_ROWS` at a time, so that the interpolated precision can only rise.

    Args:
        true: (P, B) true positives up to the end of each run.
        counted: numbers of detections that count.
        last: (P,) the last detections of the runs.
        passed: the recalls that they reach.
        buffers: working memory.
    """
    total, carried = np.zeros(true.shape[1]), np.zeros(true.shape[1], dtype=np.float32)
    for start in range(0, len(true), _ROWS)[::-1]:
        chunk = slice(start, min(start + _ROWS, len(true)))
        n = chunk.stop - start
        found, places, reached, rise = (
            buffer[:n] for buffer in (buffers.found, buffers.places, buffers.reached, buffers.rise)
        )
        np.divide(true[chunk], counted.up_to(last[chunk], found), out=found)
        highest = buffers.highest[: n + 1]
        highest[n] = carried
        for p in range(n - 1, -1, -1):
            np.maximum(found[p], highest[p + 1], out=highest[p])
        carried[:] = highest[0]
        np.copyto(places, true[chunk], casting="unsafe")
        places += passed.start
        np.take(passed.table, places, out=reached, mode="clip")
        np.subtract(highest[:n], highest[1:], out=rise)
        rise *= reached
        total += rise.sum(axis=0)
    return total / len(RECALLS)


def _lrp_gain(
    true: Matching,
    ends: np.ndarray,
    chosen: np.ndarray,
    counted: _Counted,
    image: np.ndarray,
    weights: np.ndarray,
    num_objects: np.ndarray,
) -> np.ndarray:
    """(B,) how far the LRP error of a class falls below 1, at the best score of its true positives.

    1 - LRP = Σ over TP of (1 - (1 - IoU) / (1 - τ)) / (FP + objects). Detections of equal score count together: `ends`, ascending, is
    the last detection with the score of each true positive. Only the `chosen` ones are evaluated.
    """
    rows = np.searchsorted(chosen, ends)
    number, gain = (
        _summed(weights, image[true.detection], rows, len(chosen), factors)
        for factors in (None, 1 - (1 - true.iou) / (1 - TAU))
    )
    union = counted.up_to(chosen, np.empty_like(gain))
    union -= number  # FP
    union += num_objects
    with np.errstate(invalid="ignore"):  # where there is neither object nor detection
        gain /= union
    return np.fmax.reduce(gain, axis=0, initial=0)


def _last_of_runs(wrong: np.ndarray) -> np.ndarray:
    """Bool (P,): the last true positive for each number of false positives before it, (P,), ascending.

    With more true positives among equally many false positives, precision is higher and the LRP error lower.
    """
    return np.diff(wrong, append=np.inf) > 0


def _range(detections: np.ndarray, of_class: slice) -> np.ndarray:
    """The range of ascending positions that belong to a class."""
    return np.arange(*np.searchsorted(detections, [of_class.start, of_class.stop]))


def _summed(
    weights: np.ndarray, images: np.ndarray, rows: np.ndarray, num_rows: int, factors: np.ndarray | None = None
) -> np.ndarray:
    """Cumulative `_totals` over the rows."""
    sums = _totals(weights, images, rows, num_rows, factors)
    for above, row in pairwise(sums):
        np.add(above, row, out=row)
    return sums


def _totals(
    weights: np.ndarray, images: np.ndarray, rows: np.ndarray, num_rows: int, factors: np.ndarray | None = None
) -> np.ndarray:
    """(R, B) sums by row of the image weights of entries, times factors; rows, ascending, beyond R are left out."""
    try:
        from scipy.sparse import csr_array
    except ImportError:
        raise ValueError('Bootstrap intervals need scipy: pip install "ranksort[calibration]"') from None

    if not len(rows):
        return np.zeros((num_rows, weights.shape[1]), dtype=np.float32)
    starts = np.searchsorted(rows, np.arange(num_rows + 1))
    values = np.ones(starts[-1]) if factors is None else factors[: starts[-1]]
    matrix = csr_array((values.astype(np.float32), images[: starts[-1]], starts), shape=(num_rows, len(weights)))
    sums: np.ndarray = matrix @ weights
    return sums
