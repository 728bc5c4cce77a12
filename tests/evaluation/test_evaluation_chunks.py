"""Detections are read in parts: however a file is written, they are those of one piece."""

import json

import numpy as np
import pytest
from evaluation_data import random_masks

from ranksort.data import json_source
from ranksort.evaluation import evaluate_detections
from ranksort.evaluation.inputs import read_detections, read_ground_truth


def with_extras(rows):
    """Rows as other tools write them, with strings and objects that look like the ends of rows."""
    for n, row in enumerate(rows):
        before, after = {"note": '}, {"image_id": 7'}, {"parts": {"a": {"b": [n]}}, "long": "{}," * (n % 7) ** 3}
        yield before | row | after


@pytest.mark.parametrize("size", [16, 100, 1000, 30_000])
@pytest.mark.parametrize("style", [{}, {"indent": 3}, {"separators": (",", ":")}, {"sort_keys": True}])
@pytest.mark.parametrize("iou_type", ["bbox", "segm"])
def test_any_cut_gives_the_same_columns(tmp_path, monkeypatch, size, style, iou_type):
    ground_truth, detections = random_masks(4)
    rows = list(with_extras(3 * detections))
    truth = read_ground_truth(ground_truth, iou_type, "coco")
    expected = read_detections(3 * detections, truth, iou_type)
    (tmp_path / "found.json").write_text(json.dumps(rows, **style))
    monkeypatch.setattr(json_source, "_CHUNK", size)
    found = read_detections(tmp_path / "found.json", truth, iou_type)
    for name, column in vars(expected).items():
        np.testing.assert_array_equal(getattr(found, name), column, err_msg=name)


def test_lists_of_objects_inside_of_rows(tmp_path, monkeypatch):
    ground_truth, detections = random_masks(4)
    rows = [{**row, "parts": [{"a": 1}, {"a": 2}, {"a": 3}]} for row in detections]
    truth = read_ground_truth(ground_truth, "bbox", "coco")
    (tmp_path / "found.json").write_text(json.dumps(rows))
    monkeypatch.setattr(json_source, "_CHUNK", 150)
    found = read_detections(tmp_path / "found.json", truth, "bbox")
    np.testing.assert_array_equal(found.boxes, [row["bbox"] for row in rows])


def test_complaints_count_in_the_whole_file(tmp_path):
    ground_truth, detections = random_masks(4)
    truth = read_ground_truth(ground_truth, "bbox", "coco")
    rows = [dict(detections[n % 50]) for n in range(20_000)]
    rows[4]["score"] = rows[15_000]["score"] = rows[19_999]["score"] = 2
    path = tmp_path / "found.json"
    path.write_text(json.dumps(rows))
    with pytest.raises(ValueError, match=r"^3 of 20000 detections have a score .* \(position 4, 15000, 19999\)\.$"):
        read_detections(path, truth, "bbox")
    path.write_text(json.dumps(detections) + "]")
    with pytest.raises(ValueError, match="is not complete JSON"):
        read_detections(path, truth, "bbox")


@pytest.mark.parametrize("wrong", ["x", "", 2**70, -(2**63), 5.5, True, 43, [5]])
def test_ids_that_nothing_has_are_named(wrong):
    ground_truth, detections = random_masks(4)
    truth = read_ground_truth(ground_truth, "bbox", "coco")
    with pytest.raises(ValueError, match=r"1 of 2 detections have an unknown image_id: .* \(position 1\)"):
        read_detections([detections[0], {**detections[1], "image_id": wrong}], truth, "bbox")


@pytest.mark.parametrize("spelling", [str, float])
def test_ids_may_be_spelt_otherwise(spelling):
    ground_truth, detections = random_masks(4)
    expected = evaluate_detections(ground_truth, detections, "segm")
    rows = [{**row, **{key: spelling(row[key]) for key in ("image_id", "category_id")}} for row in detections]
    np.testing.assert_equal(evaluate_detections(ground_truth, rows, "segm").as_dict(), expected.as_dict())


@pytest.mark.parametrize("iou_type", ["bbox", "segm"])
def test_detections_of_other_categories_are_left_out_and_counted(iou_type):
    ground_truth, detections = random_masks(4)
    expected = evaluate_detections(ground_truth, detections, iou_type)
    rows = [
        {**row, "category_id": c}
        for row in detections
        for c in (row["category_id"], *([91, "b"] * (row["image_id"] == 5)))
    ]
    report = evaluate_detections(ground_truth, rows, iou_type)
    np.testing.assert_equal(report.as_dict(), expected.as_dict())
    np.testing.assert_equal(report.per_class, expected.per_class)
    count = sum(row["image_id"] == 5 for row in detections)
    sentence = f"Left out {2 * count} detections of categories that are not in the ground truth: 91, 'b'."
    assert sentence in str(report)


@pytest.mark.parametrize("ids", [(0, 10**15, 10**17), ("a", "b", "0")])
def test_ids_far_apart_and_strings(ids):
    ground_truth, detections = random_masks(4)
    names = dict(zip((0, 5, 42), ids, strict=True))
    for row in [*ground_truth["annotations"], *detections]:
        row["image_id"] = names[row["image_id"]]
    for row in ground_truth["images"]:
        row["id"] = names[row["id"]]
    truth = read_ground_truth(ground_truth, "bbox", "coco")
    found = read_detections(detections, truth, "bbox")
    assert [truth.images[i].id for i in found.image] == [row["image_id"] for row in detections]
