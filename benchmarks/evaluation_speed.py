"""AP and oLRP of large result files, compared with another evaluator's AP: CPU time and peak memory of whole processes.

Each evaluator starts in its own process, loads the same two files and evaluates, including imports. The evaluators alternate, so that a
busy machine slows all of them; the figures are medians over the runs.

    python benchmarks/evaluation_speed.py [--data coco-boxes coco-masks lvis-boxes] [--peer pycocotools | hotcoco]
        [--peer-python PYTHON] [--baseline SRC] [--runs 3] [--folder DIR]
"""

import argparse
import json
import math
import multiprocessing
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as mask_utils

HEIGHT, WIDTH = 480, 640
NEAR = 4  # detections near each object


@dataclass(frozen=True)
class DataSet:
    """The size of a data set; `seen` are classes that an image seems to show besides its objects."""

    style: str
    iou_type: str
    images: int
    objects: float  # per image, on average
    classes: int
    detections: int  # an image
    seen: int


DATA = {
    "coco-boxes": DataSet("coco", "bbox", 5000, 7.2, 80, 100, 15),
    "coco-masks": DataSet("coco", "segm", 5000, 7.2, 80, 100, 15),
    "lvis-boxes": DataSet("lvis", "bbox", 19_809, 12.4, 1203, 300, 100),
}

OURS = """
from ranksort.evaluation import evaluate_detections
evaluate_detections('{truth}', '{found}', '{iou_type}', '{style}')
"""
PEERS = {
    "pycocotools": """
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
truth = COCO('{truth}')
evaluator = COCOeval(truth, truth.loadRes('{found}'), '{iou_type}')
evaluator.evaluate()
evaluator.accumulate()
""",
    "hotcoco": """
from hotcoco import COCO, COCOeval
truth = COCO('{truth}')
evaluator = COCOeval(truth, truth.load_res('{found}'), '{iou_type}', lvis_style='{style}' == 'lvis')
evaluator.evaluate()
evaluator.accumulate()
""",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="+", choices=DATA, default=["coco-boxes", "coco-masks"])
    parser.add_argument("--peer", choices=PEERS, default="pycocotools", help="pycocotools does not support LVIS' rules")
    parser.add_argument("--peer-python", default=sys.executable, help="the Python that has the peer")
    parser.add_argument("--baseline", type=Path, help="source folder of another version of ranksort, measured too")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="where the files are kept; default: nowhere")
    options = parser.parse_args()
    if options.peer == "pycocotools" and any(DATA[name].style == "lvis" for name in options.data):
        parser.error("pycocotools does not support LVIS' rules: name --peer hotcoco.")
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        print(f"{'data':<12}{'file MB':>9}  {'evaluator':<12}{'CPU s':>8}{'peak MB':>9}{'time ratio':>12}")
        for name in options.data:
            compare(name, folder, options)


def compare(name: str, folder: Path, options: argparse.Namespace) -> None:
    """Measure the evaluators in turn on one data set, and print a line for each."""
    data = DATA[name]
    files = {what: folder / f"{what}_{name}.json" for what in ("truth", "found")}
    if not files[
        "found"
    ].exists():  # in its own process, whose memory would otherwise count for processes started from it
        writer = multiprocessing.Process(target=write_files, args=(files["truth"], files["found"], data))
        writer.start()
        writer.join()
    evaluators = {
        "ranksort": (sys.executable, OURS, None),
        options.peer: (options.peer_python, PEERS[options.peer], None),
    }
    if options.baseline:
        evaluators["baseline"] = sys.executable, OURS, options.baseline
    measured: dict[str, list[tuple[float, float]]] = {evaluator: [] for evaluator in evaluators}
    for _ in range(options.runs):
        for evaluator, (python, code, source) in evaluators.items():
            code = code.format(**files, iou_type=data.iou_type, style=data.style)
            measured[evaluator].append(cost(python, code, source))
    size = files["found"].stat().st_size / 1e6
    runs = {evaluator: np.array(values) for evaluator, values in measured.items()}  # (runs, seconds and MB)
    for evaluator, values in runs.items():
        ratio = np.median(values[:, 0] / runs[options.peer][:, 0])
        seconds, memory = np.median(values, axis=0)
        print(f"{name:<12}{size:9.0f}  {evaluator:<12}{seconds:8.2f}{memory:9.0f}{ratio:12.2f}", flush=True)


def cost(python: str, code: str, source: Path | None) -> tuple[float, float]:
    """CPU seconds and peak MB of a Python process that imports from the folder `source` first."""
    environment = os.environ | ({"PYTHONPATH": str(source)} if source else {})
    process = subprocess.Popen([python, "-c", code], stdout=subprocess.DEVNULL, env=environment)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise RuntimeError(f"the evaluator failed: {code}")
    return usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024 / 1e6


