"""AP and oLRP of large result files against pycocotools' AP: CPU time and peak memory of whole processes.

Each evaluator starts in a process of its own, loads the same two files and evaluates; importing counts, too.

    python benchmarks/evaluation_speed.py [--images 5000] [--detections 100] [--seen 15] [--runs 3] [--folder DIR]
"""

import argparse
import json
import math
import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as mask_utils

HEIGHT, WIDTH, CLASSES = 480, 640, 80
OURS = "from ranksort.evaluation import evaluate_detections; evaluate_detections('{truth}', '{found}', '{iou_type}')"
PYCOCOTOOLS = """
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
truth = COCO('{truth}')
evaluator = COCOeval(truth, truth.loadRes('{found}'), '{iou_type}')
evaluator.evaluate()
evaluator.accumulate()
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--detections", type=int, default=100, help="per image")
    parser.add_argument("--seen", type=int, default=15, help="classes which an image seems to show besides its objects")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="where the files are kept; default: nowhere")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        print(
            f"{'':>6}{'file MB':>9}{'ours s':>9}{'pycocotools s':>15}{'ratio':>7}{'ours MB':>9}{'pycocotools MB':>16}"
        )
        for iou_type in ("bbox", "segm"):
            files = {name: folder / f"{name}_{iou_type}.json" for name in ("truth", "found")}
            if not files[
                "found"
            ].exists():  # in a process of its own, whose memory would count for those started from it
                writer = multiprocessing.Process(target=write_files, args=(list(files.values()), iou_type, options))
                writer.start()
                writer.join()
            codes = [code.format(**files, iou_type=iou_type) for code in (OURS, PYCOCOTOOLS)]
            runs = np.array([[cost(code) for code in codes] for _ in range(options.runs)])  # (runs, 2, seconds and MB)
            (ours, our_memory), (theirs, their_memory) = np.median(runs, axis=0)
            ratio = statistics.median(runs[:, 1, 0] / runs[:, 0, 0])
            size = sum(file.stat().st_size for file in files.values()) / 2**20
            print(
                f"{iou_type:>6}{size:9.0f}{ours:9.2f}{theirs:15.1f}{ratio:7.1f}{our_memory:9.0f}{their_memory:16.0f}",
                flush=True,
            )


def write_files(files: list[Path], iou_type: str, options: argparse.Namespace) -> None:
    for file, content in zip(files, data_set(iou_type, options), strict=True):
        file.write_text(json.dumps(content))


def cost(code: str) -> tuple[float, float]:
    """CPU seconds and peak MB of a Python process."""
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise RuntimeError(f"the evaluator failed: {code}")
    return usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024


def data_set(iou_type: str, options: argparse.Namespace) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Images with 7 objects on average, of frequent and rare classes and all sizes, and detections of a fair detector."""
    rng = np.random.default_rng(0)
    frequency = 1 / np.arange(1, CLASSES + 1)
    frequency /= frequency.sum()
    annotations: list[dict[str, Any]] = []
    detections: list[dict[str, Any]] = []
    for image in range(1, options.images + 1):
        num_objects = rng.poisson(7)
        # Whatever is detected where there is nothing belongs to some of the classes.
        classes = (
            np.concatenate([rng.choice(CLASSES, num_objects, p=frequency), rng.permutation(CLASSES)[: options.seen]])
            + 1
        )
        boxes = _random_boxes(rng, num_objects)
        shapes = rng.uniform(0.7, 1, (num_objects, 24))
        for box, shape, category in zip(boxes, shapes, classes, strict=False):
            row = {"id": len(annotations) + 1, "image_id": image, "category_id": int(category)}
            annotations.append(row | {"iscrowd": int(rng.random() < 0.01)} | _geometry(box, shape, iou_type))
            annotations[-1]["area"] = annotations[-1]["bbox"][2] * annotations[-1]["bbox"][3]
        num_near = min(4 * num_objects, options.detections)
        near = np.repeat(np.arange(num_objects), 4)[:num_near]
        sizes = np.tile(boxes[near, 2:], 2)
        found = boxes[near] + sizes * rng.normal(0, 0.1, (num_near, 4))
        found = np.concatenate([found, _random_boxes(rng, options.detections - num_near)])
        found_classes = np.concatenate([classes[near], rng.choice(classes, options.detections - num_near)])
        scores = np.concatenate([rng.beta(2, 2, num_near), rng.beta(1, 6, options.detections - num_near)])
        outlines = rng.uniform(0.7, 1, (options.detections, 24))
        for i, (box, category, score) in enumerate(zip(found, found_classes, scores, strict=True)):
            outline = shapes[near[i]] if i < num_near else outlines[i]
            row = {"image_id": image, "category_id": int(category), "score": float(np.float32(score))}
            detections.append(row | _geometry(box, outline, iou_type))
    images = [{"id": i, "height": HEIGHT, "width": WIDTH} for i in range(1, options.images + 1)]
    categories = [{"id": c, "name": f"class {c}"} for c in range(1, CLASSES + 1)]
    return {"images": images, "categories": categories, "annotations": annotations}, detections


def _random_boxes(rng: np.random.Generator, number: int) -> np.ndarray:
    """Boxes [number, 4] xywh in pixels, whose sides are distributed as evenly on a logarithmic scale as in COCO."""
    sizes = np.exp(rng.uniform(np.log(8), np.log(400), (number, 1))) * rng.uniform(0.5, 1, (number, 2))
    corners = rng.random((number, 2)) * (np.array([WIDTH, HEIGHT]) - sizes)
    return np.concatenate([corners, sizes], axis=1)


def _geometry(box: np.ndarray, outline: np.ndarray, iou_type: str) -> dict[str, Any]:
    """A box, or a mask: the radii of its outline, in directions all around, as fractions of the box's half sides."""
    box = np.concatenate([box[:2], np.maximum(box[2:], 1)])
    result: dict[str, Any] = {"bbox": [round(float(v), 3) for v in box]}
    if iou_type == "segm":
        angles = np.arange(len(outline)) * (2 * math.pi / len(outline))
        directions = np.stack([np.cos(angles), np.sin(angles)], axis=1)
        polygon = box[:2] + box[2:] / 2 * (1 + outline[:, None] * directions)
        rle = mask_utils.frPyObjects([polygon.clip(0, [WIDTH, HEIGHT]).ravel().tolist()], HEIGHT, WIDTH)[0]
        result["segmentation"] = {"size": rle["size"], "counts": rle["counts"].decode()}
    return result


if __name__ == "__main__":
    main()
