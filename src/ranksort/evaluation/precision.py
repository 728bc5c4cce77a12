"""Average precision and recall by COCO's rules."""

import numpy as np

from .matching import Candidates, Matching, Setting

RECALLS = np.linspace(0, 1, 101)


def evaluate_precision(candidates: Candidates, setting: Setting, limits: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """Precision and recall of C classes in one area range, at T IoU thresholds. NaN if a class has no object.

    Args:
        candidates: the detections.
        setting: the outcome of matching in an area range.
        limits: L limits on the number of detections per class and image.

    Returns:
        precision: (T, C, 101) at RECALLS: the highest at that recall or more; and recall: (T, C, L) with each of the limits.
    """
    num_classes = len(setting.num_objects)
    all_categories = candidates.detections.category
    class_starts = np.searchsorted(all_categories, np.arange(num_classes, dtype=all_categories.dtype))
    possible = np.append(0, np.cumsum(setting.can_be_wrong))
    needed = needed_true_positives(setting.num_objects)
    precision = np.zeros((len(setting.matchings), num_classes, len(RECALLS)))
    recall = np.zeros((len(setting.matchings), num_classes, len(limits)))
    for t, matching in enumerate(setting.matchings):
        is_tp = ~setting.ignored[matching.object]
        found = matching.detection[is_tp]
        category, rank = all_categories[found], candidates.rank[found]
        counts = np.bincount(category, minlength=num_classes)
        tp = 1 + np.arange(len(found)) - np.repeat(np.cumsum(counts) - counts, counts)
        fp = _false_positives(matching, possible, all_categories[matching.detection], class_starts)[is_tp]
        precision[t] = _highest(tp / (tp + fp), counts, needed)
        for m, limit in enumerate(limits):
            num_found = np.bincount(category[rank < limit], minlength=num_classes)
            recall[t, :, m] = num_found / np.maximum(setting.num_objects, 1)
    without_objects = setting.num_objects == 0
    precision[:, without_objects] = recall[:, without_objects] = np.nan
    return precision, recall


def average_precision(category: np.ndarray, is_tp: np.ndarray, num_objects: np.ndarray) -> np.ndarray:
    """(C,) AP of C classes at one IoU threshold; 0 where a class has no true positive.

    Args:
        category: (N,) of the true and false positives, by class and descending score.
        is_tp: (N,) bool: whether they are true positives.
        num_objects: (C,) number of objects that count.
    """
    num_classes = len(num_objects)
    place = np.flatnonzero(is_tp)
    of_class = category[place]
    counts = np.bincount(of_class, minlength=num_classes)
    tp = 1 + np.arange(len(place)) - np.repeat(np.cumsum(counts) - counts, counts)
    class_starts = np.searchsorted(category, np.arange(num_classes))
    precision = tp / (1 + place - class_starts[of_class])
    return _highest(precision, counts, needed_true_positives(num_objects)).mean(axis=1)


def needed_true_positives(num_objects: np.ndarray) -> np.ndarray:
    """(C, 101): how many true positives, at least one, reach each of RECALLS if a class has `num_objects`, (C,)."""
    total = np.maximum(num_objects, 1)[:, None]
    needed = np.ceil(RECALLS * total)  # may be off by one because the product is rounded
    needed -= (needed - 1) / total >= RECALLS
    needed += needed / total < RECALLS
    return np.maximum(needed, 1).astype(np.int64)


def _false_positives(
    matching: Matching, possible: np.ndarray, category: np.ndarray, class_starts: np.ndarray
) -> np.ndarray:
    """(M,) how many false positives of the class there are up to each matched detection.

    Args:
        matching: M matches.
        possible: (N + 1,) how many of the first 0..N detections are false positives if unmatched.
        category: (M,) of the matched detections.
        class_starts: (C,) the first detections of the classes.
    """
    detection = matching.detection
    up_to = possible[detection + 1]
    matched = np.append(0, np.cumsum(up_to - possible[detection]))  # those that are not false positives
    earlier = possible[class_starts] - matched[np.searchsorted(detection, class_starts)]  # of other classes
    return up_to - matched[1:] - earlier[category]


def _highest(values: np.ndarray, counts: np.ndarray, needed: np.ndarray) -> np.ndarray:
    """(C, 101) the highest of the values of each class from the `needed`-th one on, 0 if there are fewer.

    Args:
        values: (P,) by class.
        counts: (C,) how many of them belong to each class.
        needed: (C, 101), ascending from 1.
    """
    starts = (np.cumsum(counts) - counts)[:, None]
    enough = needed <= counts[:, None]
    # From each place to the next one; the last of a class ends where the next class starts.
    places = np.where(enough, starts + needed - 1, starts + counts[:, None])
    highest = np.maximum.reduceat(np.append(values, 0.0), places.ravel()).reshape(places.shape)
    highest[~enough] = 0
    return np.maximum.accumulate(highest[:, ::-1], axis=1)[:, ::-1]
