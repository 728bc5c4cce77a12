"""The evaluator gives what files of the same detections give, on one process and on several."""

import json
import multiprocessing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from evaluation_data import random_masks
from torch import Tensor

from ranksort.data.coco_columns import Category
from ranksort.data.coco_file import read_coco_file
from ranksort.data.segmentations import decode_mask
from ranksort.evaluation import evaluate_detections
from ranksort.evaluation.evaluator import Evaluator
from ranksort.evaluation.results import to_coco_results

CATEGORIES = [Category(7, "seven"), Category(99, "not in the file"), Category(0, "zero"), Category(3, "three")]


def truth() -> dict[str, Any]:
    ground_truth, _ = random_masks(6)
    return {**ground_truth, "images": [{**image, "file_name": "x"} for image in ground_truth["images"]]}


def detections(ground_truth: dict[str, Any]) -> dict[int, dict[str, Tensor]]:
    """A model's detections, most of them near objects, by image id."""
    rng = torch.Generator().manual_seed(0)
    found = {}
    for image in ground_truth["images"]:
        rows = [row for row in ground_truth["annotations"] if row["image_id"] == image["id"]]
        size = image["height"], image["width"]
        masks = [decode_mask(json.dumps(row["segmentation"]).encode(), *size) for row in rows]
        boxes = torch.tensor([row["bbox"] for row in rows]).reshape(-1, 4).float()
        boxes[:, 2:] += boxes[:, :2]
        count = len(rows)
        labels = torch.randint(4, (count,), generator=rng)
        for n, row in enumerate(rows):
            ids = [category.id for category in CATEGORIES]
            if row["category_id"] in ids and n % 3:
                labels[n] = ids.index(row["category_id"])
        found[image["id"]] = {
            "boxes": boxes + torch.rand(count, 4, generator=rng) * 3,
            "scores": (torch.rand(count, generator=rng) * 20).round() / 20,  # with ties
            "labels": labels,
            "masks": torch.from_numpy(np.array(masks).reshape(-1, *size).astype(bool)),
        }
    return found


def expected(ground_truth: dict[str, Any], found: dict[int, dict[str, Tensor]], kind: str) -> Any:
    ids = [category.id for category in CATEGORIES]
    results = to_coco_results(list(found.values()), list(found), ids)
    hidden = "bbox" if kind == "segm" else "segmentation"
    return evaluate_detections(ground_truth, [{k: v for k, v in r.items() if k != hidden} for r in results], kind)


def evaluator(ground_truth: dict[str, Any]) -> Evaluator:
    return Evaluator(read_coco_file(ground_truth, segmentations=True), CATEGORIES, masks=True)


def test_an_image_may_have_more_masks_than_255() -> None:
    """As LVIS' limit of 300 allows; pycocotools 2.0.11 with numpy 2 cannot give the areas of so many at once."""
    ground_truth = truth()
    found = detections(ground_truth)
    image_id = next(id for id, of_image in found.items() if len(of_image["labels"]))
    count = len(found[image_id]["labels"])
    found = {
        image_id: {name: column.repeat_interleave(-(-300 // count), 0) for name, column in found[image_id].items()}
    }
    online = evaluator(ground_truth)
    online.update(list(found.values()), [image_id])
    np.testing.assert_equal(online.compute()["segm"].as_dict(), expected(ground_truth, found, "segm").as_dict())


def test_numbers_are_those_of_a_result_file() -> None:
    ground_truth = truth()
    found = detections(ground_truth)
    online = evaluator(ground_truth)
    assert online.compute()["bbox"].as_dict()["AP"] == 0  # nothing yet
    for _ in range(2):
        online.reset()
        for image_id, of_image in found.items():
            online.update([of_image], [image_id])
        reports = online.compute()
        for kind in ("bbox", "segm"):
            other = expected(ground_truth, found, kind)
            assert other.as_dict()["AP"] > 0.1
            np.testing.assert_equal(reports[kind].as_dict(), other.as_dict())
            np.testing.assert_equal(reports[kind].per_class, other.per_class)
            for name, column in other.matches._asdict().items():
                if name != "place":  # detections of the class that is not in the file have none here
                    np.testing.assert_array_equal(getattr(reports[kind].matches, name), column, err_msg=name)


def test_objects_beyond_the_limit_are_counted() -> None:
    ground_truth = truth()
    online = evaluator(ground_truth)
    found = detections(ground_truth)
    for image_id, of_image in found.items():
        online.update([{key: value[:2] for key, value in of_image.items()}], [image_id])
    objects = {i: sum(a["image_id"] == i and not a.get("iscrowd") for a in ground_truth["annotations"]) for i in found}
    columns = online.detections("bbox").image
    counts = [int((columns == n).sum()) for n in range(len(found))]
    lacking = [max(objects[i] - n, 0) * (n >= 2) for i, n in zip(sorted(found), counts, strict=True)]
    assert online.missing(2) == sum(lacking) > 0
    assert online.missing(99) == 0
    assert len(online) == len(columns)


def _merge(rank: int, world_size: int, folder: Path) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=world_size)
    ground_truth = truth()
    online = evaluator(ground_truth)
    for n, (image_id, of_image) in enumerate(detections(ground_truth).items()):
        if n % 2 == rank:  # with 3 processes the last one has none
            online.update([of_image], [image_id])
    online.merge(torch.device("cpu"))
    if rank == 0:
        numbers = {kind: report.as_dict() for kind, report in online.compute().items()}
        (folder / "numbers.json").write_text(json.dumps(numbers))
    dist.destroy_process_group()


@pytest.mark.parametrize("world_size", [2, 3])
def test_several_processes_give_the_numbers_of_one(tmp_path: Path, world_size: int) -> None:
    context = multiprocessing.get_context("forkserver")
    processes = [context.Process(target=_merge, args=(rank, world_size, tmp_path)) for rank in range(world_size)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    ground_truth = truth()
    found = detections(ground_truth)
    for kind, numbers in json.loads((tmp_path / "numbers.json").read_text()).items():
        np.testing.assert_equal(numbers, expected(ground_truth, found, kind).as_dict())
