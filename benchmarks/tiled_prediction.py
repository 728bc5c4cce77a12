"""What do tiles detect in a large image that the model misses in the whole image?

A mosaic of BCCD's test images (blood cells), at their original size, is one image of about 6,000 px. Its small objects are the
platelets. Objects at a seam of the mosaic are cut off as in their original image.

    python benchmarks/tiled_prediction.py RUN BCCD [--side 6000] [--tile 640] [--overlap .2]
"""

import argparse
import json
import resource
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torchvision.ops import batched_nms, box_iou

from ranksort import load_model
from ranksort.models import Detector
from ranksort.prediction import Prediction
from ranksort.prediction.tiles import cover, place

IOU = 0.5


def mosaic(data: Path, side: int) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """The test images in rows, repeated if necessary: pixels [H, W, 3], boxes xyxy [G, 4] and class names."""
    content = json.loads((data / "annotations/instances_test.json").read_text())
    names = {c["id"]: c["name"] for c in content["categories"]}
    images = content["images"]
    width, height = images[0]["width"], images[0]["height"]
    columns, rows = side // width, side // height
    pixels = np.zeros((rows * height, columns * width, 3), np.uint8)
    boxes, classes = [], []
    for n in range(rows * columns):
        image = images[n % len(images)]
        x, y = n % columns * width, n // columns * height
        pixels[y : y + height, x : x + width] = np.asarray(
            Image.open(data / "images" / image["file_name"]).convert("RGB")
        )
        for a in content["annotations"]:
            if a["image_id"] == image["id"]:
                left, top, w, h = a["bbox"]
                boxes.append([x + left, y + top, x + left + w, y + top + h])
                classes.append(names[a["category_id"]])
    return pixels, np.array(boxes, np.float32), classes


def compare(found: Prediction, boxes: np.ndarray, classes: list[str], name: str) -> tuple[float, int, int, int]:
    """For a class: recall at IoU .5, detections, duplicates, and pieces of objects.

    A duplicate is an additional detection of an object with an IoU of .5 or more; a piece lies within an object and has a lower IoU.
    """
    mine = found.boxes[[n == name for n in found.names]]
    objects = boxes[[n == name for n in classes]]
    iou = box_iou(torch.from_numpy(objects), torch.from_numpy(mine)).numpy()
    free, hit = np.ones(len(mine), bool), 0
    for row in iou:  # detections are sorted by descending score
        candidates = np.flatnonzero((row >= IOU) & free)
        if len(candidates):
            free[candidates[np.argmax(row[candidates])]] = False
            hit += 1
    doubles = int((free & (iou.max(0, initial=0) >= IOU)).sum())
    area = (mine[:, 2:] - mine[:, :2]).prod(1)
    start = np.maximum(objects[:, None, :2], mine[None, :, :2])
    inside = (np.minimum(objects[:, None, 2:], mine[None, :, 2:]) - start).clip(0).prod(2) / area
    pieces = int((free & (iou.max(0, initial=0) < IOU) & (inside.max(0, initial=0) > 0.8)).sum())
    return 100 * hit / len(objects), len(mine), doubles, pieces


def plain_nms(model: Detector, pixels: np.ndarray, tile: int, overlap: float) -> Prediction:
    """The result of NMS, at the model's own threshold, over the detections of all tiles."""
    size, parts = (pixels.shape[0], pixels.shape[1]), []
    for box in cover(*size, tile, overlap).boxes.tolist():
        x, y, x2, y2 = box
        found = model.predict(pixels[y:y2, x:x2])
        assert isinstance(found, Prediction)
        parts.append(place(found, box, size))
    columns = zip(*((p.boxes, p.scores, p.labels) for p in parts), strict=True)
    boxes, scores, labels = (torch.from_numpy(np.concatenate(column)) for column in columns)
    kept = batched_nms(boxes, scores, labels, model.nms_threshold)
    found = [x[kept].numpy() for x in (boxes, scores, labels)]
    return Prediction(*found, model.class_names, size)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("bccd", type=Path)
    parser.add_argument("--side", type=int, default=6000)
    parser.add_argument("--tile", type=int, nargs="+", default=[640])
    parser.add_argument("--overlap", type=float, nargs="+", default=[0.2])
    arguments = parser.parse_args()
    model = load_model(arguments.run)
    pixels, boxes, classes = mosaic(arguments.bccd, arguments.side)
    counts = ", ".join(f"{classes.count(name)} {name}" for name in model.class_names)
    print(f"{pixels.shape[1]} x {pixels.shape[0]} px, {counts}; recall at IoU .5 / detections / doubles / pieces")
    ways = [(tile, overlap) for tile in arguments.tile for overlap in arguments.overlap]
    runs: list[tuple[str, Callable[[], Any]]] = [("the whole image", lambda: model.predict(pixels))]
    for tile, overlap in ways:
        what = f"tiles of {tile} px, overlap {overlap:g}"
        runs.append((what, partial(model.predict, pixels, tile=tile, overlap=overlap)))
        runs.append((f"{what}, NMS of all detections", partial(plain_nms, model, pixels, tile, overlap)))
    for what, run in runs:
        started_at = time.process_time()
        found, seconds = run(), time.process_time() - started_at
        cells = ["{:.1f} % / {} / {} / {}".format(*compare(found, boxes, classes, name)) for name in model.class_names]
        print(f"| {what} | {' | '.join(cells)} | {seconds:.1f} s |", flush=True)
    print(f"peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.1f} GiB")


if __name__ == "__main__":
    main()
