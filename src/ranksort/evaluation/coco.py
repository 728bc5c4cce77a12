"""Evaluation of detections by COCO's and LVIS' rules: AP and AR from hotcoco or pycocotools, oLRP from `lrp`."""

import contextlib
import importlib.util
import io
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from .inputs import Detections, GroundTruth, read_detections, read_ground_truth
from .lrp import AREA_RANGES, evaluate_lrp
from .report import Report

LVIS_FREQUENCIES = ("r", "c", "f")  # rare, common, frequent
AT_IOU_50, AT_IOU_75 = 0, 5  # positions among COCO's IoU thresholds .5, .55, ..., .95


def evaluate_detections(
    ground_truth: str | Path | dict[str, Any],
    detections: str | Path | list[dict[str, Any]],
    iou_type: str = "bbox",
    style: str = "coco",
    *,
    ap_backend: str | None = None,
) -> Report:
    """AP, AR and oLRP of detections. Prints nothing and leaves its arguments as they are.

    Args:
        ground_truth: path of a COCO or LVIS annotation JSON, or its content.
        detections: path of a COCO results JSON, or its content: a list of objects with `image_id`, `category_id`,
            `score` (0..1) and `bbox` ([x, y, width, height] in pixels) and/or `segmentation` (RLE).
        iou_type: "bbox" compares boxes, "segm" masks.
        style: "coco" (at most 100 detections per image and class) or "lvis" (at most 300 per image; the classes not
            verified in an image do not count there).
        ap_backend: "hotcoco" or "pycocotools" (COCO only, slow); None takes hotcoco where it is installed.

    Raises:
        FileNotFoundError: a path is no file.
        ValueError: one sentence about what is wrong in the input and where.
    """
    if ap_backend is None:
        ap_backend = "hotcoco" if importlib.util.find_spec("hotcoco") else "pycocotools"
    for name, value, choices in (
        ("iou_type", iou_type, ("bbox", "segm")),
        ("style", style, ("coco", "lvis")),
        ("ap_backend", ap_backend, ("hotcoco", "pycocotools")),
    ):
        if value not in choices:
            raise ValueError(f"{name} must be one of {', '.join(choices)}; got {value!r}.")
    truth = read_ground_truth(ground_truth, iou_type, style)
    found = read_detections(detections, truth, iou_type)
    if ap_backend == "hotcoco":
        precision, recall, max_detections = _hotcoco(truth, found, iou_type, style)
    elif style == "coco":
        precision, recall, max_detections = _pycocotools(truth, found, iou_type)
    else:
        raise ValueError("AP in LVIS style needs hotcoco: pip install hotcoco.")
    lrp = evaluate_lrp(truth, found, federated=style == "lvis")

    columns = _ap_columns(precision, recall, max_detections)
    columns |= dict(zip(("oLRP", "oLRP_loc", "oLRP_fp", "oLRP_fn"), lrp.optima[0].T, strict=False))
    columns |= {f"oLRP{area}": lrp.optima[a, :, 0] for a, area in enumerate(AREA_RANGES)}
    summary = {name: _mean(values) for name, values in columns.items()}
    if style == "lvis":
        frequency = np.array([category["frequency"] for category in truth.categories])
        for name in ("AP", "oLRP"):
            summary |= {f"{name}{f}": _mean(columns[name][frequency == f]) for f in LVIS_FREQUENCIES}

    columns["oLRP_threshold"] = lrp.optima[0, :, 4]
    objects = np.bincount(truth.category[~truth.crowd], minlength=len(truth.categories))
    num_found = np.bincount(found.category, minlength=len(truth.categories))
    shown = np.flatnonzero(objects)
    per_class = [
        {
            "class": str(truth.categories[c].get("name", truth.categories[c]["id"])),
            "category_id": truth.categories[c]["id"],
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
        precision=precision[[AT_IOU_50, AT_IOU_75], :, :, 0, -1].transpose(2, 0, 1)[shown],
        lrp=lrp.curves[shown],
        matches=lrp.matches,
    )


def _ap_columns(precision: np.ndarray, recall: np.ndarray, max_detections: list[int]) -> dict[str, np.ndarray]:
    """Per-class AP and AR from COCOeval's arrays.

    Args:
        precision: (T, R, C, 4, M) at T IoU thresholds (.5, .55, ..., .95) and R recalls, for 4 area ranges (all, small,
            medium, large) and M limits of the number of detections; -1 where a class has no object.
        recall: (T, C, 4, M), likewise.
        max_detections: the M limits, rising.

    Returns:
        Name to (C,), NaN where a class has no object.
    """
    precision = np.where(precision < 0, np.nan, precision)
    recall = np.where(recall < 0, np.nan, recall)
    ap = precision[..., -1].mean(axis=(0, 1))  # (C, 4)
    ar = recall.mean(axis=0)  # (C, 4, M)
    columns = {
        "AP": ap[:, 0],
        "AP50": precision[AT_IOU_50, :, :, 0, -1].mean(axis=0),
        "AP75": precision[AT_IOU_75, :, :, 0, -1].mean(axis=0),
        "APs": ap[:, 1],
        "APm": ap[:, 2],
        "APl": ap[:, 3],
    }
    columns |= {f"AR{limit}": ar[:, 0, m] for m, limit in enumerate(max_detections)}
    return columns | {"ARs": ar[:, 1, -1], "ARm": ar[:, 2, -1], "ARl": ar[:, 3, -1]}


def _mean(values: np.ndarray) -> float:
    """The mean over the classes for which a number is defined, NaN if there is none."""
    defined = values[~np.isnan(values)]
    return float(defined.mean()) if len(defined) else float("nan")


def _hotcoco(
    ground_truth: GroundTruth, detections: Detections, iou_type: str, style: str
) -> tuple[np.ndarray, np.ndarray, list[int]]:
    """Precision, recall and limits as in `_ap_columns`. Positions serve as ids, so that no id can be unknown."""
    import hotcoco

    rules = zip(ground_truth.absent, ground_truth.incomplete, strict=True)
    images = [
        {"id": i, "neg_category_ids": absent, "not_exhaustive_category_ids": incomplete}
        for i, (absent, incomplete) in enumerate(rules)
    ]
    truth = hotcoco.COCO.from_arrays(
        images,
        [{"id": c, "name": str(c)} for c in range(len(ground_truth.categories))],
        ground_truth.image,
        ground_truth.category,
        ground_truth.boxes,
        area=ground_truth.areas,
        iscrowd=ground_truth.crowd,
        segmentation=ground_truth.masks,
    )
    rows = np.column_stack([detections.image, detections.boxes, detections.scores, detections.category])
    found = truth.load_res(rows, segmentation=detections.masks)
    found.update_anns(ids=np.arange(1, len(rows) + 1), area=detections.areas)
    evaluator = hotcoco.COCOeval(truth, found, iou_type, lvis_style=style == "lvis")
    evaluator.evaluate()
    evaluator.accumulate()
    arrays = evaluator.eval or {}
    return arrays["precision"], arrays["recall"], evaluator.params.max_dets


def _pycocotools(
    ground_truth: GroundTruth, detections: Detections, iou_type: str
) -> tuple[np.ndarray, np.ndarray, list[int]]:
    """The same from the reference evaluator."""
    with contextlib.redirect_stdout(io.StringIO()):
        truth = _pycocotools_index(ground_truth, ground_truth)
        found = _pycocotools_index(ground_truth, detections)
        evaluator = COCOeval(truth, found, iou_type)
        evaluator.evaluate()
        evaluator.accumulate()
    return evaluator.eval["precision"], evaluator.eval["recall"], evaluator.params.maxDets


def _pycocotools_index(ground_truth: GroundTruth, instances: GroundTruth | Detections) -> COCO:
    """pycocotools' data set of objects or detections. Their ids count from 1, because it takes the id 0 for none."""
    columns = (column.tolist() for column in (instances.image, instances.category, instances.boxes, instances.areas))
    annotations: list[dict[str, Any]] = [
        {"id": n + 1, "image_id": image, "category_id": category, "bbox": box, "area": area, "iscrowd": 0}
        for n, (image, category, box, area) in enumerate(zip(*columns, strict=True))
    ]
    for n, annotation in enumerate(annotations):
        if instances.masks is not None:
            annotation["segmentation"] = instances.masks[n]
        if isinstance(instances, GroundTruth):
            annotation["iscrowd"] = int(instances.crowd[n])
        else:
            annotation["score"] = float(instances.scores[n])
    index = COCO()
    index.dataset = {
        "images": [{**image, "id": i} for i, image in enumerate(ground_truth.images)],
        "categories": [{"id": c} for c in range(len(ground_truth.categories))],
        "annotations": annotations,
    }
    index.createIndex()
    return index
