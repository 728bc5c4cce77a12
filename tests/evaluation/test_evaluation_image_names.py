"""Detections of other images than those that the ground truth means by the same ids."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from ranksort.evaluation import evaluate_detections

BOX = [10.0, 10.0, 20.0, 20.0]
TRUTH: dict[str, Any] = {
    "images": [{"id": n, "file_name": f"train/{n}.jpg", "width": 64, "height": 48} for n in range(4)],
    "categories": [{"id": 1, "name": "cat"}],
    "annotations": [
        {"id": n, "image_id": n, "category_id": 1, "bbox": BOX, "area": 400, "iscrowd": 0} for n in range(4)
    ],
}


def doubts(
    folder: Path, image_ids: list[int], names: dict[int, str] | None = None, box: list[float] = BOX
) -> list[str]:
    """Of detections, one an image, beside which `images.json` has some names."""
    file = folder / "results_bbox.json"
    file.write_text(json.dumps([{"image_id": n, "category_id": 1, "bbox": box, "score": 0.9} for n in image_ids]))
    (folder / "images.json").unlink(missing_ok=True)
    if names is not None:
        images = [{"id": id, "file_name": name} for id, name in names.items()]
        (folder / "images.json").write_text(json.dumps({"images": images}))
    report = evaluate_detections(copy.deepcopy(TRUTH), file)
    assert all(line in str(report) for line in report.doubts)
    return report.doubts


def test_names_beside_the_detections_are_compared(tmp_path: Path) -> None:
    assert doubts(tmp_path, [0, 1, 2, 3], {n: f"/photos/{n}.JPG" for n in range(4)}) == []
    (said,) = doubts(tmp_path, [1, 2, 3], {n: f"/photos/{n - 1}.jpg" for n in range(1, 5)})  # numbered from 1
    assert said.startswith("3 of 3 images have different names in ")
    assert "such as image 1: /photos/0.jpg and train/1.jpg" in said
    assert "`ranksort predict --annotations TRUTH.json`" in said
    assert doubts(tmp_path, [0, 1, 2, 3], {}) == []
    for foreign in ("[1]", "{", '{"images": [{"id": 1}]}'):
        (tmp_path / "images.json").write_text(foreign)
        assert evaluate_detections(TRUTH, tmp_path / "results_bbox.json").doubts == []


def test_few_images_with_detections(tmp_path: Path) -> None:
    assert doubts(tmp_path, [0, 3]) == []
    (said,) = doubts(tmp_path, [3])
    assert said.startswith("There are no detections in 3 of 4 images with objects: if their ids differ, `ranksort")
    assert doubts(tmp_path, [3], {3: "3.png"}) == ["There are no detections in 3 of 4 images with objects."]
    assert doubts(tmp_path, []) == ["There are no detections."]


def test_hardly_anything_right(tmp_path: Path) -> None:
    (said,) = doubts(tmp_path, [0, 1, 2, 3], box=[40.0, 30.0, 9.0, 9.0])
    assert said.startswith("Hardly any detection is a true positive (AP50 0.0). If that is unexpected: image ids")
    assert doubts(tmp_path, [0, 1, 2, 3], {n: f"{n}.jpg" for n in range(4)}, box=[40.0, 30.0, 9.0, 9.0]) == []


def test_unknown_ids_are_said_with_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError,
        match=r"1 of 4 .* unknown image_id: 4 \(position 3\); the ground truth has 0, 1, 2, \.\.\., which `ranksort",
    ):
        doubts(tmp_path, [1, 2, 3, 4])
