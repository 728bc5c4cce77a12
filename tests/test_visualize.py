import base64
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from ranksort.data.coco import CocoDataset
from ranksort.data.layouts import find_split
from ranksort.data.segmentations import decode_mask
from ranksort.evaluation import evaluate_detections
from ranksort.evaluation.evaluator import Evaluator
from ranksort.evaluation.results import encode_masks
from ranksort.visualize import draw_detections, report_pictures, worst_and_best_images

BOXES = np.array([[10, 30, 40, 60], [50, 30, 80, 60]], np.float32)
LABELS, SCORES = np.array([0, 1]), np.array([0.9, 0.1])
MASKS = torch.zeros(2, 80, 100, dtype=torch.bool)
MASKS[0, 40:50, 20:30] = True
MASKS[1, 40:50, 60:70] = True


def test_masks_are_drawn_with_their_boxes() -> None:
    image = torch.full((3, 80, 100), 40, dtype=torch.uint8)
    drawn = draw_detections(image, BOXES, LABELS, SCORES, ["a", "b"], MASKS)
    assert drawn.shape == image.shape
    assert bool((image == 40).all())
    changed = (drawn != image).any(0)
    assert bool(changed[42:48, 22:28].all())
    assert not changed[52:58, 13:38].any()  # inside the box, outside the mask
    assert bool(changed[42:48, 62:68].all())


def test_nothing_to_draw() -> None:
    image = torch.full((3, 80, 100), 40, dtype=torch.uint8)
    assert torch.equal(draw_detections(image, BOXES[:0], LABELS[:0], SCORES[:0], []), image)


def test_detections_of_equal_scores_are_told_apart(tiny_data: Path) -> None:
    """One lies on a crowd region, where it does not count; the other is wrong and is shown."""
    file = tiny_data / "annotations" / "instances_val.json"
    ground_truth = json.loads(file.read_text())
    first, *others = [a for a in ground_truth["annotations"] if not a["iscrowd"]]
    crowd = {**first, "id": 10**6, "bbox": [0, 0, 20, 20], "area": 400, "iscrowd": 1}
    ground_truth["annotations"] = [first, *others, crowd]
    where = {key: first[key] for key in ("image_id", "category_id")}
    results = [{**where, "bbox": box, "score": 0.5} for box in (crowd["bbox"], [70, 70, 9, 9], first["bbox"])]
    dataset = CocoDataset(tiny_data / "images", file, training=False)
    shown = worst_and_best_images(dataset, evaluate_detections(ground_truth, results), 4)
    detections = [d[:5] for image in shown for d in image["detections"]]
    assert detections == [[70, 70, 9, 9, False], [*first["bbox"], True]]