def write_files(truth: Path, found: Path, data: DataSet) -> None:
    """Write a data set of images with frequent and rare classes and objects of all sizes, and the results of an average detector."""
    rng = np.random.default_rng(0)
    weights = 1 / np.arange(1, data.classes + 1)
    weights /= weights.sum()
    category_ids = np.sort(rng.permutation(data.classes + data.classes // 8)[: data.classes]) + 1
    image_ids = np.sort(rng.permutation(30 * data.images)[: data.images]) + 1
    content: dict[str, list[dict[str, Any]]] = {"images": [], "categories": [], "annotations": []}
    for rank, id_ in enumerate(category_ids.tolist()):
        frequency = "fcr"[int(np.searchsorted([0.34, 0.72], rank / data.classes, side="right"))]
        content["categories"].append({"id": id_, "name": f"class {id_}", "frequency": frequency})
    with found.open("w") as file:
        separator = "["
        for image_id in image_ids.tolist():
            num_objects = rng.poisson(data.objects)
            classes = rng.choice(data.classes, num_objects, p=weights)
            # False positives belong to some of the classes.
            seen = rng.choice(data.classes, data.seen)
            absent = np.setdiff1d(seen[:8], classes)
            content["images"].append(
                {
                    "id": image_id,
                    "height": HEIGHT,
                    "width": WIDTH,
                    "neg_category_ids": category_ids[absent].tolist(),
                    "not_exhaustive_category_ids": category_ids[
                        np.unique(classes[rng.random(num_objects) < 0.1])
                    ].tolist(),
                }
            )
            boxes, shapes = _random_boxes(rng, num_objects), rng.uniform(0.7, 1, (num_objects, 24))
            for geometry, category in zip(
                _geometry(boxes, shapes, data.iou_type), category_ids[classes].tolist(), strict=True
            ):
                row = {"id": len(content["annotations"]) + 1, "image_id": image_id, "category_id": category}
                crowd = data.style == "coco" and rng.random() < 0.01
                area = geometry["bbox"][2] * geometry["bbox"][3]
                content["annotations"].append({**row, **geometry, "area": area, "iscrowd": int(crowd)})
            for row in _detections(rng, data, boxes, shapes, classes, np.append(classes, seen)):
                row = {"image_id": image_id, **row, "category_id": int(category_ids[row["category_id"]])}
                file.write(separator + json.dumps(row))
                separator = ", "
        file.write("]")
    truth.write_text(json.dumps(content))


def _detections(
    rng: np.random.Generator,
    data: DataSet,
    boxes: np.ndarray,
    shapes: np.ndarray,
    classes: np.ndarray,
    all_classes: np.ndarray,
) -> Iterator[dict[str, Any]]:
    """The detections of an image by descending score: some near each object, the others anywhere."""
    num_near = min(NEAR * len(boxes), data.detections)
    num_wrong = data.detections - num_near
    near = np.repeat(np.arange(len(boxes)), NEAR)[:num_near]
    sizes = np.tile(boxes[near, 2:], 2)
    found = np.concatenate([boxes[near] + sizes * rng.normal(0, 0.1, (num_near, 4)), _random_boxes(rng, num_wrong)])
    found_shapes = np.concatenate([shapes[near], rng.uniform(0.7, 1, (num_wrong, 24))])
    found_classes = np.concatenate([classes[near], rng.choice(all_classes, num_wrong)])
    scores = np.concatenate([rng.beta(2, 2, num_near), rng.beta(1, 6, num_wrong)]).round(5)
    order = np.argsort(-scores, kind="stable")
    geometries = _geometry(found[order], found_shapes[order], data.iou_type)
    for category, score, geometry in zip(
        found_classes[order].tolist(), scores[order].tolist(), geometries, strict=True
    ):
        yield {"category_id": category, **geometry, "score": score}


def _random_boxes(rng: np.random.Generator, number: int) -> np.ndarray:
    """Boxes [number, 4] xywh in pixels, whose sides are distributed as evenly on a logarithmic scale as in COCO."""
    sizes = np.exp(rng.uniform(np.log(8), np.log(400), (number, 1))) * rng.uniform(0.5, 1, (number, 2))
    corners = rng.random((number, 2)) * (np.array([WIDTH, HEIGHT]) - sizes)
    return np.concatenate([corners, sizes], axis=1)


def _geometry(boxes: np.ndarray, outlines: np.ndarray, iou_type: str) -> Iterator[dict[str, Any]]:
    """Boxes, or masks: radii of their outlines in all directions, as fractions of the box's half sides."""
    boxes = np.concatenate([boxes[:, :2], np.maximum(boxes[:, 2:], 1)], axis=1)
    angles = np.arange(outlines.shape[1]) * (2 * math.pi / outlines.shape[1])
    directions = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    for box, rounded, outline in zip(boxes, boxes.round(2).tolist(), outlines, strict=True):
        result: dict[str, Any] = {"bbox": rounded}
        if iou_type == "segm":
            polygon = box[:2] + box[2:] / 2 * (1 + outline[:, None] * directions)
            rle = mask_utils.frPyObjects([polygon.clip(0, [WIDTH, HEIGHT]).ravel().tolist()], HEIGHT, WIDTH)[0]
            result["segmentation"] = {"size": rle["size"], "counts": rle["counts"].decode()}
        yield result


if __name__ == "__main__":
    main()
