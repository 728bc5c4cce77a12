"""What do tiles find in a large image that the model does not see in the image as a whole?

A mosaic of BCCD's test images (blood cells), at their own size, is one image of about 6,000 px. Its small objects are the platelets. An
object at a seam of the mosaic is cut off there as it is in the image that it comes from.

    python benchmarks/tiled_prediction.py RUN BCCD [--side 6000] [--tile 640] [--overlap .2] [--thresholds lrp]
"""

import argparse
import json
import resource
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torchvision.ops import box_iou

from ranksort import load_model
from ranksort.prediction import Prediction

IOU = 0.5


def mosaic(data: Path, side: int) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """The test images in rows, again from the first one when there are no more: pixels [H, W, 3], boxes xyxy [G, 4] and class names."""
    content = json.loads((data / "annotations/instances_test.json").read_text())
    names = {c["id"]: c["name"] for c in content["categories"]}
    images = content["images"]
    width, height = images[0]["width"], images[0]["height"]
    columns, rows = side // width, side // height
    pixels = np.zeros((rows * height, columns * width, 3), np.uint8)
    boxes, classes = [], []
    for place in range(rows * columns):
        image = images[place % len(images)]
        x, y = place % columns * width, place // columns * height
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
    """Of a class: recall at IoU .5, detections, objects which two detections have most of, and pieces of objects.

    A double has an IoU of .5 or more with an object that a better detection has; a piece lies within one and has less than half of it.
    """
    mine = found.boxes[[n == name for n in found.names]]
    objects = boxes[[n == name for n in classes]]
    iou = box_iou(torch.from_numpy(objects), torch.from_numpy(mine)).numpy()
    free, hit = np.ones(len(mine), bool), 0
    for row in iou:  # detections come by falling score
        candidates = np.flatnonzero((row >= IOU) & free)
        if len(candidates):
            free[candidates[np.argmax(row[candidates])]] = False
            hit += 1
    doubles = int((free & (iou.max(0, initial=0) >= IOU)).sum())
    area = (mine[:, 2:] - mine[:, :2]).prod(1)
    start = np.maximum(objects[:, None, :2], mine[None, :, :2])
    inside = (np.minimum(objects[:, None, 2:], mine[None, :, 2:]) - start).clip(0).prod(2) / area
    pieces = int((free & (iou.max(0, initial=0) < IOU) & (inside.max(0, initial=0) > 0.8)).sum())
    return hit / len(objects), len(mine), doubles, pieces


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
    print(
        f"{pixels.shape[1]} x {pixels.shape[0]} px, {len(boxes)} objects; recall at IoU .5 / detections / doubles / pieces"
    )
    ways = [(None, 0.2)] + [(tile, overlap) for tile in arguments.tile for overlap in arguments.overlap]
    for tile, overlap in ways:
        begun = time.process_time()
        found = model.predict(pixels, tile=tile, overlap=overlap)
        assert isinstance(found, Prediction)
        cells = []
        for name in model.class_names:
            recall, count, doubles, pieces = compare(found, boxes, classes, name)
            cells.append(f"{name} {100 * recall:.1f} % / {count} / {doubles} / {pieces}")
        what = "whole" if tile is None else f"tiles of {tile}, overlap {overlap:g}"
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        print(f"{what}: {'; '.join(cells)}; {time.process_time() - begun:.1f} s of CPU, {memory:.1f} GiB so far")


if __name__ == "__main__":
    main()
