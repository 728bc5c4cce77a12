"""calibration.json: a calibrator as plain JSON, which can be applied in any language by linear interpolation."""

import json
from pathlib import Path
from typing import Annotated, Any

import msgspec
import numpy as np

from ..data.coco_columns import Category
from ..data.ids import IdIndex
from ..data.json_source import JsonSource
from ..whole_file import replace_file
from .calibration import Calibrator, Curve, Method, Target
from .result_rows import CALIBRATED, Row

FORMAT, VERSION = "ranksort calibration", 1


class _ClassEntry(msgspec.Struct):
    id: int | str
    name: str
    detections: Annotated[int, msgspec.Meta(ge=0, lt=1 << 53)]
    scores: list[float] | None = None  # absent if the class is calibrated by `all_classes`
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


def calibrator_content(
    calibrator: Calibrator, about: dict[str, Any] | None = None, thresholds: dict[str, Any] | None = None
) -> dict[str, Any]:
    """A calibrator as plain JSON values.

    Args:
        calibrator: the calibrator.
        about: how it was fitted, in JSON values.
        thresholds: the result of `thresholds.thresholds_content` for the same scores.
    """
    of_classes = zip(calibrator.categories, calibrator.num_detections.tolist(), calibrator.curves, strict=True)
    return {
        "format": FORMAT,
        "version": VERSION,
        "target": calibrator.target,
        "method": calibrator.method,
        "about": about or {},
        **({} if thresholds is None else {"thresholds": thresholds}),
        "all_classes": _entry(calibrator.all_classes),
        "classes": [
            {"id": category.id, "name": category.name, "detections": number, **(_entry(curve) if curve else {})}
            for category, number, curve in of_classes
        ],
    }


def save_calibrator(
    calibrator: Calibrator,
    path: str | Path,
    about: dict[str, Any] | None = None,
    thresholds: dict[str, Any] | None = None,
) -> None:
    """Write the result of `calibrator_content`, one class per line."""
    content = calibrator_content(calibrator, about, thresholds)
    classes = ",\n".join(map(json.dumps, content.pop("classes")))
    head = [f"{json.dumps(key)}: {json.dumps(value, allow_nan=False)}" for key, value in content.items()]
    text = "{\n" + ",\n".join([*head, f'"classes": [\n{classes}\n]']) + "\n}\n"
    replace_file(Path(path), text.encode("ascii"))


def load_calibrator(path: str | Path) -> Calibrator:
    """Read what `save_calibrator` wrote.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not a calibration, or this version cannot read it; one sentence says why.
    """
    opened = JsonSource.open(path, "calibration")
    return read_calibrator(opened.parse(), opened.name)


def read_calibrator(content: Any, name: str) -> Calibrator:
    """The inverse of `calibrator_content`, from parsed JSON; `name` is used in messages.

    Raises:
        ValueError: as `load_calibrator`.
    """
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise ValueError(f"The {name} is not a calibration: `ranksort calibrate` writes one.")
    if content.get("version") != VERSION:
        raise ValueError(
            f"The {name} has version {content.get('version')}, but this ranksort reads version {VERSION}: "
            "install the ranksort that wrote it, or calibrate again."
        )
    try:
        checked = msgspec.convert(content, _Content)
    except msgspec.ValidationError as error:
        raise ValueError(f"The {name} is damaged: {error}.") from None
    curves = [
        None if entry.scores is None or entry.values is None else _curve(entry.scores, entry.values, name)
        for entry in checked.classes
    ]
    return Calibrator(
        checked.target,
        checked.method,
        [Category(entry.id, entry.name) for entry in checked.classes],
        np.array([entry.detections for entry in checked.classes], dtype=np.int64),
        curves,
        _curve(checked.all_classes.scores, checked.all_classes.values, name),
    )


def calibrate_rows(calibrator: Calibrator, rows: list[Row]) -> tuple[list[Row], int]:
    """Calibrate the scores of rows from `read_rows`; classes are found by id.

    Returns:
        Copies of the rows, each with the target of the calibration as `CALIBRATED`, and how many of them have categories that the
        calibrator does not know.

    Raises:
        ValueError: some are calibrated already.
    """
    if done := sum(row.get(CALIBRATED) is not None for row in rows):
        raise ValueError(
            f"{done} of the {len(rows)} detections are already calibrated, as their '{CALIBRATED}' says: "
            "a calibration is for the raw scores "
            "of the model"
        )
    index = IdIndex([category.id for category in calibrator.categories])
    category = index.find([row["category_id"] for row in rows])
    scores = calibrator(np.array([row["score"] for row in rows], dtype=np.float64), category)
    mark = {CALIBRATED: calibrator.target}
    calibrated = [{**row, "score": score, **mark} for row, score in zip(rows, scores.tolist(), strict=True)]
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
