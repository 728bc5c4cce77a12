"""The kinds of false positives and missed objects, confused classes, and the cost of each kind of error in AP.

The kinds, their order and their costs are those of TIDE (Bolya et al., ECCV 2020, sections 2.2 and 2.3), on the matches of our
evaluator at IoU .5: what COCO and LVIS ignore, such as detections on crowds or of classes that are not exhaustively annotated, is not
an error.
"""

from typing import NamedTuple

import numpy as np

from .lrp import TAU
from .matching import Matched
from .overlaps import Overlaps
from .precision import average_precision

BACKGROUND_IOU = 0.1  # below this IoU, a detection is unrelated to an object
LOCALIZATION, CLASS, DUPLICATE, BACKGROUND, BOTH, MISSED = KINDS = range(6)
NAMES = ("poor localisation", "another class", "duplicate", "background", "class and localisation", "missed")


class Errors(NamedTuple):
    """The kind of error of each of the N detections and A objects, and the cost of each of KINDS.

    A false positive has the first kind that applies: LOCALIZATION, if its highest IoU with an object of its class is in [.1, .5); CLASS,
    if its IoU with an object of another class is .5 or more; DUPLICATE, if its IoU with an object of its class that was matched to
    another detection is .5 or more; BACKGROUND, if its IoU with every object is below .1; else BOTH: its IoU with an object of another
    class is in [.1, .5). An object is MISSED if no detection is matched to it and no LOCALIZATION or CLASS error refers to it.

    The cost of a kind is the rise of AP at IoU .5 if its errors were fixed: DUPLICATE, BACKGROUND and BOTH by removing them;
    LOCALIZATION and CLASS by making them true positives of their object, if it is not detected and they are the highest-scoring errors
    of these two kinds that refer to it, else by removing them; MISSED by removing the objects. A class without any objects left then
    has AP 1 (in TIDE 0). Costs do not add up to 1 - AP: an error may matter only after another is fixed.
    """

    kind: np.ndarray  # (N,) int8 in KINDS; -1 for true positives and what does not count
    object: np.ndarray  # (N,) position of the object that the error refers to; -1 for BACKGROUND and without an error
    missed: np.ndarray  # (A,) bool
    ap: np.ndarray  # (C,) AP at IoU .5, NaN without objects
    costs: np.ndarray  # (6, C) likewise, for each of KINDS, fractions


def find_errors(matched: Matched, overlaps: Overlaps) -> Errors:
    """Classify the errors, and compute their costs.

    Args:
        matched: the matched detections and objects.
        overlaps: their overlaps.
    """
    ground_truth, candidates, setting = matched
    matching, category = setting.matchings[0], candidates.detections.category
    is_true = np.zeros(len(category), dtype=bool)
    is_false = setting.can_be_wrong.copy()
    is_found = ~setting.ignored[matching.object]
    is_false[matching.detection] = False
    is_true[matching.detection[is_found]] = True
    found = np.zeros(len(ground_truth.image), dtype=bool)
    found[matching.object[is_found]] = True

    kind, about = _kinds(matched, overlaps, is_false)
    fixed = _fixed(kind, about, found, candidates.detections.scores)
    missed = ~setting.ignored & ~found
    missed[about[fixed]] = False

    def ap(removed: np.ndarray, made_true: np.ndarray, num_objects: np.ndarray) -> np.ndarray:
        kept = np.flatnonzero((is_true | is_false) & (~removed | made_true))
        true, of_class = (is_true | made_true)[kept], category[kept]
        changed = made_true[kept] & (kind[kept] == CLASS)
        if changed.any():
            of_class = np.where(changed, ground_truth.category[about[kept]], of_class)
            order = np.lexsort((kept, -candidates.detections.scores[kept], of_class))
            true, of_class = true[order], of_class[order]
        return average_precision(of_class, true, num_objects)

    none = np.zeros(len(category), dtype=bool)
    num_missed = np.bincount(ground_truth.category[missed], minlength=len(setting.num_objects))
    with_objects = np.where(setting.num_objects > 0, 0.0, np.nan)
    before = ap(none, none, setting.num_objects) + with_objects
    after = [ap(kind == k, fixed & (kind == k), setting.num_objects) for k in KINDS[:-1]]
    left = setting.num_objects - num_missed
    after.append(np.where(left > 0, ap(none, none, left), 1.0))
    return Errors(kind, about, missed, before, np.stack(after) - before)


