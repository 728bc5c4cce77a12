import csv
import errno
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import test_evaluation_evaluator as evaluator_data
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch import Tensor

from ranksort.data.coco_columns import Category
from ranksort.data.coco_file import read_coco_file
from ranksort.data.image_ids import read_image_ids
from ranksort.evaluation import evaluate_detections
from ranksort.evaluation.evaluator import Evaluator
from ranksort.evaluation.results import ResultsWriter, decode_masks, encode_masks, to_coco_results, write_results
from ranksort.json_list import GrowingFile


def _found(masks: Tensor) -> dict[str, Tensor]:
    boxes = torch.tensor([[1.0, 2, 4, 6], [0, 0, 5.5, 3]])[: len(masks)]
    return {
        "boxes": boxes,
        "scores": torch.tensor([0.9, 0.5])[: len(masks)],
        "labels": torch.tensor([1, 0])[: len(masks)],
    }


def test_results_with_and_without_masks() -> None:
    masks = torch.rand(2, 7, 9) > 0.5
    found = [_found(masks), _found(masks[:0])]
    results = to_coco_results(found, [17, 4], category_ids=[3, 8])
    assert [(r["image_id"], r["category_id"], r["bbox"]) for r in results] == [
        (17, 8, [1, 2, 3, 4]),
        (17, 3, [0, 0, 5.5, 3]),
    ]
    assert not any("segmentation" in r for r in results)
    with_masks = to_coco_results(
        [{**found[0], "masks": masks}, {**found[1], "masks": masks[:0]}], [17, 4], category_ids=[3, 8]
    )
    rles = [json.loads(json.dumps(r.pop("segmentation"))) for r in with_masks]
    assert with_masks == results
    assert torch.equal(decode_masks(rles, 7, 9), masks)


def test_no_masks() -> None:
    assert encode_masks(torch.zeros(0, 7, 9, dtype=torch.bool)) == []
    assert decode_masks([], 7, 9).shape == (0, 7, 9)


def test_files_are_whole_after_each_image(tmp_path: Path) -> None:
    masks = torch.rand(2, 7, 9) > 0.5
    categories = [Category(3, "a,b"), Category(8, "犬")]
    results = to_coco_results([{**_found(masks), "masks": masks}], ["17"], [3, 8])
    names = ["first.jpg", "caf\udce9.jpg", "none.jpg"]
    with ResultsWriter(tmp_path, categories, masks=True) as writer:
        for n, name in enumerate(names):
            of_image = [row | {"image_id": n} for row in results] if n < 2 else []
            writer.add(of_image, n, name, 7, 9)
            boxes, shapes = (json.loads((tmp_path / f"results_{kind}.json").read_bytes()) for kind in ("bbox", "segm"))
            table = list(csv.DictReader((tmp_path / "results.csv").read_text(encoding="utf-8").splitlines()))
            assert len(boxes) == len(shapes) == len(table) == 2 * min(n + 1, 2)
            images = json.loads((tmp_path / "images.json").read_bytes())
            assert [image["file_name"] for image in images["images"]] == names[: n + 1]
    assert images["categories"] == [{"id": 3, "name": "a,b"}, {"id": 8, "name": "犬"}]
    assert [image["detections"] for image in images["images"]] == [2, 2, 0]
    for row, box, shape, of_table in zip(results * 2, boxes, shapes, table, strict=True):
        shared = {"image_id": box["image_id"], "category_id": row["category_id"], "score": row["score"]}
        assert box == shared | {"bbox": row["bbox"]}
        assert shape == shared | {"segmentation": row["segmentation"]}
        assert float(np.float32(of_table["score"])) == row["score"]
        assert [float(np.float32(of_table[name])) for name in ("x", "y", "width", "height")] == row["bbox"]
    assert [row["class"] for row in table] == ["犬", "a,b"] * 2
    assert [row["file_name"] for row in table] == ["first.jpg"] * 2 + ["caf\\udce9.jpg"] * 2

    with ResultsWriter(tmp_path, categories, masks=False):
        assert not (tmp_path / "results_segm.json").exists()
        assert (tmp_path / "results_bbox.json").read_text() == "[]\n"
        assert json.loads((tmp_path / "images.json").read_bytes())["images"] == []


