"""`thresholds.json`: the score thresholds of each class that reach each precision, recall and LRP error on the evaluated images."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import msgspec
import numpy as np

from ..data.coco_columns import Category
from ..whole_file import replace_file
from ..words import listed
from .report import Report

_STEPS = np.arange(1, 1001) / 1000  # resolution of precisions and recalls


class Wish(NamedTuple):
    """What score thresholds should reach: the lowest LRP error of each class, or a precision or recall at IoU .5 in 0..1."""

    kind: Literal["lrp", "precision", "recall"]
    share: float = math.nan

    def __str__(self) -> str:
        return self.kind if self.kind == "lrp" else f"{self.kind}:{self.share:g}"


def parse_threshold(value: float | str) -> float | Wish:
    """Parse a score threshold: a number in 0..1, "lrp", "precision:.9" or "recall:.8".

    Raises:
        ValueError: it is none of these.
    """
    kind, _, share = str(value).strip().partition(":")
    try:
        if kind == "lrp" and not share:
            return Wish("lrp")
        number = float(share) if kind in ("precision", "recall") else float(value)
        if 0 <= number <= 1 and (kind not in ("precision", "recall") or number > 0):
            return Wish(kind, number) if kind in ("precision", "recall") else number  # type: ignore[arg-type]
    except (TypeError, ValueError):
        pass
    raise ValueError(
        f'the score threshold must be a number within 0..1, "lrp", "precision:P" or "recall:R" with P or R such as .9; got {value!r}'
    )


class Reached(NamedTuple):
    """Score thresholds of some classes, and remarks about them, in sentences."""

    values: list[float]
    remarks: list[str]


class _Row(msgspec.Struct, rename={"name": "class"}):
    """The thresholds of a class.

    Its LRP-optimal threshold (None without true positives) and, at some scores, the number of detections of at least that score and of
    true positives among them.
    """

    category_id: int | str
    name: str
    threshold: float | None
    objects: int = 0
    scores: list[float] = []
    true_positives: list[int] = []
    detections: list[int] = []


class _Content(msgspec.Struct):
    thresholds: list[_Row]
    default: float | None
    iou_type: str = ""
    scores: str = "raw"


@dataclass
class Thresholds:
    """The contents of `thresholds.json`; `name` is used in messages."""

    content: _Content
    name: str

    def reach(self, wish: Wish, categories: Sequence[Category]) -> Reached:
        """The threshold of each class, found by id and name, that comes closest to a wish.

        For a precision, it is the lowest threshold at a true positive that reaches it, so that as many objects as possible are
        detected; for a recall, the highest threshold. A class that never reaches it gets the closest threshold, and an unknown class
        the mean of the others; remarks say so.

        Raises:
            ValueError: there is no threshold for any of the classes.
        """
        rows = {(row.category_id, row.name): row for row in self.content.thresholds}
        of_classes = [rows.get((category.id, category.name)) for category in categories]
        if wish.kind != "lrp" and not any(row.scores for row in self.content.thresholds):
            raise ValueError(f"{self.name} has no precisions and recalls: evaluate again with `ranksort test`")
        found = [None if row is None else _reach(row, wish) for row in of_classes]
        known = [threshold for threshold, _ in filter(None, found)]
        if not known:
            raise ValueError(f"{self.name} has no threshold for any class of the model: set a number from 0 to 1")
        default = sum(known) / len(known)
        if wish.kind == "lrp" and self.content.default is not None:
            default = self.content.default
        pairs = list(zip(categories, found, strict=True))
        short = [f"{c.name} (at most {of[1]:.3f})" for c, of in pairs if of and of[1] < wish.share]
        unknown = [category.name for category, of in pairs if of is None]
        remarks = []
        if short:
            remarks.append(f"{wish} is never reached in {self.name} for {listed(short)}: the closest threshold is used")
        if unknown:
            remarks.append(
                f"{self.name} has no true positives of {listed(unknown)}: the mean threshold of the other classes is used"
            )
        return Reached([default if of is None else of[0] for of in found], remarks)


def lowered(threshold: float) -> float:
    """A threshold from `Thresholds.reach`, to apply to the scores of another run of the model.

    It is the score of a true positive. Another batch size, device or ONNX Runtime changes the last digits of scores: applied as it is,
    it would lose this true positive in about half of the cases, and with it the recall that was asked for. It is lowered by what .0001
    less in the logit costs, and by the resolution of a float32.
    """
    return max(threshold - 1e-4 * threshold * (1 - threshold) - 1e-7, 0.0)


def _reach(row: _Row, wish: Wish) -> tuple[float, float] | None:
    """The threshold of a class and the precision or recall there; None without true positives."""
    if wish.kind == "lrp":
        return None if row.threshold is None else (row.threshold, math.nan)
    if not row.scores:
        return None
    tp = np.array(row.true_positives)
    shares = tp / np.array(row.detections) if wish.kind == "precision" else tp / row.objects
    good = np.flatnonzero(shares >= min(wish.share, shares.max()))
    place = good[-1 if wish.kind == "precision" else 0]
    return row.scores[place], float(shares[place])


def thresholds_content(report: Report) -> dict[str, Any]:
    """The contents of `thresholds.json`.

    `iou_type`; `scores`: their kind; `thresholds`: for each category of the ground truth `category_id`, `class` and `threshold`, the
    LRP-optimal one, null without true positives or objects; and `default`: the mean of the others, for those, null if there are none. A
    category with true positives also has `objects` and, at descending `scores`, the numbers of `detections` and of `true_positives`
    from that score on, for precisions and recalls at a resolution of a thousandth.
    """
    found = {row["category_id"]: row["oLRP_threshold"] for row in report.per_class}
    known = {id: threshold for id, threshold in found.items() if not math.isnan(threshold)}
    matches, count = report.matches, len(report.categories)
    bounds = np.searchsorted(matches.category, np.arange(count + 1))
    objects = np.bincount(matches.object_category, minlength=count).tolist()
    rows: list[dict[str, Any]] = []
    for c, category in enumerate(report.categories):
        of_class = slice(bounds[c], bounds[c + 1])
        points = _points(matches.score[of_class], matches.outcome[of_class], objects[c])
        rows.append(
            {"category_id": category.id, "class": category.name, "threshold": known.get(category.id)}
            | ({"objects": objects[c], **points} if points["scores"] else {})
        )
    default = sum(known.values()) / len(known) if known else None
    return {"iou_type": report.iou_type, "scores": report.scores_are, "default": default, "thresholds": rows}


def _points(scores: np.ndarray, outcome: np.ndarray, num_objects: int) -> dict[str, list[Any]]:
    """Where each precision or recall is first reached, for the (N,) detections of a class by descending score."""
    ends = np.flatnonzero(np.diff(scores, append=-1))  # of groups of equal scores
    tp, found = np.cumsum(outcome == 1)[ends], np.cumsum(outcome >= 0)[ends]
    has_tp = np.diff(tp, prepend=0) > 0
    ends, tp, found = ends[has_tp], tp[has_tp], found[has_tp]
    if not len(ends) or not num_objects:
        return {"scores": [], "detections": [], "true_positives": []}
    precision = tp / found
    highest = np.maximum.accumulate(precision[::-1])
    last = len(ends) - 1
    places = np.concatenate(
        [
            np.searchsorted(tp / num_objects, _STEPS),
            last - np.searchsorted(highest, _STEPS),
            [last, last - np.argmax(precision[::-1])],
        ]
    )
    kept = np.unique(places[(places >= 0) & (places <= last)])
    return {
        "scores": scores[ends[kept]].tolist(),
        "detections": found[kept].tolist(),
        "true_positives": tp[kept].tolist(),
    }


def save_thresholds(folder: Path, report: Report) -> None:
    """Write `thresholds.json`, see `thresholds_content`."""
    content = thresholds_content(report)
    lines = ",\n".join(map(json.dumps, content.pop("thresholds")))
    head = "".join(f'"{key}": {json.dumps(value)},\n' for key, value in content.items())
    replace_file(folder / "thresholds.json", f'{{\n{head}"thresholds": [\n{lines}\n]\n}}\n'.encode())


def read_thresholds(content: Any, name: str) -> Thresholds:
    """Parse the result of `thresholds_content`; `name` is used in messages.

    Raises:
        ValueError: it is damaged, or for scores that are not raw.
    """
    try:
        checked = msgspec.convert(content, _Content)
    except (msgspec.ValidationError, RecursionError):
        checked = None
    if checked is None or not all(map(_is_good, checked.thresholds)) or not _is_share(checked.default):
        raise ValueError(f"{name} is damaged: evaluate the run again with `ranksort test`")
    if checked.scores != "raw":
        raise ValueError(
            f"{name} is for scores that were {checked.scores}: evaluate the run again with `ranksort test` without --scores and "
            "--score-threshold"
        )
    return Thresholds(checked, name)


def _is_good(row: _Row) -> bool:
    counts = zip(row.true_positives, row.detections, strict=False)
    are_counts = all(0 < tp <= min(n, row.objects) for tp, n in counts)
    are_columns = len(row.scores) == len(row.true_positives) == len(row.detections)
    return are_counts and are_columns and _is_share(row.threshold) and all(map(_is_share, row.scores))


def _is_share(value: float | None) -> bool:
    return value is None or 0 <= value <= 1
