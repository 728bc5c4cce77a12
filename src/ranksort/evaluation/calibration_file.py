"""calibration.json: a calibrator as plain JSON, which any language can apply by linear interpolation."""

import json
from pathlib import Path
from typing import Annotated, Any

import msgspec
import numpy as np

from ..data.coco_columns import Category
from ..data.ids import IdIndex
from ..data.json_source import JsonSource
from .calibration import Calibrator, Curve, Method, Target
from .result_rows import Row

FORMAT, VERSION = "ranksort calibration", 1


class _ClassEntry(msgspec.Struct):
    id: int | str
    name: str
    detections: Annotated[int, msgspec.Meta(ge=0, lt=1 << 53)]
    scores: list[float] | None = None  # absent where the class is calibrated by `all_classes`
    values: list[float] | None = None


class _CurveEntry(msgspec.Struct):
    scores: list[float]
    values: list[float]


class _Content(msgspec.Struct):
    format: str
    version: int
    target: Target
    method: Method
    all_classes: _CurveEntry
    classes: list[_ClassEntry]
    about: dict[str, Any] = {}


def save_calibrator(calibrator: Calibrator, path: str | Path, about: dict[str, Any] | None = None) -> None:
    """Write a calibrator, a class a line; `about` says, as JSON can hold it, how it came about."""
    lines: dict[str, Any] = {
        "format": FORMAT,
        "version": VERSION,
        "target": calibrator.target,
        "method": calibrator.method,
        "about": about or {},
        "all_classes": _entry(calibrator.all_classes),
    }
    head = [f"{json.dumps(key)}: {json.dumps(value, allow_nan=False)}" for key, value in lines.items()]
    of_classes = zip(calibrator.categories, calibrator.num_detections.tolist(), calibrator.curves, strict=True)
    classes = [
        json.dumps({"id": category.id, "name": category.name, "detections": number, **(_entry(curve) if curve else {})})
        for category, number, curve in of_classes
    ]
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        "{\n" + ",\n".join([*head, '"classes": [\n' + ",\n".join(classes) + "\n]"]) + "\n}\n", encoding="ascii"
    )


def load_calibrator(path: str | Path) -> Calibrator:
    """Read what `save_calibrator` wrote.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: one sentence about why it is no calibration, or one that this version cannot read.
    """
    opened = JsonSource.open(path, "calibration")
    parsed = opened.parse()
    if not isinstance(parsed, dict) or parsed.get("format") != FORMAT:
        raise ValueError(f"The {opened.name} is no calibration: `ranksort calibrate` writes one.")
    if parsed.get("version") != VERSION:
        raise ValueError(
            f"The {opened.name} is of version {parsed.get('version')}, but this ranksort reads version {VERSION}: "
            "install the one that wrote it, or calibrate again."
        )
    try:
        content = msgspec.convert(parsed, _Content)
    except msgspec.ValidationError as error:
        raise ValueError(f"The {opened.name} is damaged: {error}.") from None
    curves = [
        None if entry.scores is None or entry.values is None else _curve(entry.scores, entry.values, opened.name)
        for entry in content.classes
    ]
    return Calibrator(
        content.target,
        content.method,
        [Category(entry.id, entry.name) for entry in content.classes],
        np.array([entry.detections for entry in content.classes], dtype=np.int64),
        curves,
        _curve(content.all_classes.scores, content.all_classes.values, opened.name),
    )


def calibrate_rows(calibrator: Calibrator, rows: list[Row]) -> tuple[list[Row], int]:
    """Give rows, as `read_rows` returns them, calibrated scores; their classes are found by id.

    Returns:
        Copies of the rows, and how many of them are of categories which the calibrator does not know.
    """
    index = IdIndex([category.id for category in calibrator.categories])
    category = index.find([row["category_id"] for row in rows])
    scores = calibrator(np.array([row["score"] for row in rows], dtype=np.float64), category)
    calibrated = [{**row, "score": score} for row, score in zip(rows, scores.tolist(), strict=True)]
    return calibrated, int((category < 0).sum())


def _entry(curve: Curve) -> dict[str, list[float]]:
    return {"scores": curve.scores.tolist(), "values": curve.values.tolist()}


def _curve(scores: list[float], values: list[float], name: str) -> Curve:
    curve = Curve(np.array(scores), np.array(values))
    rises = all(
        (np.diff(column) >= 0).all() and column.min() >= 0 and column.max() <= 1 for column in curve if len(column)
    )
    if len(scores) != len(values) or len(scores) < 2 or not rises or scores[0] != 0 or scores[-1] != 1:
        raise ValueError(f"The {name} is damaged: a curve in it does not rise from score 0 to score 1.")
    return curve
