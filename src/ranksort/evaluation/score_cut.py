"""Detect whether detections were cut off by score before the evaluation, which lowers AP."""

from typing import NamedTuple

import numpy as np

from .lrp import Matches

USUAL = 0.05  # thresholds up to this one are common in published results
_ROUNDED = 0.005  # by which the lowest score may exceed the threshold
_LOWEST = 0.1  # fraction of the detections that is examined
_RIGHT = 0.1  # fraction of them that has to be true positives


class ScoreCut(NamedTuple):
    """Evidence of a score threshold, and its possible cost."""

    lowest: float  # score of all detections
    right: float  # share of true positives among the tenth of the detections with the lowest scores
    most: float  # approximate upper bound of the rise of AP50


def find_score_cut(lowest: float, matches: Matches) -> ScoreCut | None:
    """Tell whether a score threshold seems to have lowered AP.

    Without a threshold, hardly any of the lowest-scoring detections are true positives, however high their scores are. If most of these
    are in images with the maximum number of detections, the detector's limit (such as 100 per image) ends them instead. If scores end
    at a threshold above `USUAL`, and a tenth of the last ones are true positives, some of the next ones would be, too. At most they
    would reach recall 1 at the precision of the existing ones; for a class without detections, at that of all classes.

    Args:
        lowest: lowest score of all detections, including those beyond the limit; NaN if there are none.
        matches: matches of the detections and objects, at IoU .5.

    Returns:
        None if nothing points to a threshold, or it costs less than 1 point of AP50.
    """
    counts, is_tp = matches.outcome >= 0, matches.outcome == 1
    if not lowest >= USUAL + _ROUNDED or not counts.any():
        return None
    scores = matches.score[counts]
    if scores.min() > lowest + _ROUNDED:  # the limit on detections ends them, not a threshold
        return None
    is_low = scores <= np.quantile(scores, _LOWEST)
    in_image = np.bincount(matches.image[counts])
    if (in_image[matches.image[counts][is_low]] == in_image.max()).mean() > 0.5:  # likewise: a limit of the detector
        return None
    right = float(is_tp[counts][is_low].mean())
    size = 1 + int(max(matches.category.max(), matches.object_category.max()))
    objects = np.bincount(matches.object_category, minlength=size)
    found, counted = (np.bincount(matches.category[kind], minlength=size) for kind in (is_tp, counts))
    precision = np.where(counted > 0, found / np.maximum(counted, 1), is_tp.sum() / counts.sum())
    has_objects = objects > 0
    missed = 1 - found[has_objects] / objects[has_objects]
    most = float((missed * precision[has_objects]).mean())
    return ScoreCut(lowest, right, most) if right >= _RIGHT and most >= 0.01 else None