@pytest.mark.parametrize("iou_type", ["bbox", "segm"])
def test_the_worst_and_the_best_images(tiny_data: Path, iou_type: str) -> None:
    """All objects are found exactly, but for an image where none is, and another where one is not and one too much."""
    file = tiny_data / "annotations" / "instances_val.json"
    dataset = CocoDataset(tiny_data / "images", file, training=False, masks=True)
    ground_truth = json.loads(file.read_text())
    singles = [a for a in ground_truth["annotations"] if not a["iscrowd"]]
    missed, disturbed, *_ = dict.fromkeys(a["image_id"] for a in singles)
    results: list[dict[str, Any]] = []
    for a in singles:
        image, _ = dataset[dataset.image_ids.index(a["image_id"])]
        mask = torch.from_numpy(decode_mask(json.dumps(a["segmentation"]).encode(), *image.shape[-2:]))[None]
        result = {key: a[key] for key in ("image_id", "category_id", "bbox")} | {"score": 0.9}
        of_disturbed = [b["id"] for b in singles if b["image_id"] == disturbed]
        if a["image_id"] != missed and a["id"] != of_disturbed[0]:
            results.append({**result, "segmentation": encode_masks(mask)[0]})
        if a["image_id"] == disturbed:
            mask[:], mask[0, :2, :2] = 0, 1
            wrong = {"bbox": [0, 0, 2, 2], "segmentation": encode_masks(mask)[0], "score": 0.95}
            disturbance = {**result, **wrong}
    results.append(disturbance)
    report = evaluate_detections(ground_truth, results, iou_type)
    worst, second, best = worst_and_best_images(dataset, report, 3)
    assert [image["is_worst"] for image in (worst, second, best)] == [True, True, False]
    names = {image["id"]: image["file_name"] for image in ground_truth["images"]}
    assert (worst["name"], worst["error"], worst["detections"]) == (names[missed], 1, [])
    assert worst["missed"] == len(worst["objects"])
    assert not any(right for _, _, _, _, right, *_ in worst["objects"])
    assert (second["name"], second["missed"], second["false"]) == (names[disturbed], 1, 1)
    assert len(of_disturbed) > 1
    assert [right for _, _, _, _, right, *_ in second["objects"]] == [False, *[True] * (len(of_disturbed) - 1)]
    assert sum(not right for _, _, _, _, right, *_ in second["detections"]) == 1
    assert best["error"] == pytest.approx(0)
    assert sorted(d[:4] for d in best["detections"]) == [pytest.approx(o[:4]) for o in sorted(best["objects"])]
    assert len(best["pictures"]) == (2 if iou_type == "segm" else 1)
    picture = Image.open(io.BytesIO(base64.b64decode(best["pictures"][0].removeprefix("data:image/jpeg;base64,"))))
    assert picture.size == (best["width"], best["height"])


def test_pictures_of_what_is_confused(tiny_data: Path) -> None:
    """All objects are found, and one in each image is once more, as another class: what is worst is shown of each class and pair."""
    file = tiny_data / "annotations" / "instances_val.json"
    ground_truth = json.loads(file.read_text())
    ids = [category["id"] for category in ground_truth["categories"]]
    results, seen = [], set()
    for a in ground_truth["annotations"]:
        if not a["iscrowd"]:
            row = {key: a[key] for key in ("image_id", "category_id", "bbox")}
            results.append({**row, "score": 0.9})
            if a["image_id"] not in seen:
                results.append({**row, "category_id": ids[ids.index(a["category_id"]) - 1], "score": 0.95})
            seen.add(a["image_id"])
    report = evaluate_detections(ground_truth, results)
    dataset = CocoDataset(tiny_data / "images", file, training=False)
    shown = report_pictures(dataset, report, 1)
    assert [picture["is_worst"] for picture in shown] == [True, *[None] * (len(seen) - 1)]
    assert {picture["id"] for picture in shown} == seen
    for picture in shown:
        wrong = [row for row in picture["detections"] if not row[4]]
        assert [row[7].partition(": ")[0] for row in wrong] == ["another class"]
        assert [report.per_class[row[6]]["class"] for row in wrong] == [row[5].rpartition(" ")[0] for row in wrong]
    assert report_pictures(dataset, report, 0) == []


@pytest.mark.parametrize("box", [[30, 30, -5, 5], [30, 30, 500_000, 500_000]])
def test_objects_of_senseless_boxes_are_drawn(tiny_data: Path, tmp_path: Path, box: list[float]) -> None:
    """They count as objects that nothing finds, also where no area is stated."""
    content = json.loads((tiny_data / "annotations/instances_val.json").read_text())
    image = content["images"][0]["id"]
    content["annotations"].append(
        {"id": 10**6, "image_id": image, "category_id": content["categories"][0]["id"], "bbox": box}
    )
    (tmp_path / "a.json").write_text(json.dumps(content))
    dataset = CocoDataset(find_split(tiny_data, "val")[0], tmp_path / "a.json", training=False)
    assert dataset.file is not None
    evaluator = Evaluator(dataset.file, dataset.categories)
    report = evaluator.compute()["bbox"]
    assert len(report.matches.object_score) == len(content["annotations"])
    shown = worst_and_best_images(dataset, report, len(dataset))
    assert [30, 30, *box[2:]] in [entry[:4] for picture in shown for entry in picture["objects"]]
