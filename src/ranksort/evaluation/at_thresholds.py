"""Precision, recall and LRP error of detections cut off at score thresholds, as users of these thresholds see them."""

import math
from collections.abc import Mapping

import numpy as np

from ..data.ids import Id
from .metrics import percent
from .report import Report

COLUMNS = ("precision", "recall", "LRP")


def add_numbers(report: Report, thresholds: Mapping[Id, float]) -> None:
    """Add `score_threshold`, `precision`, `recall` and `LRP`, at IoU .5, to the classes of a report.

    Args:
        report: report on detections that were cut off at the thresholds.
        thresholds: thresholds by category id, for all classes of the model.
    """
    matches, count = report.matches, len(report.categories)
    tp, fp = (np.bincount(matches.category[matches.outcome == kind], minlength=count) for kind in (1, 0))
    places = {category.id: n for n, category in enumerate(report.categories)}
    for row, errors in zip(report.per_class, report.lrp, strict=True):
        c = places[row["category_id"]]
        row["score_threshold"] = thresholds.get(row["category_id"], math.nan)
        row["precision"] = float(tp[c] / (tp[c] + fp[c])) if tp[c] + fp[c] else math.nan
        row["recall"], row["LRP"] = float(tp[c] / row["objects"]), float(errors[0])


def table(report: Report) -> str:
    """A table of these numbers; the last row has their means."""
    rows = report.per_class
    width = max(5, *(len(row["class"]) for row in rows))
    lines = [
        f"{'at these thresholds, in %':<{width}}",
        f"{'class':<{width}}" + "".join(f"{c:>12}" for c in ("from score", *COLUMNS)),
    ]
    for row in rows:
        values = "".join(f"{percent(row[c]):>12}" for c in COLUMNS)
        lines.append(f"{row['class']:<{width}}{row['score_threshold']:>12.3f}{values}")
    means = [[row[c] for row in rows if not math.isnan(row[c])] for c in COLUMNS]
    values = "".join(f"{percent(sum(m) / len(m) if m else math.nan):>12}" for m in means)
    return "\n".join([*lines, f"{'mean':<{width}}{'':>12}{values}"])
