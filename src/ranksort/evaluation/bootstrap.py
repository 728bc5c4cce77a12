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
    block = max(_FEWEST, min(resamples, _CELLS // max(int(most), num_images)))  # at a time
    parts = [evaluate_weighted(ground_truth, candidates, setting, np.ones((num_images, 1), dtype=np.float32))]
    for begin in range(0, resamples, block):
        draws = [random.integers(num_images, size=num_images) for _ in range(min(block, resamples - begin))]
        weights = np.stack([np.bincount(drawn, minlength=num_images) for drawn in draws], axis=1)
        parts.append(evaluate_weighted(ground_truth, candidates, setting, weights.astype(np.float32)))
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
    category, image = candidates.detections.category, candidates.detections.image
    num_classes, num_resamples = len(setting.num_objects), weights.shape[1]
    starts = np.searchsorted(category, np.arange(num_classes + 1))
    buffers = _Buffers(num_resamples)
    ap, olrp, classes = np.zeros((3, num_resamples))
    for c in np.flatnonzero(setting.num_objects):
        images = ground_truth.image[~setting.ignored & (ground_truth.category == c)]
        num_objects = np.bincount(images, minlength=len(weights)).astype(np.float32) @ weights  # (B,)
        passed = _passed_recalls(num_objects)
        of_class = slice(starts[c], starts[c + 1])
        matchings = [matching.select(_range(matching.detection, of_class)) for matching in setting.matchings]
        places = np.unique(np.concatenate([matching.detection for matching in matchings]))
        possible = of_class.start + np.flatnonzero(setting.can_be_wrong[of_class])
        all_possible = _summed(weights, image[possible], np.searchsorted(places, possible), len(places))
        for t, matching in enumerate(matchings):
            is_found = ~setting.ignored[matching.object]
            found = matching.detection[is_found]
            # A true positive may be a detection that could not be wrong; one matched to an ignored object does not count, although it
            # could.
            signs = is_found.astype(np.int8) - setting.can_be_wrong[matching.detection]
            odd = np.flatnonzero(signs)
            odd_rows = np.searchsorted(odd, np.flatnonzero(is_found), side="right")
            # Among true positives without false positives between them, the last has the highest precision.
            number = np.searchsorted(possible, found, side="right") + np.append(0, np.cumsum(signs[odd]))[odd_rows]
            is_last = np.append(np.diff(number) > 1, True)[: len(found)]
            run, num_runs = np.cumsum(is_last) - is_last, int(is_last.sum())
            true = _Runs(
                _summed(weights, image[found], run, num_runs),
                all_possible,
                np.searchsorted(places, found[is_last]),
                _summed(weights, image[matching.detection[odd]], np.arange(len(odd)) + 1, len(odd) + 1, signs[odd]),
                odd_rows[is_last],
            )
            ap += _average_precision(true, passed, buffers) / len(matchings)
            if t == 0:
                errors = _lrp_errors(candidates, setting, matching, of_class, weights, num_objects)
                olrp += np.where(num_objects > 0, np.fmin.reduce(errors, axis=0, initial=1), 0)
        classes += num_objects > 0
    with np.errstate(invalid="ignore"):
        return ap / classes, olrp / classes


class _Runs(NamedTuple):
    """P runs of true positives of a class at an IoU threshold, by descending score, in B resamples."""

    true: np.ndarray  # (P, B) true positives up to the end of each run
    found: np.ndarray  # (Q, B) detections that count up to some positions, except for odd ones
    rows: np.ndarray  # (P,) the positions there
    odd: np.ndarray  # (K + 1, B) what the first 0, 1, ..., K odd ones add
    odd_rows: np.ndarray  # (P,) how many odd ones there are up to the end of each run


class _Buffers:
    """Buffers for `_ROWS` runs in B resamples, which fit into the processor's cache."""

    def __init__(self, num_resamples: int) -> None:
        shape = (_ROWS, num_resamples)
        self.found, self.rise = np.empty((2, *shape), dtype=np.float32)
        self.highest = np.empty((_ROWS + 1, num_resamples), dtype=np.float32)
        self.places, self.reached = np.empty(shape, dtype=np.int64), np.empty(shape, dtype=np.uint8)


def _average_precision(runs: _Runs, passed: np.ndarray, buffers: _Buffers) -> np.ndarray:
    """(B,) mean over RECALLS of the highest precision at that recall or more.

    Goes from the last run to the first, `_ROWS` at a time, so that the interpolated precision can only rise.

    Args:
        runs: runs of true positives.
        passed: (B, n) how many of RECALLS are reached by 0, 1, 2, ... true positives.
        buffers: working memory.
    """
    num_runs, num_resamples = runs.true.shape
    offset, table = np.arange(num_resamples) * passed.shape[1], passed.ravel()
    precision, carried = np.zeros(num_resamples), np.zeros(num_resamples, dtype=np.float32)
    for start in range(0, num_runs, _ROWS)[::-1]:
        chunk = slice(start, min(start + _ROWS, num_runs))
        true = runs.true[chunk]
        n = len(true)
        found, places, reached, rise = (
            buffer[:n] for buffer in (buffers.found, buffers.places, buffers.reached, buffers.rise)
        )
        np.take(runs.found, runs.rows[chunk], axis=0, out=found, mode="clip")
        if len(runs.odd) > 1:
            found += runs.odd[runs.odd_rows[chunk]]
        np.divide(true, np.maximum(found, 1, out=found), out=found)
        highest = buffers.highest[: n + 1]
        highest[n] = carried
        for p in range(n - 1, -1, -1):
            np.maximum(found[p], highest[p + 1], out=highest[p])
        carried[:] = highest[0]
        np.copyto(places, true, casting="unsafe")
        places += offset
        np.take(table, places, out=reached, mode="clip")
        np.subtract(highest[:n], highest[1:], out=rise)
        rise *= reached
        precision += rise.sum(axis=0)
    return precision / len(RECALLS)


def _lrp_errors(
    candidates: Candidates,
    setting: Setting,
    matching: Matching,
    of_class: slice,
    weights: np.ndarray,
    num_objects: np.ndarray,
) -> np.ndarray:
    """(Q, B) LRP error of a class at each of the Q scores of true positives; detections of equal score count together."""
    image, scores = candidates.detections.image, candidates.detections.scores[of_class]
    is_found = ~setting.ignored[matching.object]
    true = matching.detection[is_found]
    _, group = np.unique(-scores[true - of_class.start], return_inverse=True)
    distinct = true[np.flatnonzero(np.diff(group, prepend=-1))] - of_class.start
    ends = of_class.start + np.searchsorted(-scores, -scores[distinct], side="right") - 1
    counts = setting.can_be_wrong[of_class].astype(np.float32)
    counts[matching.detection - of_class.start] = is_found
    counted = of_class.start + np.flatnonzero(counts)
    number = _summed(weights, image[true], group, len(ends))
    errors = _summed(weights, image[true], group, len(ends), (1 - matching.iou[is_found]) / (1 - TAU))
    union = _summed(weights, image[counted], np.searchsorted(ends, counted), len(ends))
    union -= number
    errors += union  # FP
    errors += num_objects - number
    union += num_objects  # TP, FP and FN
    with np.errstate(invalid="ignore"):  # if there is neither object nor detection
        errors /= union
    return errors


def _range(detections: np.ndarray, of_class: slice) -> np.ndarray:
    """The range of ascending positions that belong to a class."""
    return np.arange(*np.searchsorted(detections, [of_class.start, of_class.stop]))


def _summed(
    weights: np.ndarray, images: np.ndarray, rows: np.ndarray, num_rows: int, factors: np.ndarray | None = None
) -> np.ndarray:
    """(R, B) cumulative weights of some detections, times their factors, up to each row; each counts from its row in `rows` on."""
    try:
        from scipy.sparse import csr_array
    except ImportError:
        raise ValueError('Bootstrap intervals need scipy: pip install "ranksort[calibration]"') from None

    if not len(rows):
        return np.zeros((num_rows, weights.shape[1]), dtype=np.float32)
    starts = np.searchsorted(rows, np.arange(num_rows + 1))  # nothing after the last row is needed
    values = np.ones(starts[-1]) if factors is None else factors[: starts[-1]]
    matrix = csr_array((values.astype(np.float32), images[: starts[-1]], starts), shape=(num_rows, len(weights)))
    sums: np.ndarray = matrix @ weights
    for above, row in pairwise(sums):
        np.add(above, row, out=row)
    return sums


def _passed_recalls(num_objects: np.ndarray) -> np.ndarray:
    """(B, n) how many of RECALLS are reached by 0, 1, 2, ..., n - 1 true positives, of so many objects in B resamples, uint8."""
    needed = needed_true_positives(num_objects.astype(np.int64))
    width = int(needed.max()) + 1
    places = needed + width * np.arange(len(needed))[:, None]
    return np.bincount(places.ravel(), minlength=width * len(needed)).reshape(-1, width).cumsum(axis=1, dtype=np.uint8)
