"""What an evaluation found: numbers, a table, JSON, CSV and pictures."""

import csv
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .lrp import SCORE_GRID, TAU, Matches

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TABLE_ROWS = 30  # a table of more classes shows the worst and the best of them
BAR_ROWS = 80  # all classes of COCO
WORST_COLORS = ("#7f0000", "#d7301f", "#fc8d59")
BEST_COLORS = ("#023858", "#0570b0", "#74a9cf")


@dataclass
class Report:
    """Metrics of detections, as fractions 0..1, NaN where undefined.

    Attributes:
        summary: name to value, means over the classes for which the metric is defined: see `as_dict`.
        per_class: one entry for each of the K classes with objects, in the order of their ids: `class`, `category_id`,
            `objects` (without crowds), `detections`, the metrics of the summary, and `oLRP_threshold`, the score
            threshold at which the class reaches its oLRP.
        iou_type: "bbox" or "segm".
        style: "coco" or "lvis".
        classes_without_objects: how many classes are therefore left out.
        precision: (K, 2, 101) precision at IoU .5 and .75 and recall 0, .01, ..., 1.
        lrp: (K, 101) LRP error when detections scoring under 0, .01, ..., 1 are left out.
        matches: what became of each detection and each object.
    """

    summary: dict[str, float]
    per_class: list[dict[str, Any]]
    iou_type: str
    style: str
    classes_without_objects: int
    precision: np.ndarray
    lrp: np.ndarray
    matches: Matches

    def as_dict(self) -> dict[str, float]:
        """AP AP50 AP75 APs APm APl, AR1 AR10 AR100 (LVIS: AR300) ARs ARm ARl; oLRP and its components oLRP_loc (mean
        1 - IoU), oLRP_fp (1 - precision), oLRP_fn (1 - recall); oLRPs oLRPm oLRPl by area, and oLRPs_loc and so on.
        LVIS adds APr APc APf and oLRPr oLRPc oLRPf for rare, common and frequent classes.
        """
        return dict(self.summary)

    def __str__(self) -> str:
        title = f"{self.style.upper()} {self.iou_type}, {len(self.per_class)} classes, in %"
        if self.classes_without_objects:
            title += f" ({self.classes_without_objects} more classes have no ground truth and do not count)"
        lines = [title]
        for metric in ("AP", "AR", "oLRP"):
            values = [f"{name} {_percent(v)}" for name, v in self.summary.items() if name.startswith(metric)]
            lines.append("  " + "   ".join(values))

        rows = self.worst_first()
        width = max(5, *(len(row["class"]) for row in rows))
        columns = ("AP", "AP50", "AP75", "oLRP", "oLRP_loc", "oLRP_fp", "oLRP_fn")
        heads = "".join(f"{name:>10}" for name in ("objects", *columns, "threshold"))
        table = [
            f"{row['class']:<{width}}{row['objects']:>10}"
            + "".join(f"{_percent(row[name]):>10}" for name in columns)
            + f"{row['oLRP_threshold']:>10.3f}"
            for row in rows
        ]
        if len(table) > TABLE_ROWS:
            half = TABLE_ROWS // 2
            table[half:-half] = [f"... {len(table) - 2 * half} classes between them ..."]
        return "\n".join([*lines, "", f"{'class':<{width}}{heads}", *table])

    def worst_first(self) -> list[dict[str, Any]]:
        """The entries of `per_class` by falling oLRP."""
        return sorted(self.per_class, key=lambda row: -row["oLRP"])

    def save(self, folder: str | Path) -> None:
        """Write report.json, per_class.csv, precision_recall.png, lrp_over_score.png and olrp_components.png."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        content = {
            "iou_type": self.iou_type,
            "style": self.style,
            "classes_without_objects": self.classes_without_objects,
            "summary": _without_nan(self.summary),
            "per_class": [_without_nan(row) for row in self.per_class],
        }
        (folder / "report.json").write_text(json.dumps(content, indent=2, allow_nan=False), encoding="utf-8")
        with (folder / "per_class.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, fieldnames=list(self.per_class[0]))
            writer.writeheader()
            writer.writerows(_without_nan(row) for row in self.per_class)
        plot_precision_recall(self).savefig(folder / "precision_recall.png", dpi=120)
        plot_lrp_over_score(self).savefig(folder / "lrp_over_score.png", dpi=120)
        plot_olrp_components(self).savefig(folder / "olrp_components.png", dpi=120)


def plot_precision_recall(report: Report) -> "Figure":
    """Precision over recall at IoU .5 and .75: mean over the classes, the worst and the best few of them by AP."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.6), layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    recall = np.linspace(0, 1, report.precision.shape[-1])
    for i, (ax, iou) in enumerate(zip(axes, ("50", "75"), strict=True)):
        for k, color in _worst_and_best(report, "AP"):
            row = report.per_class[k]
            ax.plot(
                recall,
                report.precision[k, i],
                color=color,
                lw=1.2,
                label=f"{_plain(row['class'])} (AP {row['AP']:.2f})",
            )
        mean = f"mean of {len(report.per_class)} classes (AP {report.summary['AP']:.2f})"
        ax.plot(recall, report.precision[:, i].mean(axis=0), color="black", lw=2.5, label=mean)
        ax.set(title=f"IoU ≥ .{iou}:  AP{iou} = {report.summary[f'AP{iou}']:.3f}", xlabel="recall")
        ax.set(xlim=(0, 1.01), ylim=(0, 1.03))
        ax.grid(alpha=0.3)
    axes[0].set_ylabel("precision")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside right upper", frameon=False, fontsize=9)
    return figure


