"""`thresholds.json`: from which score on the detections of each class are worth showing, which is where it reaches its oLRP."""

import json
import math
from collections.abc import Sequence
from pathlib import Path

from ..data.coco_columns import Category
from .report import Report


def save_thresholds(folder: Path, report: Report) -> None:
    """Write `thresholds.json`: `iou_type`; `thresholds`, of each category of the ground truth `category_id`, `class` and `threshold`,
    null where nothing right of it was found or it has no objects; and `default`, for those: the mean of the others, null without any.
    """
    found = {row["category_id"]: row["oLRP_threshold"] for row in report.per_class}
    known = {id: threshold for id, threshold in found.items() if not math.isnan(threshold)}
    rows = [{"category_id": c.id, "class": c.name, "threshold": known.get(c.id)} for c in report.categories]
    default = json.dumps(sum(known.values()) / len(known) if known else None)
    lines = ",\n".join(map(json.dumps, rows))
    text = f'{{\n"iou_type": "{report.iou_type}",\n"default": {default},\n"thresholds": [\n{lines}\n]\n}}\n'
    (folder / "thresholds.json").write_text(text, encoding="utf-8")


def read_thresholds(checkpoint: Path, categories: Sequence[Category]) -> list[float]:
    """The LRP-optimal score threshold of each of a model's classes, from the report of its run; of masks where there is one.

    Args:
        checkpoint: a run folder, or a checkpoint in one.
        categories: of the model; those of the report are found by id and name.

    Raises:
        FileNotFoundError: the run has no report.
        ValueError: it cannot be read, or has no threshold of any of the classes.
    """
    runs = [checkpoint] if checkpoint.is_dir() else checkpoint.absolute().parents[:2]
    folders = [run / "report" for run in runs]
    files = [file for f in folders for file in (f / "masks/thresholds.json", f / "thresholds.json") if file.is_file()]
    if not files:
        raise FileNotFoundError(
            f"there is no {folders[0] / 'thresholds.json'}, which --score-threshold lrp needs: write it by `ranksort test "
            f"{checkpoint} --out {folders[0]}`, or set a number from 0 to 1"
        )
    try:
        content = json.loads(files[0].read_bytes())
        default = content["default"]
        known = {(row["category_id"], row["class"]): row["threshold"] for row in content["thresholds"]}
        of_classes = [known.get((category.id, category.name)) for category in categories]
        if any(threshold is not None for threshold in of_classes):
            return [float(default if threshold is None else threshold) for threshold in of_classes]
    except (ValueError, TypeError, KeyError, RecursionError):
        raise ValueError(f"{files[0]} is damaged: evaluate the run again by `ranksort test`") from None
    raise ValueError(f"{files[0]} has no threshold of any class of {checkpoint}: set a number from 0 to 1")
