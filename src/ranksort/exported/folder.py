"""Write the detections of an ONNX model to a folder, as `ranksort predict model.onnx` does."""

import csv
import io
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ..prediction.images import failure, picture_name, picture_suffix
from ..whole_file import replace_file
from .detector import Found, OnnxDetector

_COLUMNS = ("image_id", "file_name", "category_id", "class", "score", "x", "y", "width", "height")  # of results.csv
_COLOURS = ((255, 170, 60), (90, 200, 250), (140, 230, 120), (250, 130, 180), (200, 170, 255), (240, 230, 90))


class ResultFolder:
    """Write results in the same files as `ranksort predict` for any model.

    Args:
        out: the folder; created if necessary.
        detector: the detector to run.
        pictures: whether to draw pictures.

    Attributes:
        images: number of images with results.
        detections: number of detections by class.
        failures: one sentence for each file that could not be read or processed.
    """

    def __init__(self, out: Path, detector: OnnxDetector, *, pictures: bool = True) -> None:
        self._out, self._detector, self._pictures = out, detector, pictures
        self.images, self.detections = 0, Counter[str]()
        self.failures: list[str] = []
        self._rows: list[dict[str, Any]] = []
        self._mark: dict[str, str] = {}
        self._about: list[dict[str, Any]] = []

    def predict(self, files: Sequence[Path], score_threshold: float | str | None, *, scores: str = "raw") -> None:
        """Write the results of some images. However it ends, the results of the images before are written."""
        self._out.mkdir(parents=True, exist_ok=True)
        # As in `evaluation.result_rows`, which needs more packages.
        self._mark = {} if scores == "raw" else {"calibrated": "iou" if scores == "calibrated" else scores}
        try:
            for number, path in enumerate(files):
                try:
                    image = self._detector.load(path)
                    found = self._detector.predict(image, score_threshold, scores=scores)
                except Exception as error:  # onnxruntime has many exception classes
                    self.failures.append(failure(path, error))
                    continue
                self._add(number + 1, path, image, found)
                if self._pictures:
                    self._draw(number, path, image, found)
        finally:
            self._write()

    def _add(self, image_id: int, path: Path, image: np.ndarray, found: Found) -> None:
        size = image.shape[:2]
        boxes = found.boxes.copy()
        boxes[:, 2:] -= boxes[:, :2]
        masks = [None] * len(found) if found.masks is None else list(found.masks)
        columns = (found.labels.tolist(), boxes.tolist(), found.scores.tolist(), masks)
        for label, box, score, mask in zip(*columns, strict=True):
            row = {"image_id": image_id, "category_id": self._detector.category_ids[label], "bbox": box, "score": score}
            self._rows.append((row if mask is None else row | {"segmentation": encode_mask(mask)}) | self._mark)
            self.detections[self._detector.class_names[label]] += 1
        about = {"id": image_id, "file_name": str(path), "height": size[0], "width": size[1], "detections": len(found)}
        self._about.append(about)
        self.images += 1

    def _write(self) -> None:
        boxes = [{key: value for key, value in row.items() if key != "segmentation"} for row in self._rows]
        self._write_json("results_bbox.json", boxes)
        if self._detector.has_masks:
            masks = [{key: value for key, value in row.items() if key != "bbox"} for row in self._rows]
            self._write_json("results_segm.json", masks)
        self._write_json(
            "images.json",
            {"categories": self._detector.about["categories"], "annotations": [], "images": self._about},
        )
        names = {image["id"]: image["file_name"] for image in self._about}
        classes = dict(zip(self._detector.category_ids, self._detector.class_names, strict=True))
        text = io.StringIO()
        table = csv.writer(text)
        table.writerow(_COLUMNS)
        for row in self._rows:
            image, category = row["image_id"], row["category_id"]
            table.writerow([image, names[image], category, classes[category], row["score"], *row["bbox"]])
        # A file name may not be valid Unicode.
        replace_file(self._out / "results.csv", text.getvalue().encode("utf-8", "backslashreplace"))

    def _write_json(self, name: str, content: Any) -> None:
        replace_file(self._out / name, json.dumps(content).encode())

    def _draw(self, number: int, path: Path, image: np.ndarray, found: Found) -> None:
        picture = draw(image, found, self._detector.class_names)
        picture.save(self._out / picture_name(number, path, picture_suffix(image.shape)))


def draw(image: np.ndarray, found: Found, class_names: Sequence[str]) -> Image.Image:
    """Draw boxes, class names and scores, and masks if there are any, on an image, uint8 [H, W, 3]."""
    pixels = image.copy()
    colours = [_COLOURS[label % len(_COLOURS)] for label in found.labels.tolist()]
    for mask, colour in zip(found.masks if found.masks is not None else (), colours, strict=False):
        pixels[mask] = (pixels[mask].astype(np.uint16) + np.array(colour, np.uint16)) // 2
    picture = Image.fromarray(pixels)
    pen = ImageDraw.Draw(picture)
    side = min(picture.size)
    font = ImageFont.load_default(max(9, round(side / 36)))
    for box, label, score, colour in zip(
        found.boxes.tolist(), found.labels.tolist(), found.scores.tolist(), colours, strict=True
    ):
        pen.rectangle(box, outline=colour, width=max(1, round(side / 200)))
        text = f"{class_names[label]} {score:.2f}"
        place = pen.textbbox(box[:2], text, font=font)
        pen.rectangle(place, fill=colour)
        pen.text(box[:2], text, fill="black", font=font)
    return picture


def encode_mask(mask: np.ndarray) -> dict[str, Any]:
    """A mask, bool [H, W], as COCO's compressed RLE, in a form that JSON can hold."""
    column_by_column = np.concatenate([[False], mask.T.reshape(-1)])  # the first run is of zeros
    changes = np.flatnonzero(column_by_column[1:] != column_by_column[:-1])
    counts = np.diff(changes, prepend=0, append=mask.size).tolist()
    return {"size": list(mask.shape), "counts": "".join(_characters(counts))}


def _characters(counts: Sequence[int]) -> Iterator[str]:
    """COCO's text encoding of run lengths: from the fourth on, the difference to the last but one, in groups of five bits."""
    for n, count in enumerate(counts):
        value = count - counts[n - 2] if n > 2 else count
        more = True
        while more:
            bits = value & 31
            value >>= 5
            more = value != (-1 if bits & 16 else 0)
            yield chr(bits + (32 if more else 0) + 48)
