"""Evaluation of detections by the rules of COCO and LVIS: AP, AR and oLRP."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..data.coco_columns import CocoFile
from ..words import counted, listed
from .image_names import doubts
from .inputs import Detections, GroundTruth, open_ground_truth, read_detections, read_ground_truth
from .lrp import evaluate_lrp
from .matching import AREA_RANGES, DEFAULT_LIMITS, Candidates, Matched, Setting, match, take_part
from .metrics import AT_IOU_50, AT_IOU_75, AreaResult, Metric, list_metrics
from .precision import evaluate_precision
from .report import Cut, Report

_COLUMNS = ("class", "category_id", "objects", "detections")  # of `Report.per_class`, before the metrics
LVIS_FREQUENCIES = ("r", "c", "f")  # rare, common, frequent
SMALL_WITH_AREA = "small, of an area above 0"


def evaluate_detections(
    ground_truth: str | Path | dict[str, Any] | CocoFile,
    detections: str | Path | list[dict[str, Any]],
    iou_type: str = "bbox",
    style: str = "coco",
    max_detections: int | None = None,
    metrics: Sequence[Metric] = (),
) -> Report:
    """Compute AP, AR and oLRP of detections. Prints nothing and does not change its arguments.

    Args:
        ground_truth: path of a COCO or LVIS annotation JSON, its parsed contents, or the result of `read_coco_file`.
        detections: path of a COCO results JSON, or its parsed contents: a list of objects with `image_id`, `category_id`,
            `score` (0..1) and `bbox` ([x, y, width, height] in pixels) and/or `segmentation` (RLE).
        iou_type: "bbox" compares boxes, "segm" masks.
        style: "coco" (the highest-scoring detections per class and image count) or "lvis" (the highest-scoring per image; classes that
            were not looked for in an image do not count there).
        max_detections: how many detections count, 1 or more; by default as published, 100 for "coco" and 300 for "lvis".
        metrics: additional metrics with names of their own, listed in the report after the standard ones. What their `compute` raises
            is not caught.

    Raises:
        FileNotFoundError: a path is not a file.
        ValueError: the input is wrong, or a metric returns something else than a finite number or NaN for each class; one sentence says
            what and where.

    Examples:
        >>> from ranksort import evaluate_detections
        >>> truth = {
        ...     "images": [{"id": 1, "width": 100, "height": 100}],
        ...     "categories": [{"id": 7, "name": "cell"}],
        ...     "annotations": [
        ...         {"id": 1, "image_id": 1, "category_id": 7, "bbox": [10, 10, 40, 40], "area": 1600, "iscrowd": 0},
        ...         {"id": 2, "image_id": 1, "category_id": 7, "bbox": [60, 60, 20, 20], "area": 400, "iscrowd": 0},
        ...     ],
        ... }
        >>> found = [{"image_id": 1, "category_id": 7, "bbox": [10, 10, 40, 36], "score": 0.8}]
        >>> report = evaluate_detections(truth, found)
        >>> report.as_dict()["AP50"], report.as_dict()["oLRP_fn"]
        (0.505, 0.5)
    """
    if iou_type not in ("bbox", "segm"):
        raise ValueError(f"iou_type must be one of bbox, segm; got {iou_type!r}.")
    _check_settings(style, max_detections)
    file = open_ground_truth(ground_truth, iou_type)
    truth = read_ground_truth(file, iou_type, style)
    found = read_detections(detections, truth, iou_type)
    report = evaluate(truth, found, style, max_detections, metrics)
    report.doubts += doubts(detections, file, truth, found, report)
    if found.calibrated:
        report.scores_are = f"calibrated ({listed(sorted(found.calibrated))})"
    return report


def evaluate(
    ground_truth: GroundTruth,
    detections: Detections,
    style: str = "coco",
    max_detections: int | None = None,
    metrics: Sequence[Metric] = (),
) -> Report:
    """`evaluate_detections` for columns: of masks if the ground truth has any, else of boxes.

    Examples:
        >>> from ranksort.evaluation import evaluate
        >>> from ranksort.evaluation.inputs import read_detections, read_ground_truth
        >>> box = {"image_id": 1, "category_id": 7, "bbox": [10, 10, 40, 40]}
        >>> truth = {"images": [{"id": 1}], "categories": [{"id": 7, "name": "cell"}], "annotations": [{**box, "id": 1}]}
        >>> columns = read_ground_truth(truth, "bbox", "coco")
        >>> evaluate(columns, read_detections([{**box, "score": 0.8}], columns, "bbox"), "coco").summary["AP"]
        1.0
    """
    _check_settings(style, max_detections)
    limit = max_detections or DEFAULT_LIMITS[style]
    limits = [*(fewer for fewer in (1, 10) if style == "coco" and fewer < limit), limit]
    candidates = take_part(ground_truth, detections, federated=style == "lvis", limit=limit)
    areas = AREA_RANGES
    num_without_area = int(((ground_truth.areas == 0) & ~ground_truth.crowd).sum())
    if num_without_area:
        areas = {**areas, SMALL_WITH_AREA: (np.nextafter(0, 1), areas["s"][1])}
    results: dict[str, AreaResult] = {}
    for area, setting in zip(areas, match(ground_truth, candidates, areas.values()), strict=True):
        results[area] = _area_result(ground_truth, candidates, setting, limits)
        if area == "":
            matched = Matched(ground_truth, candidates, setting)
    metrics = [*list_metrics(limits), *metrics]
    names = Counter([*_COLUMNS, *(metric.name for metric in metrics)])
    if repeated := [name for name, count in names.items() if count > 1]:
        raise ValueError(f"the report already has {', '.join(repeated)}: give the metric another name")
    columns = {metric.name: _column(metric, results, len(ground_truth.categories)) for metric in metrics}
    summary = {metric.name: _mean(columns[metric.name]) for metric in metrics if metric.in_summary}
    if style == "lvis":
        frequency = np.array([category.frequency for category in ground_truth.categories])
        for name in (metric.name for metric in metrics if metric.by_frequency):
            summary |= {f"{name}{f}": _mean(columns[name][frequency == f]) for f in LVIS_FREQUENCIES}

    overall = results[""]
    shown = np.flatnonzero(overall.num_objects)
    return Report(
        summary=summary,
        per_class=_per_class(ground_truth, detections, overall.num_objects, columns),
        iou_type="bbox" if ground_truth.masks is None else "segm",
        style=style,
        categories=ground_truth.categories,
        precision=overall.precision[[AT_IOU_50, AT_IOU_75]].transpose(1, 0, 2)[shown],
        lrp=overall.lrp.curves[shown],
        matches=overall.lrp.matches,
        matched=matched,
        metrics=metrics,
        cut=Cut(limit, candidates.num_cut, candidates.most),
        num_without_area=num_without_area,
        lowest_score=float(detections.scores.min()) if len(detections.scores) else float("nan"),
        left_out=detections.left_out,
        small_ap=_mean(results[SMALL_WITH_AREA if num_without_area else "s"].precision.mean(axis=(0, 2))),
    )


def _check_settings(style: str, max_detections: int | None) -> None:
    if style not in DEFAULT_LIMITS:
        raise ValueError(f"style must be one of {', '.join(DEFAULT_LIMITS)}; got {style!r}.")
    if max_detections is not None and (type(max_detections) is not int or max_detections < 1):
        raise ValueError(f"max_detections must be a whole number, 1 or more; got {max_detections!r}.")


def _area_result(ground_truth: GroundTruth, candidates: Candidates, setting: Setting, limits: list[int]) -> AreaResult:
    precision, recall = evaluate_precision(candidates, setting, limits)
    return AreaResult(setting.num_objects, precision, recall, evaluate_lrp(ground_truth, candidates, setting))


def _per_class(
    ground_truth: GroundTruth, detections: Detections, num_objects: np.ndarray, columns: dict[str, np.ndarray]
) -> list[dict[str, Any]]:
    """`Report.per_class`."""
    num_found = np.bincount(detections.category, minlength=len(num_objects))
    rows = []
    for c in np.flatnonzero(num_objects):
        category = ground_truth.categories[c]
        row = (category.name, category.id, int(num_objects[c]), int(num_found[c]))
        rows.append(
            {**dict(zip(_COLUMNS, row, strict=True)), **{name: float(values[c]) for name, values in columns.items()}}
        )
    return rows


def _column(metric: Metric, results: dict[str, AreaResult], count: int) -> np.ndarray:
    """The values of a metric for each of the C classes, float64 (C,)."""
    values = np.asarray(metric.compute(results))
    is_number = values.dtype.kind in "fiub"
    if not is_number or values.shape != (count,) or np.isinf(values).any():
        found = f"shape {values.shape}" if is_number else f"dtype {values.dtype}"
        found = "an infinite one" if is_number and values.shape == (count,) else found
        raise ValueError(
            f"the metric {metric.name} must return a number, or NaN, for each of the {counted(count, 'class')}, but returns {found}"
        )
    return values.astype(np.float64)


def _mean(values: np.ndarray) -> float:
    """The mean over the classes for which a number is defined; NaN if there are none."""
    defined = values[~np.isnan(values)]
    return float(defined.mean()) if len(defined) else float("nan")
