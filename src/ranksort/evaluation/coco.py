"""Evaluation of detections by COCO's and LVIS' rules: AP, AR and oLRP."""

from pathlib import Path
from typing import Any

import numpy as np

from ..data.coco_columns import CocoFile
from ..data.coco_file import in_memory
from .inputs import read_detections, read_ground_truth
from .lrp import evaluate_lrp
from .matching import AREA_RANGES, match, take_part
from .precision import evaluate_precision
from .report import Report

LVIS_FREQUENCIES = ("r", "c", "f")  # rare, common, frequent
AT_IOU_50, AT_IOU_75 = 0, 5  # positions among COCO's IoU thresholds .5, .55, ..., .95


def evaluate_detections(
    ground_truth: str | Path | dict[str, Any] | CocoFile,
    detections: str | Path | list[dict[str, Any]],
    iou_type: str = "bbox",
    style: str = "coco",
) -> Report:
    """AP, AR and oLRP of detections. Prints nothing and leaves its arguments as they are.

    Args:
        ground_truth: path of a COCO or LVIS annotation JSON, its content, or what `read_coco_file` made of it.
        detections: path of a COCO results JSON, or its content: a list of objects with `image_id`, `category_id`,
            `score` (0..1) and `bbox` ([x, y, width, height] in pixels) and/or `segmentation` (RLE).
        iou_type: "bbox" compares boxes, "segm" masks.
        style: "coco" (at most 100 detections per image and class) or "lvis" (at most 300 per image; the classes not
            verified in an image do not count there).

    Raises:
        FileNotFoundError: a path is no file.
        ValueError: one sentence about what is wrong in the input and where.
    """
    for name, value, choices in (("iou_type", iou_type, ("bbox", "segm")), ("style", style, ("coco", "lvis"))):
        if value not in choices:
            raise ValueError(f"{name} must be one of {', '.join(choices)}; got {value!r}.")
    truth = read_ground_truth(ground_truth, iou_type, style)
    with in_memory(detections, "detections", "keep fewer per image, for example the 100 best"):
        found = read_detections(detections, truth, iou_type)
    candidates = take_part(truth, found, federated=style == "lvis")
    limits = [1, 10, 100] if style == "coco" else [300]
    columns: dict[str, np.ndarray] = {}  # (C,) each
    for area, setting in zip(AREA_RANGES, match(truth, candidates), strict=True):
        precision, recall = evaluate_precision(candidates, setting, limits)
        lrp = evaluate_lrp(truth, candidates, setting)
        columns[f"AP{area}"] = precision.mean(axis=(0, 2))
        columns[f"AR{area or limits[-1]}"] = recall[..., -1].mean(axis=0)
        for name, values in zip(("", "_loc", "_fp", "_fn", "_threshold"), lrp.optima.T, strict=True):
            columns[f"oLRP{area}{name}"] = values
        if area == "":
            columns |= {f"AP{iou}": precision[t].mean(axis=1) for iou, t in ((50, AT_IOU_50), (75, AT_IOU_75))}
            columns |= {f"AR{limit}": recall[..., m].mean(axis=0) for m, limit in enumerate(limits)}
            curves, overall, objects = precision[[AT_IOU_50, AT_IOU_75]].transpose(1, 0, 2), lrp, setting.num_objects
    columns = {name: columns[name] for name in _names(limits)}
    summary = {name: _mean(values) for name, values in columns.items() if name != "oLRP_threshold"}
    if style == "lvis":
        frequency = np.array([category.frequency for category in truth.categories])
        for name in ("AP", "oLRP"):
            summary |= {f"{name}{f}": _mean(columns[name][frequency == f]) for f in LVIS_FREQUENCIES}

    names = [str(category.id if category.name is None else category.name) for category in truth.categories]
    num_found = np.bincount(found.category, minlength=len(truth.categories))
    shown = np.flatnonzero(objects)
    per_class = [
        {
            "class": names[c],
            "category_id": truth.categories[c].id,
            "objects": int(objects[c]),
            "detections": int(num_found[c]),
            **{name: float(values[c]) for name, values in columns.items()},
        }
        for c in shown
    ]
    return Report(
        summary=summary,
        per_class=per_class,
        iou_type=iou_type,
        style=style,
        classes_without_objects=len(objects) - len(shown),
        precision=curves[shown],
        lrp=overall.curves[shown],
        matches=overall.matches,
    )


def _names(limits: list[int]) -> list[str]:
    """The metrics in the order of the report."""
    names = ["AP", "AP50", "AP75", "APs", "APm", "APl", *(f"AR{limit}" for limit in limits), "ARs", "ARm", "ARl"]
    names += ["oLRP", "oLRP_loc", "oLRP_fp", "oLRP_fn", "oLRPs", "oLRPm", "oLRPl", "oLRP_threshold"]
    return names + [f"oLRP{area}{part}" for area in ("s", "m", "l") for part in ("_loc", "_fp", "_fn")]


def _mean(values: np.ndarray) -> float:
    """The mean over the classes for which a number is defined, NaN if there is none."""
    defined = values[~np.isnan(values)]
    return float(defined.mean()) if len(defined) else float("nan")
