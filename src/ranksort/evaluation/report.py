"""The result of an evaluation: numbers, a table, JSON and CSV."""

import csv
import io
import json
import math
import reprlib
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from ..whole_file import replace_file
from ..words import counted, listed
from .analysis import Analysis, analyse
from .inputs import CategoryInfo
from .lrp import SCORE_GRID, TAU, Matches
from .matching import Matched
from .metrics import Metric, percent, without_nan
from .score_cut import USUAL, find_score_cut

TABLE_ROWS = 30  # with more classes, the table shows the worst and the best
SCORE_BINS = 50
SAMPLE = 2000  # true positives whose scores and IoUs are saved


@dataclass(frozen=True)
class Cut:
    """What the limit on detections left out.

    Attributes:
        limit: how many detections count: per class and image in COCO, per image in LVIS.
        num_detections: how many more there are.
        most: the lowest limit that would leave none out.
    """

    limit: int
    num_detections: int
    most: int


@dataclass
class Report:
    """Metrics of detections, as fractions 0..1, NaN if undefined.

    Attributes:
        summary: name to value, averaged over the classes for which the metric is defined; see `as_dict`.
        per_class: one entry for each of the K classes with objects, in the order of their ids: `class`, `category_id`,
            `objects` (without crowds), `detections`, the metrics of the summary, and `oLRP_threshold`, the score
            threshold at which the class reaches its oLRP.
        iou_type: "bbox" or "segm".
        style: "coco" or "lvis".
        categories: all categories of the ground truth, in the order of their ids.
        precision: (K, 2, 101) precision at IoU .5 and .75 and recall 0, .01, ..., 1.
        lrp: (K, 101) LRP error without the detections that score below 0, .01, ..., 1.
        matches: the outcome of each detection and each object.
        matched: those detections and objects, for `analysis`.
        metrics: those of the summary and the classes, in their order.
        cut: what the limit on detections left out.
        num_without_area: objects whose area is 0, which COCO counts as small.
        small_ap: APs without those objects.
        lowest_score: of all detections, including those beyond the limit; NaN if there are none.
        left_out: ids of categories that the ground truth lacks, and how many detections of each were left out.
        scores_are: "raw", as the model gives them, or how they were changed before, such as "calibrated".
        doubts: sentences about signs that the detections belong to other images than the ground truth.

    Examples:
        >>> from ranksort import evaluate_detections
        >>> truth = {
        ...     "images": [{"id": 1}],
        ...     "categories": [{"id": 7, "name": "cell"}],
        ...     "annotations": [{"id": 1, "image_id": 1, "category_id": 7, "bbox": [10, 10, 40, 40], "area": 1600, "iscrowd": 0}],
        ... }
        >>> report = evaluate_detections(truth, [{"image_id": 1, "category_id": 7, "bbox": [10, 10, 40, 36], "score": 0.8}])
        >>> report.summary["AP"]  # the IoU is 0.9, so all of the ten thresholds but .95 are passed
        0.9
        >>> print(report.text().splitlines()[0])
        COCO bbox, 1 class, in %
    """

    summary: dict[str, float]
    per_class: list[dict[str, Any]]
    iou_type: str
    style: str
    categories: list[CategoryInfo]
    precision: np.ndarray
    lrp: np.ndarray
    matches: Matches
    matched: Matched
    metrics: list[Metric]
    cut: Cut
    num_without_area: int
    small_ap: float
    lowest_score: float
    left_out: dict[Any, int] = field(default_factory=dict)
    scores_are: str = "raw"
    doubts: list[str] = field(default_factory=list)

    @property
    def classes_without_objects(self) -> int:
        """Number of classes left out of `per_class` and of all means."""
        return len(self.categories) - len(self.per_class)

    @cached_property
    def analysis(self) -> Analysis:
        """Causes of the errors, quality of the scores and 95 % intervals; computed on first use, in seconds for COCO."""
        return analyse(self)

    def as_dict(self) -> dict[str, float]:
        """AP AP50 AP75 APs APm APl, AR1 AR10 AR100 (LVIS: AR300) ARs ARm ARl; oLRP and its components oLRP_loc (mean
        1 - IoU), oLRP_fp (1 - precision), oLRP_fn (1 - recall); oLRPs oLRPm oLRPl by area, and oLRPs_loc and so on.
        LVIS adds APr APc APf and oLRPr oLRPc oLRPf for rare, common and frequent classes. `max_detections` N makes AR100
        ARN, and ARs ARm ARl those of N detections.
        """
        return dict(self.summary)

    def __str__(self) -> str:
        title = f"{self.style.upper()} {self.iou_type}, {counted(len(self.per_class), 'class')}, in %"
        if more := self.classes_without_objects:
            title += f" ({counted(more, 'more class')} without ground truth {'does' if more == 1 else 'do'} not count)"
        lines = [title, *self.notes()]
        not_shown = {metric.name for metric in self.metrics if not metric.in_lines}
        for family in dict.fromkeys(metric.family for metric in self.metrics):
            names = [name for name in self.summary if name.startswith(family.prefix) and name not in not_shown]
            values = [f"{name} {percent(self.summary[name])}" for name in names]
            lines.append("  " + "   ".join(values))

        rows = self.worst_first()
        width = max(5, *(len(row["class"]) for row in rows))
        columns = [metric for metric in self.metrics if metric.in_table]
        names = [metric.name if metric.in_summary else metric.title for metric in columns]
        heads = "".join(f"{name:>10}" for name in ("objects", *names))
        table = [
            f"{row['class']:<{width}}{row['objects']:>10}"
            + "".join(f"{metric.text(row[metric.name]):>10}" for metric in columns)
            for row in rows
        ]
        if len(table) > TABLE_ROWS:
            half = TABLE_ROWS // 2
            table[half:-half] = [f"... {counted(len(table) - 2 * half, 'class')} between them ..."]
        return "\n".join([*lines, "", f"{'class':<{width}}{heads}", *table])

    def text(self, score_errors: bool = True) -> str:
        """The table and the main results of `analysis`, with the calibration errors of the scores if `score_errors`."""
        return "\n".join([str(self), "", *self.analysis.lines(self, score_errors)])

    def notes(self) -> list[str]:
        """What else a reader has to know about the detections to judge the numbers, in sentences."""
        sentences = [*self.doubts]
        if self.left_out:
            ids, count = listed(list(self.left_out), shown=reprlib.repr), sum(self.left_out.values())
            what = f"{counted(count, 'detection')} of categories that are not in the ground truth"
            sentences += [f"Left out {what}: {ids}."]
        if self.scores_are != "raw":
            sentences += [f"The scores are {self.scores_are}."]
        score_cut = find_score_cut(self.lowest_score, self.matches)
        if score_cut and "cut off" not in self.scores_are:
            lowest, right, most = score_cut
            sentences += [
                f"The lowest score is {lowest:.2f}, but {right:.0%} of the lowest-scoring tenth of the detections are true positives: "
                f"detections below it were probably cut off, so AP is too low (AP50 by up to about {percent(most)} points). "
                f"Keep detections down to a score of {USUAL} or lower."
            ]
        return sentences

    def worst_first(self) -> list[dict[str, Any]]:
        """The entries of `per_class` by descending oLRP."""
        return sorted(self.per_class, key=lambda row: -row["oLRP"])

    def save(self, folder: str | Path, settings: dict[str, str] | None = None) -> None:
        """Write report.json, per_class.csv and index.html, the page to open in a browser; `settings` say how the detections were made."""
        from .page import save_reports

        save_reports(Path(folder), [self], settings)

    def save_numbers(self, folder: Path, settings: dict[str, str] | None = None) -> None:
        """Write per_class.csv, thresholds.json, and report.json, which holds everything that the page shows."""
        from .findings import findings
        from .thresholds import save_thresholds

        content = {
            "iou_type": self.iou_type,
            "style": self.style,
            "settings": settings or {},
            "classes_without_objects": self.classes_without_objects,
            "findings": findings(self),
            "summary": without_nan(self.summary),
            "per_class": without_nan(self.per_class),
            "olrp_parts": olrp_parts(self.per_class).round(4).tolist(),
            "precision": self.precision[..., ::2].round(3).tolist(),  # at every second recall
            "lrp": self.lrp[:, ::2].round(3).tolist(),  # at every second score threshold
            "scores": self._score_statistics(),
            "thresholds": self._curves_over_thresholds(),
            **self.analysis.as_dict(self),
        }
        lines = (f"{json.dumps(key)}: {json.dumps(value, allow_nan=False)}" for key, value in content.items())
        replace_file(folder / "report.json", ("{\n" + ",\n".join(lines) + "\n}\n").encode())
        table = io.StringIO()
        writer = csv.DictWriter(table, fieldnames=list(self.per_class[0]))
        writer.writeheader()
        writer.writerows(without_nan(self.per_class))
        replace_file(folder / "per_class.csv", table.getvalue().encode("utf-8", "backslashreplace"))
        save_thresholds(folder, self)

    def thresholds(self) -> np.ndarray:
        """(C,) the score thresholds that reach oLRP, by category position; infinite for classes without true positives."""
        matches = self.matches
        thresholds = np.full(1 + max(matches.object_category.max(), matches.category.max(initial=0)), np.inf)
        optima = np.array([row["oLRP_threshold"] for row in self.per_class])
        thresholds[np.unique(matches.object_category)] = np.where(np.isnan(optima), np.inf, optima)
        return thresholds

    def image_errors(self) -> np.ndarray:
        """(I, 3): LRP error, false positives and missed objects of each image at these thresholds.

        The images are in the order of their ids; the last ones may be missing. The error of an image without objects and detections is NaN.
        """
        matches, thresholds = self.matches, self.thresholds()
        is_kept = (matches.outcome >= 0) & (matches.score >= thresholds[matches.category])
        image, is_tp, iou = (column[is_kept] for column in (matches.image, matches.outcome == 1, matches.iou))
        num_images = 1 + max(matches.object_image.max(), image.max(initial=0))
        tp, fp = (np.bincount(image[kind], minlength=num_images) for kind in (is_tp, ~is_tp))
        fn = np.bincount(matches.object_image, minlength=num_images) - tp
        localization = np.bincount(image[is_tp], 1 - iou[is_tp], num_images)
        with np.errstate(invalid="ignore"):
            error = (localization / (1 - TAU) + fp + fn) / (tp + fp + fn)
        return np.stack([error, fp, fn], axis=1)

    def _curves_over_thresholds(self) -> dict[str, Any]:
        """Precision (null without detections) and recall of the K classes without the detections that score below 0, .02, ..., 1."""
        matches, grid = self.matches, SCORE_GRID[::2]
        shown, objects = np.unique(matches.object_category, return_counts=True)
        size = len(self.categories)
        codes = matches.category.astype(np.int64) * len(grid) + np.searchsorted(grid, matches.score, side="right") - 1
        tp, fp = (
            np.bincount(codes[matches.outcome == kind], minlength=size * len(grid))
            .reshape(size, len(grid))[shown, ::-1]
            .cumsum(axis=1)[:, ::-1]
            for kind in (1, 0)
        )
        precision: np.ndarray = np.where(tp + fp > 0, tp / np.maximum(tp + fp, 1), np.nan).round(3)
        return {
            "precision": without_nan(precision.tolist()),
            "recall": np.round(tp / objects[:, None], 3).tolist(),
        }

    def _score_statistics(self) -> dict[str, Any]:
        """Scores of true and false positives, and how well the scores of true positives follow their IoU."""
        matches = self.matches
        is_tp = matches.outcome == 1
        bins = np.linspace(0, 1, SCORE_BINS + 1)
        score, iou = matches.score[is_tp], matches.iou[is_tp]
        sample = np.linspace(0, len(score) - 1, min(len(score), SAMPLE)).astype(int)
        return {
            "true_positives": np.histogram(score, bins)[0].tolist(),
            "false_positives": np.histogram(matches.score[matches.outcome == 0], bins)[0].tolist(),
            "rank_correlation": without_nan(rank_correlation(score, iou)),
            "score_and_iou": np.stack([score, iou], axis=1)[sample].round(3).tolist(),
        }


