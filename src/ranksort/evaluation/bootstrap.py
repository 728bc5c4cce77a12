"""How far AP and oLRP would differ on other images: bootstrap over images, exact in each resample.

A resample draws as many images as there are, with replacement (Efron, 1979); an image drawn twice counts twice, detections and
objects. Its numbers are those of the evaluator on such a data set. Nothing is matched or sorted again: with the detections in
order, a resample is a weight of 0, 1, 2, ... for each image, and all counts are cumulative sums of weights.
"""

from collections.abc import Iterator
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from .inputs import Detections, GroundTruth
from .lrp import TAU
from .matching import AREA_RANGES, DEFAULT_LIMITS, Candidates, Matching, Setting, match, take_part
from .precision import RECALLS, needed_true_positives

_BLOCK = 250  # resamples at a time


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
    """AP and oLRP: means over the classes that have objects, in a resample those which have any there."""

    ap: Resampled
    olrp: Resampled


def bootstrap(
    ground_truth: GroundTruth,
    detections: Detections,
    style: str = "coco",
    *,
    max_detections: int | None = None,
    resamples: int = 1000,
    seed: int = 0,
) -> Bootstrap:
    """Evaluate detections on resamples of the images; equal seeds draw equal images.

    Args:
        ground_truth: the objects.
        detections: read for this ground truth.
        style, max_detections: as of `evaluate_detections`.
        resamples: B, how many.
        seed: of the draws.

    Raises:
        ValueError: scipy is missing.
    """
    limit = max_detections or DEFAULT_LIMITS[style]
    candidates = take_part(ground_truth, detections, federated=style == "lvis", limit=limit)
    setting = next(iter(match(ground_truth, candidates, [AREA_RANGES[""]])))
    random, num_images = np.random.default_rng(seed), len(ground_truth.images)
    parts = [evaluate_weighted(ground_truth, candidates, setting, np.ones((num_images, 1), dtype=np.float32))]
    for begin in range(0, resamples, _BLOCK):
        draws = random.multinomial(num_images, np.full(num_images, 1 / num_images), min(_BLOCK, resamples - begin))
        parts.append(evaluate_weighted(ground_truth, candidates, setting, draws.T.astype(np.float32)))
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
    category = candidates.detections.category
    num_classes, num_resamples = len(setting.num_objects), weights.shape[1]
    starts = np.searchsorted(category, np.arange(num_classes + 1))
    ap, olrp, classes = np.zeros((3, num_resamples))
    for c in np.flatnonzero(setting.num_objects):
        images = ground_truth.image[~setting.ignored & (ground_truth.category == c)]
        num_objects = np.bincount(images, minlength=len(weights)).astype(np.float32) @ weights  # (B,)
        passed = _passed_recalls(num_objects)
        of_class = [matching.select(category[matching.detection] == c) for matching in setting.matchings]
        counts = _counts(candidates, setting, of_class, slice(starts[c], starts[c + 1]), weights)
        for t, (true, found) in enumerate(counts):
            if t == 0:
                matching = of_class[t].select(~setting.ignored[of_class[t].object])
                images = candidates.detections.image[matching.detection]
                localization = ((1 - matching.iou) / (1 - TAU)).astype(np.float32)
                _accumulate(np.add, summed := weights[images] * localization[:, None])
                last, wrong_later = _ends_of_ties(candidates, setting, matching, slice(starts[c], starts[c + 1]))
                union = found[last] - true[last] + num_objects  # TP, FP and FN
                np.add.at(union, wrong_later[0], weights[candidates.detections.image[wrong_later[1]]])
                with np.errstate(invalid="ignore"):  # where there is neither object nor detection
                    errors = (summed[last] + union - true[last]) / union
                olrp += np.where(num_objects > 0, np.fmin.reduce(errors, axis=0, initial=1), 0)
            ap += _average_precision(true, found, passed) / len(of_class)
        classes += num_objects > 0
    with np.errstate(invalid="ignore"):
        return ap / classes, olrp / classes


