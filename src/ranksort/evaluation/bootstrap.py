"""How far AP and oLRP would differ on other images: bootstrap over images, exact in each resample.

A resample draws as many images as there are, with replacement (Efron, 1979); an image drawn twice counts twice, detections and
objects. Its numbers are those of the evaluator on such a data set. Nothing is matched or sorted again: with the detections in
order, a resample is a weight of 0, 1, 2, ... for each image, and all counts are cumulative sums of weights.
"""

from itertools import pairwise
from typing import NamedTuple

import numpy as np

from .inputs import Detections, GroundTruth
from .lrp import TAU
from .matching import AREA_RANGES, DEFAULT_LIMITS, Candidates, Matched, Matching, Setting, match, take_part
from .precision import RECALLS, needed_true_positives

RESAMPLES, SEED = 1000, 0
_CELLS = 2**23  # of true positives in resamples, which are kept in memory at a time
_FEWEST = 50  # resamples at a time
_ROWS = 64  # true positives at a time


class Resampled(NamedTuple):
    """A metric, or a difference, as measured, and in B resamples of the images; fractions."""

    measured: float
    values: np.ndarray  # (B,)

    @property
    def interval(self) -> tuple[float, float]:
        """Where it would lie in 95 % of the cases: the percentiles 2.5 and 97.5 of the resamples, moved so that their mean is as measured.

        Resamples are a little off on average, since images drawn twice have equal scores: precision, which AP takes the highest of,
        varies more than in as many different images.
        """
        low, high = np.nanquantile(self.values, (0.025, 0.975)) - np.nanmean(self.values) + self.measured
        return float(low), float(high)


class Bootstrap(NamedTuple):
    """AP and oLRP: means over the classes that have objects, in a resample those that have any there."""

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
        style, max_detections: see `evaluate_detections`.
        resamples: B, how many.
        seed: of the draws.

    Raises:
        ValueError: scipy is missing.
    """
    limit = max_detections or DEFAULT_LIMITS[style]
    candidates = take_part(ground_truth, detections, federated=style == "lvis", limit=limit)
    setting = next(iter(match(ground_truth, candidates, [AREA_RANGES[""]])))
    return bootstrap_matched(Matched(ground_truth, candidates, setting), resamples=resamples, seed=seed)


def bootstrap_matched(matched: Matched, *, resamples: int = RESAMPLES, seed: int = SEED) -> Bootstrap:
    """`bootstrap` of what has been matched already."""
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
    """What `second` has more than `first`, resample by resample: of two detectors on the same images, drawn by the same seed.

    Both are better or worse on the same images, which cancels out: the interval is narrower than those of the two suggest.
    """
    pairs = zip(first, second, strict=True)
    return Bootstrap(*(Resampled(b.measured - a.measured, b.values - a.values) for a, b in pairs))


def evaluate_weighted(
    ground_truth: GroundTruth, candidates: Candidates, setting: Setting, weights: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """AP and oLRP, (B,) each, where each image counts so many times.

    Args:
        ground_truth: the objects.
        candidates: the detections.
        setting: what they come to.
        weights: (I, B) whole numbers from 0 on, float32: of the images, in each of B resamples.
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
            # A true positive may be one that could not be wrong; a detection matched to what is ignored does not count, though it could.
            signs = is_found.astype(np.int8) - setting.can_be_wrong[matching.detection]
            odd = np.flatnonzero(signs)
            odd_rows = np.searchsorted(odd, np.flatnonzero(is_found), side="right")
            # Where nothing wrong lies between true positives, the last of them has the highest precision of them.
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
    """P runs of true positives of a class at an IoU threshold, by falling score, in B resamples."""

    true: np.ndarray  # (P, B) true positives up to the end of each run
    found: np.ndarray  # (Q, B) detections that count up to some places, except for odd ones
    rows: np.ndarray  # (P,) the places there
    odd: np.ndarray  # (K + 1, B) what the first 0, 1, ..., K odd ones add to it
    odd_rows: np.ndarray  # (P,) how many odd ones there are up to the end of each run


class _Buffers:
    """Memory for `_ROWS` runs in B resamples, which stays in the processor's cache."""

    def __init__(self, num_resamples: int) -> None:
        shape = (_ROWS, num_resamples)
        self.found, self.rise = np.empty((2, *shape), dtype=np.float32)
        self.highest = np.empty((_ROWS + 1, num_resamples), dtype=np.float32)
        self.places, self.reached = np.empty(shape, dtype=np.int64), np.empty(shape, dtype=np.uint8)


def _average_precision(runs: _Runs, passed: np.ndarray, buffers: _Buffers) -> np.ndarray:
    """(B,) mean over RECALLS of the highest precision at that recall or more.

    Goes from the last run to the first, `_ROWS` at a time: the precision that counts can only rise.

    Args:
        runs: of true positives.
        passed: (B, n) how many of RECALLS 0, 1, 2, ... true positives reach.
        buffers: to compute in.
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
    """(Q, B) LRP error of a class at each score of a true positive, of which there are Q: detections of equal score count together."""
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
    """Which of some rising positions are of a class."""
    return np.arange(*np.searchsorted(detections, [of_class.start, of_class.stop]))


def _summed(
    weights: np.ndarray, images: np.ndarray, rows: np.ndarray, num_rows: int, factors: np.ndarray | None = None
) -> np.ndarray:
    """(R, B) the weights of some detections, times their factors, up to each row; `rows`, rising, says from which on each counts."""
    try:
        from scipy.sparse import csr_array
    except ImportError:
        raise ValueError('Bootstrap intervals need scipy: pip install "ranksort[calibration]"') from None

    if not len(rows):
        return np.zeros((num_rows, weights.shape[1]), dtype=np.float32)
    starts = np.searchsorted(rows, np.arange(num_rows + 1))  # what is behind the last row is of no interest
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