def rank_correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Spearman's rank correlation of two columns (N,); equal values share their mean rank. NaN if one of the two is constant."""
    if len(a) < 2 or np.ptp(a) == 0 or np.ptp(b) == 0:
        return math.nan
    return float(np.corrcoef(_mean_ranks(a), _mean_ranks(b))[0, 1])


def _mean_ranks(values: np.ndarray) -> np.ndarray:
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[inverse]


def olrp_parts(rows: list[dict[str, Any]]) -> np.ndarray:
    """The shares of localisation, false positives and false negatives in the oLRP of each class.

    The components of oLRP are rates with different denominators. Their shares in
    (sum over TP of (1 - IoU) / (1 - tau) + FP + FN) / (TP + FP + FN), counted per object, add up to oLRP.

    Args:
        rows: K entries of `Report.per_class`.

    Returns:
        (K, 3); the sum over the last axis is oLRP.
    """
    names = ("oLRP_loc", "oLRP_fp", "oLRP_fn")
    localization, fp_rate, fn = np.array([[row[name] for name in names] for row in rows]).T
    tp = 1 - fn
    fp = np.where(tp > 0, tp * fp_rate / (1 - fp_rate), 0)
    error = np.where(tp > 0, tp * localization / (1 - TAU), 0)
    return np.stack([error, fp, fn], axis=1) / (tp + fp + fn)[:, None]
