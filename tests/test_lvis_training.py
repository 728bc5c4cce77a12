"""LVIS from the annotation file to the report, by the command line, on drawn images."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from ranksort import cli
from ranksort.checkpoints import read_checkpoint
from ranksort.commands.demo import validation_images
from ranksort.data.coco_rows import ImageRow
from ranksort.data.lvis import file_name

LVIS100 = Path(__file__).resolve().parents[1] / "../shared/data/lvis100/annotations/lvis_val_100.json"
RECIPE = "ranksort_mask_rcnn_r50_fpn_1x_lvis_v1"
SMALL = """
--model.backbone timm/lcnet_035 --model.no-pretrained-backbone --model.channels 64 --model.min-size 96 --model.max-size 160
--model.score-threshold 0.001 --model.detections-per-image 20 --data.train-min-sizes 80 96 --data.workers 0
--training.batch-size 2 --training.epochs 1 --optimizer.lr 0.02 --optimizer.lr-batch-size 2 --evaluation.pictures 1
"""


def _federated(content: dict[str, Any]) -> dict[str, Any]:
    """COCO annotations as LVIS' of version 1: named by URL, the last class unknown where it does not occur."""
    for number, image in enumerate(content["images"]):
        folder = "train2017" if number % 2 else "val2017"
        image["coco_url"] = f"http://images.cocodataset.org/{folder}/{image.pop('file_name')}"
        present = {a["category_id"] for a in content["annotations"] if a["image_id"] == image["id"]}
        image["neg_category_ids"] = [c["id"] for c in content["categories"][:-1] if c["id"] not in present]
        image["not_exhaustive_category_ids"] = []
    for number, category in enumerate(content["categories"]):
        category["frequency"] = "rcf"[number % 3]
    for annotation in content["annotations"]:
        annotation.pop("iscrowd", None)
    return content


def _train_and_test(root: Path, out: Path, *options: str) -> dict[str, Any]:
    torch.set_num_threads(1)
    cli.main(
        ["train", RECIPE, "--data.root", str(root), "--training.output", str(out / "runs"), *SMALL.split(), *options]
    )
    (run,) = (out / "runs" / RECIPE).iterdir()
    cli.main(["test", str(run), "--out", str(out / "tested")])
    trained, tested = (json.loads((d / "report.json").read_text()) for d in (run / "report", out / "tested"))
    assert trained["summary"] == pytest.approx(tested["summary"], nan_ok=True)
    assert trained["style"] == tested["style"] == "lvis"
    recipe = read_checkpoint(run).recipe
    assert recipe.evaluation.style == "lvis"
    shown = validation_images(recipe)
    assert len(shown) == 4
    assert all(file.is_file() for file in shown)
    return tested["summary"]


def test_training_on_federated_annotations(tiny_data: Path, tmp_path: Path) -> None:
    (tmp_path / "annotations").mkdir()
    for split in ("train", "val"):
        content = json.loads((tiny_data / f"annotations/instances_{split}.json").read_text())
        names = [image["file_name"] for image in content["images"]]
        content = _federated(content)
        (tmp_path / f"annotations/lvis_v1_{split}.json").write_text(json.dumps(content))
        for name, image in zip(names, content["images"], strict=True):
            target = tmp_path / file_name(ImageRow(**{key: image.get(key) for key in ImageRow.__struct_fields__}))
            target.parent.mkdir(exist_ok=True)
            target.symlink_to(tiny_data / "images" / name)
    summary = _train_and_test(tmp_path, tmp_path, "--data.repeat-threshold", "0.9")
    assert {"AP", "APr", "APc", "APf", "oLRP"} <= summary.keys()
    assert 0 <= summary["oLRP"] <= 1


def test_training_on_images_of_the_sizes_of_lvis(tmp_path: Path) -> None:
    if not LVIS100.is_file():
        pytest.skip(f"the development data set is not at {LVIS100}")
    content = json.loads(LVIS100.read_text())
    with_objects = {a["image_id"] for a in content["annotations"]}
    content["images"] = sorted((i for i in content["images"] if i["id"] in with_objects), key=lambda i: i["id"])[:4]
    sizes = {image["id"]: (image["width"], image["height"]) for image in content["images"]}
    content["annotations"] = [a for a in content["annotations"] if a["image_id"] in sizes]
    content["licenses"] = content["info"] = None
    for image in content["images"]:
        # Each class in a colour of its own.
        drawn = Image.new("RGB", sizes[image["id"]])
        for annotation in (a for a in content["annotations"] if a["image_id"] == image["id"]):
            colour = tuple(np.random.default_rng(annotation["category_id"]).integers(40, 256, 3).tolist())
            for polygon in annotation["segmentation"]:
                ImageDraw.Draw(drawn).polygon(polygon, fill=colour)
        path = tmp_path / file_name(ImageRow(**{key: image.get(key) for key in ImageRow.__struct_fields__}))
        path.parent.mkdir(exist_ok=True)
        drawn.save(path)
    (tmp_path / "annotations").mkdir()
    for split in ("train", "val"):
        (tmp_path / f"annotations/lvis_v1_{split}.json").write_text(json.dumps(content))
    cli.main(["check-data", str(tmp_path), str(tmp_path / "annotations/lvis_v1_train.json")])
    summary = _train_and_test(tmp_path, tmp_path)
    assert {"AP", "APr", "APc", "APf", "oLRP"} <= summary.keys()