def _kinds(matched: Matched, overlaps: Overlaps, is_false: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """`kind` and `object` of `Errors`; `is_false`, bool (N,), marks the false positives."""
    pairs = overlaps.pairs.select(~matched.setting.ignored[overlaps.pairs.object])
    last = np.append(np.diff(pairs.detection) != 0, True)[: len(pairs.detection)]  # the best object of each detection
    own, own_object = np.zeros(len(is_false)), np.zeros(len(is_false), dtype=np.int64)
    own[pairs.detection[last]], own_object[pairs.detection[last]] = pairs.iou[last], pairs.object[last]
    fits = {
        LOCALIZATION: (own >= BACKGROUND_IOU) & (own < TAU),
        CLASS: overlaps.other >= TAU,
        DUPLICATE: own >= TAU,
        BACKGROUND: np.maximum(own, overlaps.other) < BACKGROUND_IOU,
    }
    kind = np.where(is_false, np.select(list(fits.values()), list(fits), BOTH), -1).astype(np.int8)
    about = np.where((kind == CLASS) | (kind == BOTH), overlaps.other_object, own_object)
    about[(kind == BACKGROUND) | (kind < 0)] = -1
    return kind, about


def _fixed(kind: np.ndarray, about: np.ndarray, found: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """(N,) bool: the highest-scoring LOCALIZATION or CLASS error that refers to each undetected object."""
    errors = np.flatnonzero((kind == LOCALIZATION) | (kind == CLASS))
    errors = errors[~found[about[errors]]]
    errors = errors[np.lexsort((errors, -scores[errors]))]
    _, first = np.unique(about[errors], return_index=True)
    fixed = np.zeros(len(kind), dtype=bool)
    fixed[errors[first]] = True
    return fixed


class Summary(NamedTuple):
    """Error counts, of all detections and of those `kept`, which score at or above the best threshold of their class."""

    number: np.ndarray  # (6,) errors of each of KINDS; of MISSED, objects
    kept: np.ndarray
    """(6,) likewise; of MISSED, objects that no kept true positive, CLASS or LOCALIZATION error refers to"""
    costs: np.ndarray  # (6,) mean over the classes that have objects
    of_classes: np.ndarray  # (C, 6) `kept` by class: of the detection, and of the object that is missed
    pairs: np.ndarray  # (P, 4): class of the detections, class of the objects, how many, how many of them are kept


def summarize_errors(matched: Matched, errors: Errors, kept: np.ndarray) -> Summary:
    """Count errors; `pairs` counts CLASS errors, by descending number of those kept, bool (N,), then of all."""
    ground_truth, candidates, setting = matched
    category, num_classes = candidates.detections.category.astype(np.int64), len(setting.num_objects)
    is_error = errors.kind >= 0
    number = np.bincount(errors.kind[is_error], minlength=len(KINDS))
    number[MISSED] = errors.missed.sum()

    matching = setting.matchings[0].select(kept[setting.matchings[0].detection])
    covered = setting.ignored.copy()
    covered[matching.object] = True
    covered[errors.object[kept & ((errors.kind == LOCALIZATION) | (errors.kind == CLASS))]] = True
    counted = is_error & kept
    of_classes = np.bincount(category[counted] * len(KINDS) + errors.kind[counted], minlength=num_classes * len(KINDS))
    of_classes = of_classes.reshape(num_classes, len(KINDS))
    of_classes[:, MISSED] = np.bincount(ground_truth.category[~covered], minlength=num_classes)

    confused = np.flatnonzero(errors.kind == CLASS)
    codes = category[confused] * num_classes + ground_truth.category[errors.object[confused]]
    pairs, place, total = np.unique(codes, return_inverse=True, return_counts=True)
    num_kept = np.bincount(place, kept[confused], len(pairs)).astype(np.int64)
    rows = np.stack([*np.divmod(pairs, num_classes), total, num_kept], axis=1)
    rows = rows[np.lexsort((-total, -num_kept))]
    has_objects = setting.num_objects > 0
    return Summary(number, of_classes.sum(axis=0), errors.costs[:, has_objects].mean(axis=1), of_classes, rows)
