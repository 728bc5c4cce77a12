import csv
import json
from pathlib import Path

import numpy as np
import pytest
from evaluation_data import random_masks

from ranksort.evaluation import evaluate_detections
from ranksort.evaluation.findings import findings
from ranksort.evaluation.page import save_reports
from ranksort.evaluation.report import olrp_parts, rank_correlation

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
    assert "COCO bbox, 2 classes, in % (1 more class without ground truth does not count)" in lines[0]
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
    assert len(table) == 5 + 1 + 1 + 31
    assert table[22] == "... 70 classes between them ..."


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


def one_class(boxes, found):
    """An image of objects with these boxes, and detections of (box, score)."""
    ground_truth = {
        "images": [{"id": 3}, {"id": 7}],
        "categories": [{"id": 1, "name": "cat"}],
        "annotations": [{"id": n, "image_id": 3, "category_id": 1, "bbox": box} for n, box in enumerate(boxes)],
    }
    detections = [{"image_id": 3, "category_id": 1, "bbox": box, "score": score} for box, score in found]
    return evaluate_detections(ground_truth, detections)


def test_findings_name_what_is_wrong():
    boxes = [[100 * n, 0, 50, 50] for n in range(4)]
    assert findings(one_class(boxes, [(box, 0.9) for box in boxes])) == [
        "No errors: all 4 objects are detected exactly, without false positives."
    ]
    said = findings(one_class(boxes, [(boxes[0], 0.9)]))
    assert said[0].startswith("Most of the error (oLRP 75.0 of 100) comes from missed objects (100%), followed by")
    assert "75% of the 4 objects are not detected at all" in said[1]
    wrong = [[100 * n, 300, 50, 50] for n in range(9)]
    said = findings(one_class(boxes, [(box, 0.9) for box in [*wrong, *boxes]]))
    assert said[0].startswith("Most of the error (oLRP 69.2 of 100) comes from false positives (100%)")
    loose = [([100 * n, 0, 50, 30], 0.9) for n in range(4)]
    assert findings(one_class(boxes, loose))[0].startswith(
        "Most of the error (oLRP 80.0 of 100) comes from poor localisation (100%)"
    )
    late = [(boxes[0], 0.9), *((box, 0.5) for box in 3 * wrong), *((box, 0.2) for box in boxes[1:])]
    said = findings(one_class(boxes, late))
    assert "0% of the 4 objects are not detected at all" in said[1]
    assert "75% are detected only below the best score threshold of their class" in said[1]


def test_errors_of_images():
    boxes = [[100 * n, 0, 50, 50] for n in range(4)]
    report = one_class(
        boxes, [([0, 0, 50, 40], 0.9), (boxes[1], 0.8), ([0, 300, 50, 50], 0.85), ([0, 400, 50, 50], 0.1)]
    )
    # IoU .8 and 1, one false positive and two missed; the second image has nothing.
    assert report.image_errors().tolist() == [pytest.approx([(0.2 / 0.5 + 1 + 2) / 5, 1, 2])]


def test_rank_correlation():
    spearmanr = pytest.importorskip("scipy.stats").spearmanr
    a, b = np.random.default_rng(0).integers(0, 9, (2, 40))
    assert rank_correlation(a, b) == pytest.approx(spearmanr(a, b).statistic)
    assert rank_correlation(np.array([1, 2, 3]), np.array([10, 20, 90])) == pytest.approx(1)
    assert np.isnan(rank_correlation(np.ones(3), np.arange(3)))


def test_a_report_takes_the_place_of_an_earlier_one_of_boxes_and_masks(tmp_path):
    ground_truth, detections = random_masks(1)
    boxes, masks = (evaluate_detections(ground_truth, detections, kind) for kind in ("bbox", "segm"))
    save_reports(tmp_path, [boxes, masks], pictures={"bbox": [], "segm": []})
    assert '"iou_type":"segm"' in (tmp_path / "index.html").read_text()
    save_reports(tmp_path, [boxes], pictures={"bbox": []})
    assert '"iou_type":"segm"' not in (tmp_path / "index.html").read_text()


def test_class_names_that_are_no_unicode_are_saved(tmp_path: Path) -> None:
    truth = {
        "images": [{"id": 1, "width": 9, "height": 9}],
        "categories": [{"id": 1, "name": "caf\udce9"}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 1, 5, 5]}],
    }
    evaluate_detections(truth, []).save(tmp_path)
    assert "caf\\udce9" in (tmp_path / "per_class.csv").read_text(encoding="utf-8")
