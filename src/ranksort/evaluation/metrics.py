"""The list of metrics, from which the report's summary, table, JSON, CSV and page take their columns."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from .lrp import LRPResult, OptimalLRP

AT_IOU_50, AT_IOU_75 = 0, 5  # positions among COCO's IoU thresholds .5, .55, ..., .95


class AreaResult(NamedTuple):
    """The results of C classes in an area range."""

    num_objects: np.ndarray  # (C,)
    precision: np.ndarray  # (T, C, 101) at T IoU thresholds
    recall: np.ndarray  # (T, C, L) with each of the L limits of `list_metrics` on the number of detections
    lrp: LRPResult


@dataclass(frozen=True)
class Family:
    """Metrics with the same prefix."""

    prefix: str
    higher_is_better: bool


@dataclass(frozen=True)
class Metric:
    """A number for each class, NaN if undefined; the summary has the mean over the classes.

    Attributes:
        name: name in the files.
        compute: maps the results in the area ranges, by the keys of `matching.AREA_RANGES`, to the values (C,).
        family: metrics that share a line; says whether higher is better.
        in_summary: the summary has it.
        by_frequency: LVIS' summary has it for rare, common and frequent classes, too.
        in_lines: the lines above the table have it.
        in_table: the table and the page's largest numbers have it.
        in_classes: the page's table of classes has it.
        in_comparison: that table also has it when it compares runs.
        heading: heading of its column.
        help: explanation.
        is_fraction: shown in %, otherwise like a score.
    """

    name: str
    compute: Callable[[dict[str, AreaResult]], np.ndarray]
    family: Family
    in_summary: bool = True
    by_frequency: bool = False
    in_lines: bool = True
    in_table: bool = False
    in_classes: bool = False
    in_comparison: bool = False
    heading: str = ""
    help: str = ""
    is_fraction: bool = True

    @property
    def title(self) -> str:
        """The heading."""
        return self.heading or self.name

    def text(self, value: float) -> str:
        """A value as shown in the table."""
        return percent(value) if self.is_fraction else "-" if math.isnan(value) else f"{value:.3f}"


AP, AR, OLRP = Family("AP", True), Family("AR", True), Family("oLRP", False)
AREAS = ("s", "m", "l")
COMPONENTS = {"_loc": "localization", "_fp": "false_positive", "_fn": "false_negative"}


def list_metrics(limits: Sequence[int]) -> list[Metric]:
    """The metrics in the order of the report.

    Args:
        limits: the numbers of detections for which AR is computed, ascending; AR by area uses the last one.
    """
    everywhere: dict[str, Any] = {"in_table": True, "in_classes": True}
    return [
        Metric(
            "AP",
            _precision(""),
            AP,
            by_frequency=True,
            **everywhere,
            in_comparison=True,
            help="mean over IoU .5 to .95",
        ),
        Metric("AP50", _precision("", AT_IOU_50), AP, **everywhere, help="AP at IoU .5"),
        Metric("AP75", _precision("", AT_IOU_75), AP, in_table=True, help="AP at IoU .75"),
        *(Metric(f"AP{area}", _precision(area), AP) for area in AREAS),
        *(Metric(f"AR{limit}", _recall("", n), AR) for n, limit in enumerate(limits)),
        *(Metric(f"AR{area}", _recall(area, -1), AR) for area in AREAS),
        Metric(
            "oLRP",
            _olrp("", "error"),
            OLRP,
            by_frequency=True,
            **everywhere,
            in_comparison=True,
            help="optimal LRP error, lower is better",
        ),
        Metric(
            "oLRP_loc",
            _olrp("", "localization"),
            OLRP,
            **everywhere,
            heading="loc",
            help="mean 1 − IoU of the true positives",
        ),
        Metric("oLRP_fp", _olrp("", "false_positive"), OLRP, **everywhere, heading="FP", help="1 − precision"),
        Metric("oLRP_fn", _olrp("", "false_negative"), OLRP, **everywhere, heading="FN", help="1 − recall"),
        *(Metric(f"oLRP{area}", _olrp(area, "error"), OLRP) for area in AREAS),
        Metric(
            "oLRP_threshold",
            _olrp("", "threshold"),
            OLRP,
            in_summary=False,
            **everywhere,
            heading="threshold",
            help="score threshold that reaches oLRP",
            is_fraction=False,
        ),
        *(
            Metric(f"oLRP{area}{suffix}", _olrp(area, part), OLRP, in_lines=False)
            for area in AREAS
            for suffix, part in COMPONENTS.items()
        ),
    ]


def _precision(area: str, threshold: int | None = None) -> Callable[[dict[str, AreaResult]], np.ndarray]:
    """Mean over the recalls, and over the IoU thresholds unless one is given."""
    if threshold is None:
        return lambda results: results[area].precision.mean(axis=(0, 2))
    return lambda results: results[area].precision[threshold].mean(axis=1)


def _recall(area: str, limit: int) -> Callable[[dict[str, AreaResult]], np.ndarray]:
    return lambda results: results[area].recall[..., limit].mean(axis=0)


def _olrp(area: str, part: str) -> Callable[[dict[str, AreaResult]], np.ndarray]:
    column = OptimalLRP._fields.index(part)
    return lambda results: results[area].lrp.optima[:, column]


def without_nan(value: Any) -> Any:
    """The same with None for NaN, which JSON and CSV cannot hold, in dictionaries and lists, too."""
    if isinstance(value, dict):
        return {key: without_nan(item) for key, item in value.items()}
    if isinstance(value, list):
        return [without_nan(item) for item in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def percent(value: float) -> str:
    """In %, with a dash for NaN."""
    return "-" if math.isnan(value) else f"{round(100 * value, 1) + 0.0:.1f}"  # no "-0.0"
