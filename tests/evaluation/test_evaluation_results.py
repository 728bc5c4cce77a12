import csv
import json
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ranksort.data.coco_columns import Category
from ranksort.evaluation.results import ResultsWriter, decode_masks, encode_masks, to_coco_results


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
