"""What false positives and missed objects come from, what is confused with what, and the AP that each kind of error costs.

The kinds, their order and their costs are those of TIDE (Bolya et al., ECCV 2020, sections 2.2 and 2.3), on the matches of our
evaluator at IoU .5: what COCO and LVIS ignore, such as what lies on a crowd or is not exhaustively annotated, is no error.
"""

from typing import NamedTuple

import numpy as np

from .lrp import TAU
from .matching import Matched
from .overlaps import Overlaps
from .precision import average_precision

BACKGROUND_IOU = 0.1  # below this a detection has nothing to do with an object
LOCALIZATION, CLASS, DUPLICATE, BACKGROUND, BOTH, MISSED = KINDS = range(6)
NAMES = ("poor localisation", "another class", "duplicate", "background", "class and localisation", "missed")


class Errors(NamedTuple):
    """What each of the N detections that take part and of the A objects is, and what the errors of each of KINDS cost.

    A false positive is, the first that holds: LOCALIZATION, if its IoU with the nearest object of its class is from .1 to below .5;
    CLASS, if it is .5 or more with one of another class; DUPLICATE, if it is .5 or more with one of its class, which another detection
    has taken; BACKGROUND, if it is below .1 with all objects; else BOTH: it is from .1 to below .5 with one of another class.
    An object is MISSED where no detection has found it and no LOCALIZATION or CLASS error is about it.

    The cost of a kind is the rise of AP at IoU .5 if its errors were fixed: DUPLICATE, BACKGROUND and BOTH by leaving them out;
    LOCALIZATION and CLASS by making them true positives of their object, if it is not found and they are the highest-scoring errors
    of these two kinds about it, else by leaving them out; MISSED by leaving the objects out. A class of which none is left then has
    AP 1 (in TIDE 0). Costs do not add up to 1 - AP: an error may matter only after another is fixed.
    """

    kind: np.ndarray  # (N,) int8 in KINDS; -1 for true positives and what does not count
    object: (
        np.ndarray
    )  # (N,) position of the object that the error is about; -1 for BACKGROUND and if there is no error
    missed: np.ndarray  # (A,) bool
    ap: np.ndarray  # (C,) AP at IoU .5, NaN without objects
    costs: np.ndarray  # (6, C) likewise, for each of KINDS, fractions


def find_errors(matched: Matched, overlaps: Overlaps) -> Errors:
    """Tell the kinds of errors apart, and what they cost.

    Args:
        matched: the detections and objects, and what they came to.
        overlaps: of these.
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
    """`kind` and `object` of `Errors`; the false positives are marked, bool (N,)."""
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
    """(N,) bool: the highest-scoring LOCALIZATION or CLASS error about each object that is not found."""
    errors = np.flatnonzero((kind == LOCALIZATION) | (kind == CLASS))
    errors = errors[~found[about[errors]]]
    errors = errors[np.lexsort((errors, -scores[errors]))]
    _, first = np.unique(about[errors], return_index=True)
    fixed = np.zeros(len(kind), dtype=bool)
    fixed[errors[first]] = True
    return fixed


class Summary(NamedTuple):
    """Errors counted, of all detections and of those `kept`, which score at or above the best threshold of their class."""

    number: np.ndarray  # (6,) errors of each of KINDS; of MISSED, objects
    kept: (
        np.ndarray
    )  # (6,) likewise, and of MISSED the objects of which no kept detection is, right or a CLASS or LOCALIZATION error
    costs: np.ndarray  # (6,) mean over the classes that have objects
    of_classes: np.ndarray  # (C, 6) `kept` by class: of the detection, and of the object that is missed
    pairs: (
        np.ndarray
    )  # (P, 4): class of detections, that of the objects that they are instead, how many, how many are kept


def summarize_errors(matched: Matched, errors: Errors, kept: np.ndarray) -> Summary:
    """Count errors; `pairs` is of the CLASS errors, by falling numbers of those kept, bool (N,), then of all."""
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
