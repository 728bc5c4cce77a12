"""Read and write results of any detector, to change scores or boxes; needs no ground truth."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from pycocotools import mask as coco_mask

from ..data.coco_rows import MAX_COORDINATE, is_number
from ..data.ids import canonical
from ..data.json_source import JsonSource, in_memory
from ..data.segmentations import are_polygons, compress, rle_areas
from ..json_list import to_json
from ..whole_file import replace_file
from ..words import listed

Row = dict[str, Any]
CALIBRATED = "calibrated"  # the key with which a detection says what its score means: "iou" or "precision", see `Calibrator.target`


def read_rows(source: str | Path | list[Row]) -> list[Row]:
    """Read detections in COCO's results format, with any additional keys.

    Args:
        source: path of the JSON, or its content.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not a list of objects with the ids of an image and a category and a score in 0..1; one sentence says what is
            wrong and where.
    """
    with in_memory(source, "detections", "split the file by images"):
        opened = JsonSource.open(source, "list of detections")
        try:
            rows = msgspec.json.decode(opened.content)
        except (msgspec.DecodeError, RecursionError):
            rows = opened.parse()
    if not isinstance(rows, list):
        raise ValueError(f"The {opened.name} must be a JSON list of objects, as COCO's results are.")
    require(rows, opened.name, "are not objects", lambda row: isinstance(row, dict))
    for key in ("image_id", "category_id"):
        problem = f"have no '{key}' that is an integer or a string"
        require(rows, opened.name, problem, lambda row, key=key: canonical(row.get(key)) is not None)
    require(rows, opened.name, "have no 'score' that is a number", lambda row: is_number(row.get("score")))
    require(rows, opened.name, "have a score outside 0..1", lambda row: 0 <= row["score"] <= 1)
    return rows


def read_boxes(rows: Sequence[Row], name: str) -> np.ndarray:
    """The boxes of N rows as xyxy, (N, 4) in pixels: their "bbox", or the box around the mask of a row without one.

    `name` is the name of their file in messages.

    Raises:
        ValueError: a row has neither, or a box that is not four finite numbers, or an invalid mask.
    """

    def has_box(row: Row) -> bool:
        box = row.get("bbox")
        good = isinstance(box, list) and len(box) == 4 and all(is_number(x, MAX_COORDINATE) for x in box)
        return box in (None, []) or (good and box[2] >= 0 and box[3] >= 0)

    def has_any(row: Row) -> bool:
        return row.get("bbox") not in (None, []) or bool(row.get("segmentation"))

    require(rows, name, "have no 'bbox', which is needed to compare detections, and no mask to take it from", has_any)
    require(rows, name, "have a bbox that is not x, y, width and height in pixels", has_box)
    boxes = np.array([row.get("bbox") or (np.nan,) * 4 for row in rows], dtype=np.float64).reshape(-1, 4)
    with_masks_alone = np.flatnonzero(np.isnan(boxes[:, 0]))
    boxes[with_masks_alone] = boxes_of_masks([rows[n]["segmentation"] for n in with_masks_alone.tolist()])
    is_bad = np.isnan(boxes[:, 0]).tolist()
    require(
        list(zip(rows, is_bad, strict=True)),
        name,
        "have a mask that is neither a complete RLE nor polygons",
        lambda x: not x[1],
    )
    boxes[:, 2:] += boxes[:, :2]
    return boxes


def boxes_of_masks(masks: Sequence[Any]) -> np.ndarray:
    """Boxes around N masks of results, [x, y, width, height] in pixels, (N, 4); NaN for invalid masks."""
    boxes = np.full((len(masks), 4), np.nan)
    are_rles = np.array([_is_rle(mask) for mask in masks], dtype=bool)
    for n in np.flatnonzero(~are_rles).tolist():
        if are_polygons(masks[n]):
            points = np.concatenate([polygon for polygon in masks[n] if len(polygon) >= 6]).reshape(-1, 2)
            boxes[n] = [*points.min(0), *np.ptp(points, axis=0)]
    places = np.flatnonzero(are_rles)
    rles = [masks[n] for n in places.tolist()]
    pixels = np.array([mask["size"][0] * mask["size"][1] for mask in rles], dtype=np.int64)
    whole = rle_areas([mask["counts"] for mask in rles], pixels) >= 0  # pycocotools never returns for some others
    rles = [
        mask if isinstance(mask["counts"], str) else compress(mask)
        for mask, good in zip(rles, whole, strict=True)
        if good
    ]
    boxes[places[whole]] = coco_mask.toBbox(rles).reshape(-1, 4)
    return boxes


def _is_rle(mask: Any) -> bool:
    if not isinstance(mask, dict) or not isinstance(mask.get("counts"), str | list):
        return False
    size = mask.get("size")
    if not isinstance(size, list) or len(size) != 2 or not all(type(side) is int and side > 0 for side in size):
        return False
    return size[0] * size[1] < 1 << 32


def require(rows: Sequence[Any], name: str, problem: str, is_good: Callable[..., bool]) -> None:
    """Raise ValueError if rows have a problem, with their number and the positions of the first few."""
    wrong = [n for n, row in enumerate(rows) if not is_good(row)]
    if wrong:
        raise ValueError(f"{len(wrong)} of {len(rows)} rows of the {name} {problem} (position {listed(wrong)}).")


def write_rows(rows: Sequence[Row], path: Path) -> None:
    """Write rows as a JSON list, one row per line, atomically."""
    replace_file(path, ("[" + ",\n".join(map(to_json, rows)) + "]\n").encode())
