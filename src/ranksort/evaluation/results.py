"""Detections in COCO's results format, in memory and in files."""

import contextlib
import csv
import io
import itertools
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pycocotools import mask as coco_mask
from torch import Tensor

from ..data.coco_columns import Category, CocoFile
from ..data.ids import Id, sort_key
from ..json_list import GrowingFile, JsonList
from .calibration import Target
from .inputs import CategoryInfo, Detections
from .result_rows import CALIBRATED

COLUMNS = ("image_id", "file_name", "category_id", "class", "score", "x", "y", "width", "height")  # of results.csv


def to_coco_results(
    detections: Sequence[dict[str, Tensor]], image_ids: Sequence[Id], category_ids: Sequence[Id]
) -> list[dict[str, Any]]:
    """Turn the detections of some images into COCO results.

    Args:
        detections: for each image `boxes` [D, 4] xyxy in pixels of the original image, `scores` [D] and `labels` [D], and optionally
            `masks`, bool [D, H, W].
        image_ids: ids of these images.
        category_ids: the category id of each label.

    Returns:
        `{image_id, category_id, bbox: [x, y, width, height], score}` for each detection, with `segmentation` if there are masks.
    """
    results = []
    for found, image_id in zip(detections, image_ids, strict=True):
        boxes = found["boxes"].float().cpu().clone()
        boxes[:, 2:] -= boxes[:, :2]
        categories = [category_ids[label] for label in found["labels"].tolist()]
        rles = encode_masks(found["masks"]) if "masks" in found else None
        results += to_rows(image_id, categories, boxes.tolist(), found["scores"].tolist(), rles)
    return results


def to_rows(
    image_id: Id,
    category_ids: Sequence[Id],
    boxes: Sequence[list[float]],
    scores: Sequence[float],
    rles: Sequence[dict[str, Any]] | None = None,
) -> list[dict[str, Any]]:
    """COCO results of the D detections in an image, from their columns; boxes as [x, y, width, height] in pixels."""
    rows: list[dict[str, Any]] = [
        {"image_id": image_id, "category_id": category_id, "bbox": box, "score": score}
        for category_id, box, score in zip(category_ids, boxes, scores, strict=True)
    ]
    for row, rle in zip(rows, rles or (), strict=rles is not None):
        row["segmentation"] = rle
    return rows


def encode_masks(masks: Tensor) -> list[dict[str, Any]]:
    """Masks, bool [D, H, W], as COCO's compressed RLE, in a form that JSON can hold."""
    encoded = coco_mask.encode(np.asfortranarray(masks.permute(1, 2, 0).cpu().numpy().astype(np.uint8)))
    return [{"size": rle["size"], "counts": rle["counts"].decode("ascii")} for rle in encoded]


def decode_masks(rles: Sequence[dict[str, Any]], height: int, width: int) -> Tensor:
    """The inverse of `encode_masks`, for an image of that size."""
    masks = coco_mask.decode(list(rles)) if rles else np.zeros((height, width, 0), np.uint8)
    return torch.from_numpy(masks).permute(2, 0, 1).bool()


class ResultsWriter:
    """Write detections to a folder image by image: `results_bbox.json`, `results.csv` and optionally `results_segm.json`.

    `images.json` lists all images whose detections are written, including those without any. However the process ends, the files are
    valid and hold everything added before.

    Args:
        folder: output folder; created if necessary.
        categories: categories of the detections, with id and name.
        masks: whether the detections have masks.
        calibrated: what calibrated scores mean, see `Calibrator.target`; written in each row.

    Raises:
        OSError: for example on a full disk, from every method. It names the file.
    """

    def __init__(
        self,
        folder: Path,
        categories: Iterable[Category | CategoryInfo],
        *,
        masks: bool,
        calibrated: Target | None = None,
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._mark = {} if calibrated is None else {CALIBRATED: calibrated}
        self._names = {category.id: category.name for category in categories}
        classes = json.dumps([{"id": id, "name": name} for id, name in self._names.items()])
        with contextlib.ExitStack() as opened:

            def open_list(name: str, *around: str) -> JsonList:
                return opened.enter_context(contextlib.closing(JsonList(folder / name, *around)))

            self._lists = {"bbox": open_list("results_bbox.json")}
            if masks:
                self._lists["segmentation"] = open_list("results_segm.json")
            else:  # of an earlier evaluation
                (folder / "results_segm.json").unlink(missing_ok=True)
            self._images = open_list("images.json", f'{{"categories": {classes},\n"annotations": [],\n"images": ', "}")
            table = GrowingFile(folder / "results.csv", _csv([COLUMNS]))
            self._table = opened.enter_context(contextlib.closing(table))
            self._opened = opened.pop_all()

    def add(self, results: Sequence[dict[str, Any]], image_id: Id, file_name: str, height: int, width: int) -> None:
        """Write the detections of an image.

        Args:
            results: see `to_coco_results`; may be empty.
            image_id: id of the image.
            file_name: its file name.
            height: its height in pixels; 0 if unknown.
            width: its width in pixels; 0 if unknown.
        """
        for shape, growing in self._lists.items():
            # With a box, COCO's evaluation would take the box's area for the mask's.
            hidden = self._lists.keys() - {shape}
            growing.extend(
                {key: value for key, value in row.items() if key not in hidden} | self._mark for row in results
            )
        if results:
            numbers = np.array([[row["score"], *row["bbox"]] for row in results], np.float32).astype(str).tolist()
            classes = ((row["category_id"], self._names[row["category_id"]]) for row in results)
            rows = ((image_id, file_name, *of, *values) for of, values in zip(classes, numbers, strict=True))
            self._table.append(_csv(rows))
        about = {"id": image_id, "file_name": file_name, "height": height, "width": width, "detections": len(results)}
        self._images.extend([about])

    def __enter__(self) -> "ResultsWriter":
        return self

    def __exit__(self, *error: object) -> None:
        self._opened.close()


def write_results(folder: Path, found: Detections, file: CocoFile, calibrated: Target | None = None) -> None:
    """Write the detections of an evaluation with `ResultsWriter`, so that `evaluate_detections` gives the same numbers.

    Args:
        folder: output folder.
        found: boxes, and optionally masks, in images of `file`.
        file: the ground truth that they were compared with; all its images are listed, in the order of their ids.
        calibrated: see `ResultsWriter`.
    """
    images = file.images
    in_order = sorted(range(len(images)), key=lambda n: sort_key(images.ids[n]))
    by_image = np.argsort(found.image, kind="stable")
    bounds = np.searchsorted(found.image[by_image], np.arange(len(images) + 1)).tolist()
    assert found.boxes is not None
    with ResultsWriter(folder, file.categories, masks=found.masks is not None, calibrated=calibrated) as writer:
        for n, (start, end) in zip(in_order, itertools.pairwise(bounds), strict=True):
            places, size = by_image[start:end], (int(images.heights[n]), int(images.widths[n]))
            categories = [file.categories[c].id for c in found.category[places].tolist()]
            masks = None if found.masks is None else found.masks.take(places)
            rles = None if masks is None else [{"size": size, "counts": runs.decode("ascii")} for runs in masks]
            columns = (categories, found.boxes[places].tolist(), found.scores[places].tolist(), rles)
            writer.add(to_rows(images.ids[n], *columns), images.ids[n], images.file_name(n), *size)


def _csv(rows: Iterable[Iterable[Any]]) -> str:
    text = io.StringIO()
    csv.writer(text).writerows(rows)
    return text.getvalue()
