"""Whether detections were cut off by their score before they were evaluated, which costs AP."""

from typing import NamedTuple

import numpy as np

from .lrp import Matches

USUAL = 0.05  # thresholds up to this one are usual in published results
_ROUNDED = 0.005  # by which the lowest score may exceed the threshold
_LOWEST = 0.1  # share of the detections that are looked at
_RIGHT = 0.1  # share of them that have to be right


class ScoreCut(NamedTuple):
    """What points to a score threshold, and what it may cost."""

    lowest: float  # score of all detections
    right: float  # share of true positives among the tenth of the detections with the lowest scores
    most: float  # by how much AP50 could rise at most, about


def find_score_cut(lowest: float, matches: Matches) -> ScoreCut | None:
    """Tell whether a score threshold seems to have cut AP off.

    Where a detector's scores go down as far as they may, hardly any of the detections with the lowest scores are right, however high these
    scores are; and where most of these are in images with as many detections as any has, the detector's limit ends them, such as 100 an
    image. Where they end at a threshold above `USUAL`, and a tenth of the last ones is right, the next ones would be too. At
    most they reach recall 1 at the precision of all that is there; for a class of which nothing is there, at that of all classes.

    Args:
        lowest: score of all detections, also of those beyond the limit; NaN if there are none.
        matches: of the detections and objects, at IoU .5.

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
