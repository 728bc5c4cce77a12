import csv
import json

import numpy as np
import pytest
from evaluation_data import random_masks

from ranksort.evaluation import evaluate_detections
from ranksort.evaluation.report import olrp_parts

PROMISED = ["AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl"]
PROMISED += ["oLRP", "oLRP_loc", "oLRP_fp", "oLRP_fn"]


@pytest.fixture(scope="module")
def report():
    return evaluate_detections(*random_masks(2))


def test_promised_names(report):
    summary = report.as_dict()
    assert [*summary][:16] == PROMISED
    assert all(np.isnan(value) or 0 <= value <= 1 for value in summary.values())
    assert {"class", "category_id", "objects", "detections", "oLRP_threshold", *PROMISED} <= report.per_class[0].keys()


def test_per_class_counts(report):
    ground_truth, detections = random_masks(2)
    for row in report.per_class:
        of_class = [a for a in ground_truth["annotations"] if a["category_id"] == row["category_id"]]
        assert row["objects"] == sum(not a["iscrowd"] for a in of_class)
        assert row["detections"] == sum(d["category_id"] == row["category_id"] for d in detections)


def test_table(report):
    lines = str(report).splitlines()
    assert "COCO bbox, 2 classes, in % (1 more classes have no ground truth" in lines[0]
    assert f"AP {100 * report.summary['AP']:.1f}" in lines[1]
    assert [line.split()[1] for line in lines[-2:]] == [str(row["category_id"]) for row in report.worst_first()]


def test_a_table_of_many_classes_is_shortened():
    names = [f"class{n}" for n in range(100)]
    box = [0, 0, 20, 20]
    ground_truth = {
        "images": [{"id": 1}],
        "categories": [{"id": n, "name": name} for n, name in enumerate(names)],
        "annotations": [{"id": n, "image_id": 1, "category_id": n, "bbox": box} for n in range(100)],
    }
    table = str(evaluate_detections(ground_truth, [])).splitlines()
    assert len(table) == 4 + 1 + 1 + 31
    assert table[21] == "... 70 classes between them ..."


def test_the_parts_of_olrp_add_up(report):
    rows = report.per_class
    assert olrp_parts(rows).sum(axis=1) == pytest.approx([row["oLRP"] for row in rows])
    nothing_found = {"oLRP_loc": np.nan, "oLRP_fp": np.nan, "oLRP_fn": 1.0}
    assert olrp_parts([nothing_found]).tolist() == [[0, 0, 1]]


@pytest.mark.parametrize("found", [True, False])
def test_saved_files(tmp_path, found):
    ground_truth, detections = random_masks(2)
    report = evaluate_detections(ground_truth, detections if found else [])
    report.save(tmp_path / "new" / "report")
    folder = tmp_path / "new" / "report"
    saved = json.loads((folder / "report.json").read_text())
    expected = {key: None if np.isnan(value) else value for key, value in report.as_dict().items()}
    assert saved["summary"] == expected
    with (folder / "per_class.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["class"] for row in rows] == [row["class"] for row in report.per_class]
    assert [row["oLRP_threshold"] for row in rows] == [
        "" if not found else str(r["oLRP_threshold"]) for r in report.per_class
    ]
    assert "</html>" in (folder / "index.html").read_text()