def _counts(
    candidates: Candidates, setting: Setting, matchings: list[Matching], of_class: slice, weights: np.ndarray
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """For each IoU threshold, true positives and all that count, up to each true positive: (P, B) both, float32."""
    try:
        from scipy.sparse import csr_array
    except ImportError:
        raise ValueError('Bootstrap intervals need scipy: pip install "ranksort[calibration]"') from None

    def summed(detections: np.ndarray, places: np.ndarray, signs: np.ndarray) -> np.ndarray:
        """The signed weights of some detections up to each of some places, (P, B)."""
        rows = np.searchsorted(places, detections)  # those behind the last place are of no interest
        kept = rows < len(places)
        cells = signs[kept].astype(np.float32), (rows[kept], image[detections[kept]])
        return _accumulate(np.add, csr_array(cells, shape=(len(places), len(weights))) @ weights)

    image = candidates.detections.image
    is_found = [~setting.ignored[matching.object] for matching in matchings]
    places = np.unique(
        np.concatenate([matching.detection[tp] for matching, tp in zip(matchings, is_found, strict=True)])
    )
    possible = of_class.start + np.flatnonzero(setting.can_be_wrong[of_class])
    all_possible = summed(possible, places, np.ones(len(possible)))
    for matching, tp in zip(matchings, is_found, strict=True):
        true = matching.detection[tp]
        found = all_possible[np.searchsorted(places, true)]
        # A true positive may be one that could not be wrong; a detection matched to what is ignored does not count.
        sign = tp.astype(np.int8) - setting.can_be_wrong[matching.detection]
        if sign.any():
            found += summed(matching.detection[sign != 0], true, sign[sign != 0])
        yield _accumulate(np.add, weights[image[true]]), found


def _ends_of_ties(
    candidates: Candidates, setting: Setting, true: Matching, of_class: slice
) -> tuple[np.ndarray, tuple[np.ndarray, np.ndarray]]:
    """Which true positives are the last of their score, (Q,); and by number among these, the false positives of equal score that follow."""
    scores = candidates.detections.scores[of_class]
    last = np.flatnonzero(np.diff(scores[true.detection - of_class.start], append=-1))
    begins = true.detection[last] - of_class.start + 1
    counts = np.searchsorted(-scores, -scores[begins - 1], side="right") - begins
    number = np.repeat(np.arange(len(last)), counts)
    later = of_class.start + np.repeat(begins - np.cumsum(counts) + counts, counts) + np.arange(counts.sum())
    wrong = setting.can_be_wrong[later] & ~np.isin(later, setting.matchings[0].detection)
    return last, (number[wrong], later[wrong])


def _average_precision(true: np.ndarray, found: np.ndarray, passed: np.ndarray) -> np.ndarray:
    """(B,) mean over RECALLS of the highest precision at that recall or more.

    Args:
        true: (P, B) true positives up to each of them.
        found: (P, B) those and the false ones; it is overwritten.
        passed: (B, n) how many of RECALLS 0, 1, 2, ... true positives reach.
    """
    precision = np.divide(true, np.maximum(found, 1, out=found), out=found)
    _accumulate(np.maximum, precision[::-1])
    offset = np.arange(len(passed)) * passed.shape[1]
    reached = passed.ravel().take(true.astype(np.int64) + offset)
    reached[1:] -= reached[:-1].copy()
    return np.einsum("pb,pb->b", precision, reached) / len(RECALLS)


def _passed_recalls(num_objects: np.ndarray) -> np.ndarray:
    """(B, n) how many of RECALLS are reached by 0, 1, 2, ..., n - 1 true positives, of so many objects in B resamples, float32."""
    needed = needed_true_positives(num_objects.astype(np.int64))
    width = int(needed.max()) + 1
    places = needed + width * np.arange(len(needed))[:, None]
    return (
        np.bincount(places.ravel(), minlength=width * len(needed)).reshape(-1, width).cumsum(axis=1, dtype=np.float32)
    )


def _accumulate(operation: np.ufunc, rows: np.ndarray) -> np.ndarray:
    """`operation.accumulate(rows, axis=0, out=rows)` of (P, B): many times faster, since it goes along the rows in memory."""
    for above, row in pairwise(rows):
        operation(above, row, out=row)
    return rows
