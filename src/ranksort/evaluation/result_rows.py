"""Results of any detector as their file has them, to be written again with other scores or boxes; needs no ground truth."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from ..data.coco_rows import MAX_COORDINATE, is_number
from ..data.ids import canonical
from ..data.json_source import JsonSource, in_memory
from ..words import listed

Row = dict[str, Any]


def read_rows(source: str | Path | list[Row]) -> list[Row]:
    """Read detections in COCO's results format, with whatever else their rows hold.

    Args:
        source: path of the JSON, or its content.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: one sentence about what is wrong and where: it is no list of objects with ids of an image and a category and a
            score in 0..1.
    """
    with in_memory(source, "detections", "split the file by images"):
        opened = JsonSource.open(source, "list of detections")
        try:
            rows = msgspec.json.decode(opened.content)
        except (msgspec.DecodeError, RecursionError):
            rows = opened.parse()
    if not isinstance(rows, list):
        raise ValueError(f"The {opened.name} must be a JSON list of objects, as COCO's results are.")
    require(rows, opened.name, "are no objects", lambda row: isinstance(row, dict))
    for key in ("image_id", "category_id"):
        problem = f"have no '{key}' that is an integer or a string"
        require(rows, opened.name, problem, lambda row, key=key: canonical(row.get(key)) is not None)
    require(rows, opened.name, "have no 'score' that is a number", lambda row: is_number(row.get("score")))
    require(rows, opened.name, "have a score outside 0..1", lambda row: 0 <= row["score"] <= 1)
    return rows


def read_boxes(rows: Sequence[Row], name: str) -> np.ndarray:
    """Return the boxes of N rows as xyxy, (N, 4) in pixels; `name` is what messages call their file.

    Raises:
        ValueError: a row has no box, or none that is four sensible numbers.
    """

    def has_box(row: Row) -> bool:
        box = row["bbox"]
        good = isinstance(box, list) and len(box) == 4 and all(is_number(x, MAX_COORDINATE) for x in box)
        return good and box[2] >= 0 and box[3] >= 0

    require(rows, name, "have no 'bbox', by which detections are compared", lambda row: row.get("bbox") is not None)
    require(rows, name, "have a bbox that is not x, y, width and height in pixels", has_box)
    boxes = np.array([row["bbox"] for row in rows], dtype=np.float64).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    return boxes


def require(rows: Sequence[Any], name: str, problem: str, is_good: Callable[..., bool]) -> None:
    """Raise ValueError that says how many of the rows have a problem, and the places of the first few, if there are such."""
    wrong = [n for n, row in enumerate(rows) if not is_good(row)]
    if wrong:
        raise ValueError(f"{len(wrong)} of {len(rows)} rows of the {name} {problem} (position {listed(wrong)}).")


def write_rows(rows: Sequence[Row], path: Path) -> None:
    """Write rows as a JSON list, one row a line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("[" + ",\n".join(map(json.dumps, rows)) + "]\n", encoding="ascii")