def plot_lrp_over_score(report: Report) -> "Figure":
    """LRP error over the score threshold: mean over the classes, the worst and the best few, and all the optima."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.5, 5.2), layout="constrained")
    ax = figure.subplots()
    for k, color in _worst_and_best(report, "oLRP"):
        row = report.per_class[k]
        label = f"{_plain(row['class'])} (oLRP {row['oLRP']:.2f})"
        ax.step(SCORE_GRID, report.lrp[k], where="mid", color=color, lw=1.2, label=label)
    thresholds, errors = (np.array([row[name] for row in report.per_class]) for name in ("oLRP_threshold", "oLRP"))
    ax.scatter(thresholds, errors, s=14, color="0.55", zorder=2, label="optimum of each class")

    mean = report.lrp.mean(axis=0)
    best = int(mean.argmin())
    ax.plot(SCORE_GRID, mean, color="black", lw=2.5, label="mean, the same threshold for all classes")
    optimum = f"its optimum: {mean[best]:.3f} at score {SCORE_GRID[best]:.2f}"
    ax.plot(SCORE_GRID[best], mean[best], "*", color="gold", markeredgecolor="black", ms=16, zorder=4, label=optimum)
    molrp = report.summary["oLRP"]
    ax.axhline(molrp, color="black", ls="--", lw=1, label=f"oLRP {molrp:.3f}, each class at its own optimum")
    ax.set(xlabel="score threshold", ylabel="LRP error (lower is better)", xlim=(0, 1.01), ylim=(0, 1.03))
    ax.grid(alpha=0.3)
    figure.legend(loc="outside right upper", frameon=False, fontsize=9)
    return figure


def plot_olrp_components(report: Report) -> "Figure":
    """What each class's oLRP consists of, worst first: three parts that add up to it."""
    from matplotlib.figure import Figure

    rows = report.worst_first()[:BAR_ROWS]
    parts = olrp_parts(rows)
    figure = Figure(figsize=(8, 1.6 + 0.19 * len(rows)), layout="constrained")
    ax = figure.subplots()
    labels = ("poor localisation", "false positives", "missed objects")
    left = np.zeros(len(rows))
    for values, label, color in zip(parts.T, labels, ("#4477aa", "#ddaa33", "#bb5566"), strict=True):
        ax.barh(range(len(rows)), values, left=left, height=0.8, color=color, label=label)
        left += values
    ax.set_yticks(range(len(rows)), [f"{_plain(row['class'])} ({row['objects']})" for row in rows], fontsize=8)
    ax.set_ylim(len(rows) - 0.4, -0.6)
    ax.set_xlim(0, 1)
    ax.set_xlabel("oLRP (lower is better); in brackets: objects")
    ax.axvline(report.summary["oLRP"], color="black", ls="--", lw=1, label=f"mean {report.summary['oLRP']:.3f}")
    if len(rows) < len(report.per_class):
        ax.set_title(f"the worst {len(rows)} of {len(report.per_class)} classes")
    ax.grid(axis="x", alpha=0.3)
    figure.legend(loc="outside upper center", ncols=4, frameon=False, fontsize=9)
    return figure


def olrp_parts(rows: list[dict[str, Any]]) -> np.ndarray:
    """Shares of localisation, false positives and false negatives in the oLRP of classes.

    The components of oLRP are rates with different denominators. Their shares in
    (sum over TP of (1 - IoU) / (1 - tau) + FP + FN) / (TP + FP + FN), counted per object, add up to oLRP.

    Args:
        rows: K entries of `Report.per_class`.

    Returns:
        (K, 3), the sum over the last axis being oLRP.
    """
    names = ("oLRP_loc", "oLRP_fp", "oLRP_fn")
    localization, fp_rate, fn = np.array([[row[name] for name in names] for row in rows]).T
    tp = 1 - fn
    fp = np.where(tp > 0, tp * fp_rate / (1 - fp_rate), 0)
    error = np.where(tp > 0, tp * localization / (1 - TAU), 0)
    return np.stack([error, fp, fn], axis=1) / (tp + fp + fn)[:, None]


def _worst_and_best(report: Report, metric: str) -> list[tuple[int, str]]:
    """Position and colour of the three worst and the three best of the classes in which anything was found."""
    found = [k for k, row in enumerate(report.per_class) if row["oLRP"] < 1]
    sign = -1 if metric.startswith("oLRP") else 1
    order = sorted(found, key=lambda k: sign * report.per_class[k][metric])
    worst = order[: min(3, len(order) // 2)]
    best = order[len(worst) :][-3:]
    return [*zip(worst, WORST_COLORS, strict=False), *zip(best, reversed(BEST_COLORS), strict=False)]


def _plain(name: str) -> str:
    """A class name as matplotlib shows it: `$` would begin a formula, and a first `_` would hide it from the legend."""
    return name.replace("$", r"\$").removeprefix("_")


def _percent(value: float) -> str:
    return "-" if math.isnan(value) else f"{100 * value:.1f}"


def _without_nan(row: dict[str, Any]) -> dict[str, Any]:
    """NaN as None, which JSON and CSV can hold."""
    return {key: None if isinstance(value, float) and math.isnan(value) else value for key, value in row.items()}
