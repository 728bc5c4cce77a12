"""What an evaluation found: numbers, a table, the findings in plain words, JSON and CSV."""

import csv
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .lrp import SCORE_GRID, TAU, Matches

TABLE_ROWS = 30  # a table of more classes shows the worst and the best of them
SCORE_BINS = 50
SAMPLE = 2000  # true positives whose score and IoU are saved
FEW_OBJECTS = 10


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
        """Write report.json, per_class.csv and index.html, the page to look at."""
        from .page import save_page

        self.save_numbers(Path(folder))
        save_page([Path(folder)], Path(folder) / "index.html")

    def save_numbers(self, folder: Path, settings: dict[str, str] | None = None) -> None:
        """Write per_class.csv and report.json, which holds all that a page shows; `settings` say how it came about."""
        folder.mkdir(parents=True, exist_ok=True)
        content = {
            "iou_type": self.iou_type,
            "style": self.style,
            "settings": settings or {},
            "classes_without_objects": self.classes_without_objects,
            "findings": self.findings(),
            "summary": _without_nan(self.summary),
            "per_class": [_without_nan(row) for row in self.per_class],
            "olrp_parts": olrp_parts(self.per_class).round(4).tolist(),
            "precision": self.precision[..., ::2].round(3).tolist(),  # at every second recall
            "lrp": self.lrp[:, ::2].round(3).tolist(),  # at every second score threshold
            "scores": self._score_statistics(),
        }
        lines = (f"{json.dumps(key)}: {json.dumps(value, allow_nan=False)}" for key, value in content.items())
        (folder / "report.json").write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")
        with (folder / "per_class.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, fieldnames=list(self.per_class[0]))
            writer.writeheader()
            writer.writerows(_without_nan(row) for row in self.per_class)

    def findings(self) -> list[str]:
        """What is wrong with the detector, in plain sentences, the gravest first."""
        number, rows, matches = self.summary, self.worst_first(), self.matches
        shapes = "masks" if self.iou_type == "segm" else "boxes"
        parts = olrp_parts(rows).mean(axis=0)
        if parts.sum() == 0:
            return [
                f"Nothing: all {len(matches.object_score)} objects are found, exactly and without a false positive."
            ]
        names = ("poor localisation", "false positives", "missed objects")
        (most, share), (second, share2), (third, share3) = sorted(
            zip(names, parts / parts.sum(), strict=True), key=lambda part: -part[1]
        )
        said = [
            f"{'Most' if share > 0.5 else 'The largest part'} of the error is {most} ({share:.0%}); then come {second} "
            f"({share2:.0%}) and {third} ({share3:.0%}). The error is oLRP, {_percent(number['oLRP'])} of 100: "
            "each class is taken at its best score threshold."
        ]
        never = np.isnan(matches.object_score).mean()
        low = (matches.object_score < self.thresholds()[matches.object_category]).mean()
        said.append(
            f"Of {len(matches.object_score)} objects {never:.0%} are found at no score, "
            f"{low:.0%} only with a score under the best threshold of their class."
        )
        sizes = {"Small": "APs", "Medium-sized": "APm", "Large": "APl"}
        by_size = {size: number[name] for size, name in sizes.items() if not math.isnan(number[name])}
        if len(by_size) > 1:
            weakest = min(by_size, key=by_size.__getitem__)
            others = ", ".join(f"{size.lower()} {_percent(ap)}" for size, ap in by_size.items() if size != weakest)
            said.append(f"{weakest} objects are the weakest: AP {_percent(by_size[weakest])} ({others}).")
        nothing = [row["class"] for row in rows if math.isnan(row["oLRP_threshold"])]
        if nothing:
            more = f" and {len(nothing) - 5} more" if len(nothing) > 5 else ""
            said.append(f"Nothing is found of {len(nothing)} classes: {', '.join(nothing[:5])}{more}.")
        worst = [row for row in rows if not math.isnan(row["oLRP_threshold"])]
        if len(worst) > 3:
            named = ", ".join(f"{row['class']} ({_percent(row['oLRP'])})" for row in worst[:3])
            best = ", ".join(f"{row['class']} ({_percent(row['oLRP'])})" for row in worst[:-4:-1])
            said.append(f"The worst classes{' of the others' if nothing else ''} by oLRP: {named}; the best: {best}.")
        is_tp = matches.outcome == 1
        if is_tp.any():
            said.append(
                f"The {shapes} of true positives overlap their objects by IoU {matches.iou[is_tp].mean():.2f} on "
                f"average; AP is {_percent(number['AP50'])} at IoU .5 and {_percent(number['AP75'])} at .75."
            )
            mean = self.lrp.mean(axis=0)
            said.append(
                f"If one score threshold is to serve all classes, {SCORE_GRID[mean.argmin()]:.2f} is best: it costs "
                f"{_percent(mean.min() - number['oLRP'])} points of LRP error over each class's own, which the table has."
            )
        correlation = rank_correlation(matches.score[is_tp], matches.iou[is_tp])
        if not math.isnan(correlation):
            how = ("do not order", "order weakly", "order", "order well")[np.searchsorted((0.1, 0.3, 0.6), correlation)]
            said.append(f"Scores {how} the true positives by IoU: rank correlation {correlation:.2f} (1 is perfect).")
        few = sum(row["objects"] < FEW_OBJECTS for row in rows)
        if few:
            said.append(f"{few} of {len(rows)} classes have fewer than {FEW_OBJECTS} objects: their numbers are noisy.")
        if self.classes_without_objects:
            said.append(f"{self.classes_without_objects} more classes have no objects here and do not count.")
        return said

    def thresholds(self) -> np.ndarray:
        """(C,) the score thresholds which reach oLRP, by category position; infinite where nothing right is found."""
        matches = self.matches
        thresholds = np.full(1 + max(matches.object_category.max(), matches.category.max(initial=0)), np.inf)
        optima = np.array([row["oLRP_threshold"] for row in self.per_class])
        thresholds[np.unique(matches.object_category)] = np.where(np.isnan(optima), np.inf, optima)
        return thresholds

    def image_errors(self) -> np.ndarray:
        """(I, 3): LRP error, false positives and missed objects of each image at these thresholds.

        The images are in the order of their ids; the last ones may lack. The error of an image without any is NaN.
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

    def _score_statistics(self) -> dict[str, Any]:
        """Scores of true and false positives, and how far the former follow the IoU."""
        matches = self.matches
        is_tp = matches.outcome == 1
        bins = np.linspace(0, 1, SCORE_BINS + 1)
        score, iou = matches.score[is_tp], matches.iou[is_tp]
        correlation = rank_correlation(score, iou)
        sample = np.linspace(0, len(score) - 1, min(len(score), SAMPLE)).astype(int)
        return {
            "true_positives": np.histogram(score, bins)[0].tolist(),
            "false_positives": np.histogram(matches.score[matches.outcome == 0], bins)[0].tolist(),
            "rank_correlation": None if math.isnan(correlation) else correlation,
            "score_and_iou": np.stack([score, iou], axis=1)[sample].round(3).tolist(),
        }


def rank_correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Spearman's, of two columns (N,); equal values share their mean rank. NaN where one of the two is constant."""
    if len(a) < 2 or np.ptp(a) == 0 or np.ptp(b) == 0:
        return math.nan
    return float(np.corrcoef(_mean_ranks(a), _mean_ranks(b))[0, 1])


def _mean_ranks(values: np.ndarray) -> np.ndarray:
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[inverse]


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


def _percent(value: float) -> str:
    return "-" if math.isnan(value) else f"{100 * value:.1f}"


def _without_nan(row: dict[str, Any]) -> dict[str, Any]:
    """NaN as None, which JSON and CSV can hold."""
    return {key: None if isinstance(value, float) and math.isnan(value) else value for key, value in row.items()}
