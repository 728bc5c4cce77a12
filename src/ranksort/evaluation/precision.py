"""Average precision and recall by COCO's rules."""

import numpy as np

from .matching import Candidates, Matching, Setting

RECALLS = np.linspace(0, 1, 101)


def evaluate_precision(candidates: Candidates, setting: Setting, limits: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """Precision and recall of C classes in one area range, at T IoU thresholds. NaN where a class has no object.

    Args:
        candidates: the detections.
        setting: what they come to in an area range.
        limits: L numbers of detections.

    Returns:
        precision: (T, C, 101) at RECALLS: the highest at that recall or more; and recall: (T, C, L) at up to so many
            detections of the class in an image.
    """
    num_classes = len(setting.num_objects)
    starts = np.searchsorted(candidates.detections.category, np.arange(num_classes + 1))
    without_objects = setting.num_objects == 0
    possible = np.append(0, np.cumsum(setting.can_be_wrong))
    precision = np.zeros((len(setting.matchings), num_classes, len(RECALLS)))
    recall = np.zeros((len(setting.matchings), num_classes, len(limits)))
    for t, matching in enumerate(setting.matchings):
        is_tp = ~setting.ignored[matching.object]
        found, tp, fp = _counts(matching, is_tp, setting.can_be_wrong, possible, starts)
        bounds = np.searchsorted(found, starts)
        for c in np.flatnonzero(np.diff(bounds)):
            of_class = slice(bounds[c], bounds[c + 1])
            best = np.maximum.accumulate((tp / (tp + fp))[of_class][::-1])[::-1]
            first = np.searchsorted(tp[of_class] / setting.num_objects[c], RECALLS)
            precision[t, c] = np.append(best, 0)[first]
        category, rank = candidates.detections.category[found], candidates.rank[found]
        for m, limit in enumerate(limits):
            num_found = np.bincount(category[rank < limit], minlength=num_classes)
            recall[t, :, m] = num_found / np.maximum(setting.num_objects, 1)
    precision[:, without_objects] = recall[:, without_objects] = np.nan
    return precision, recall


def _counts(
    matching: Matching, is_tp: np.ndarray, can_be_wrong: np.ndarray, possible: np.ndarray, starts: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The true positives, and how many true and false positives of the class there are up to each of them."""
    tp = np.append(0, np.cumsum(is_tp))
    # Whatever can be wrong and is not matched.
    fp = np.append(0, np.cumsum(can_be_wrong[matching.detection]))
    begin = starts[np.searchsorted(starts, matching.detection, side="right") - 1]  # of the class
    before = np.searchsorted(matching.detection, begin)
    fp_here = possible[matching.detection + 1] - possible[begin] - fp[1:] + fp[before]
    return matching.detection[is_tp], (tp[1:] - tp[before])[is_tp], fp_here[is_tp]
