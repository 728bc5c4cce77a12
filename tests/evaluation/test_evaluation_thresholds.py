import json
from pathlib import Path

import pytest
from evaluation_data import random_masks

from ranksort.data.coco_columns import Category
from ranksort.evaluation import evaluate_detections
from ranksort.evaluation.page import save_reports
from ranksort.evaluation.thresholds import read_thresholds


def test_thresholds_are_those_of_the_report(tmp_path: Path) -> None:
    truth, detections = random_masks(2)
    boxes, masks = (evaluate_detections(truth, detections, kind) for kind in ("bbox", "segm"))
    save_reports(tmp_path / "report", [boxes, masks])
    content = json.loads((tmp_path / "report" / "thresholds.json").read_bytes())
    first, second = (row["oLRP_threshold"] for row in boxes.per_class)
    assert content == {
        "iou_type": "bbox",
        "default": pytest.approx((first + second) / 2),
        "thresholds": [
            {"category_id": 0, "class": "class 0", "threshold": first},
            {"category_id": 3, "class": "class 3", "threshold": second},
            {"category_id": 7, "class": "class 7", "threshold": None},  # has no objects
        ],
    }

    categories = [Category(id, f"class {id}") for id in (7, 3, 99, 0)]
    for checkpoint in (tmp_path, tmp_path / "a.safetensors", tmp_path / "checkpoints" / "best.ckpt"):
        of_masks = [row["oLRP_threshold"] for row in masks.per_class]
        mean = sum(of_masks) / 2
        assert read_thresholds(checkpoint, categories) == pytest.approx([mean, of_masks[1], mean, of_masks[0]])
    save_reports(tmp_path / "report", [boxes])
    assert read_thresholds(tmp_path, categories[1::2]) == [second, first]
    with pytest.raises(ValueError, match="no threshold of any class"):
        read_thresholds(tmp_path, [Category(0, "of another model")])


def test_what_is_wrong_with_thresholds(tmp_path: Path) -> None:
    truth, _ = random_masks(2)
    categories = [Category(0, "class 0")]
    with pytest.raises(FileNotFoundError, match=r"there is no .*thresholds.json.*ranksort test"):
        read_thresholds(tmp_path, categories)
    checkpoint = tmp_path / "some.safetensors"
    checkpoint.touch()
    with pytest.raises(FileNotFoundError, match=rf"by `ranksort test {checkpoint} --out {tmp_path}/report`"):
        read_thresholds(checkpoint, categories)
    evaluate_detections(truth, []).save(tmp_path / "report")
    assert json.loads((tmp_path / "report" / "thresholds.json").read_bytes())["default"] is None
    with pytest.raises(ValueError, match="no threshold of any class"):
        read_thresholds(tmp_path, categories)
    run = tmp_path / "run"
    run.mkdir()
    with pytest.raises(
        FileNotFoundError, match=f"there is no {run}/report"
    ):  # that of the folder around it is another's
        read_thresholds(run, categories)
    for damaged in ("[", "{}", '{"default": null, "thresholds": [{"category_id": 0, "threshold": "high"}]}'):
        (tmp_path / "report" / "thresholds.json").write_text(damaged)
        with pytest.raises(ValueError, match="is damaged: evaluate the run again"):
            read_thresholds(tmp_path, categories)