def _with_string_ids(truth: dict[str, Any]) -> dict[str, Any]:
    images = [{**image, "id": f"image {image['id']}"} for image in truth["images"]]
    return {
        **truth,
        "images": images,
        "annotations": [{**row, "image_id": f"image {row['image_id']}"} for row in truth["annotations"]],
    }


def _as_lvis(truth: dict[str, Any]) -> dict[str, Any]:
    lists = {"neg_category_ids": [7], "not_exhaustive_category_ids": [3]}
    return {
        **truth,
        "images": [{**image, **lists} for image in truth["images"]],
        "categories": [{**category, "frequency": "rcf"[n]} for n, category in enumerate(truth["categories"])],
    }


@pytest.mark.parametrize(("style", "change"), [("coco", dict), ("coco", _with_string_ids), ("lvis", _as_lvis)])
def test_an_evaluation_gives_the_same_numbers_from_its_files(
    tmp_path: Path, style: str, change: Callable[[dict[str, Any]], dict[str, Any]]
) -> None:
    truth = change(evaluator_data.truth())
    file = read_coco_file(truth, segmentations=True)
    online = Evaluator(file, evaluator_data.CATEGORIES, masks=True, style=style)
    found = evaluator_data.detections(evaluator_data.truth())
    ids = dict(zip(found, (image["id"] for image in truth["images"]), strict=True))
    for image_id, of_image in reversed(found.items()):  # images come in any order
        of_image["scores"] = of_image["scores"] / 3  # with all the digits of float32
        online.update([of_image], [ids[image_id]])
    reports = online.compute()
    write_results(tmp_path, online.detections("segm"), file)
    for kind, report in reports.items():
        again = evaluate_detections(truth, tmp_path / f"results_{kind}.json", kind, style)
        assert again.as_dict()["AP"] > 0.1
        np.testing.assert_equal(again.as_dict(), report.as_dict())
        np.testing.assert_equal(again.per_class, report.per_class)

    if style == "coco" and change is dict:
        (tmp_path / "truth.json").write_text(json.dumps({**truth, "info": {}}))
        coco = COCO(str(tmp_path / "truth.json"))
        for kind, report in reports.items():
            theirs = COCOeval(coco, coco.loadRes(str(tmp_path / f"results_{kind}.json")), kind)
            theirs.evaluate()
            theirs.accumulate()
            theirs.summarize()
            names = ("AP", "AP50", "AP75", "APs", "APm", "APl")
            numbers = [report.as_dict()[name] for name in names]
            np.testing.assert_allclose(np.where(theirs.stats[:6] < 0, np.nan, theirs.stats[:6]), numbers, atol=1e-12)


def test_images_file_is_an_annotation_file(tmp_path: Path) -> None:
    with ResultsWriter(tmp_path, [Category(3, "cat")], masks=False) as writer:
        writer.add([], "one", "a.jpg", 7, 9)
    file = read_coco_file(tmp_path / "images.json", segmentations=False)
    assert (file.images.ids, file.images.size(0), file.categories) == (["one"], "9x7", [Category(3, "cat")])
    assert read_image_ids(tmp_path / "images.json", [Path("photos/a.jpg")], file.categories) == ["one"]


def test_full_disk_is_named_and_files_stay_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    row = {"image_id": 1, "category_id": 3, "bbox": [1.0, 2.0, 3.0, 4.0], "score": 0.5}
    with ResultsWriter(tmp_path, [Category(3, "cat")], masks=False) as writer:
        writer.add([row], 1, "a.jpg", 7, 9)
        monkeypatch.setattr(GrowingFile, "_write", _half(GrowingFile._write))
        with pytest.raises(OSError, match=r"No space left on device: '.*results_bbox.json'"):
            writer.add([row] * 9, 2, "b.jpg", 7, 9)
    assert json.loads((tmp_path / "results_bbox.json").read_bytes()) == [row]
    assert len((tmp_path / "results.csv").read_text().splitlines()) == 2
    assert [image["id"] for image in json.loads((tmp_path / "images.json").read_bytes())["images"]] == [1]


def _half(write: Callable[[GrowingFile, bytes], None]) -> Callable[[GrowingFile, bytes], None]:
    """Writing where there is space for 100 bytes."""

    def write_half(file: GrowingFile, content: bytes) -> None:
        write(file, content[:100])
        if len(content) > 100:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    return write_half
