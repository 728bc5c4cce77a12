import json
import sys
from pathlib import Path

import numpy as np
import pytest

from ranksort.evaluation import evaluate_detections
from ranksort.evaluation.report import Report
from ranksort.evaluation.worst_images import worst_images_of_classes, worst_images_of_pair


def many(share: float = 0.2) -> Report:
    """40 images of two objects, a cat and a dog: found at .9, but in a share of the images the cat is called a dog at more."""
    truth = {
        "images": [{"id": n} for n in range(40)],
        "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}, {"id": 3, "name": "cow"}],
        "annotations": [],
    }
    found = []
    for n in range(40):
        for category, x in ((1, 0), (2, 100)):
            box = [x, 0, 50, 50]
            truth["annotations"].append({"id": 2 * n + category, "image_id": n, "category_id": category, "bbox": box})
            right = category == 2 or n < 40 * (1 - share)
            row = {"image_id": n, "category_id": category if right else 2, "bbox": box}
            found.append({**row, "score": 0.9 if right else 0.9 + n / 1000})
    return evaluate_detections(truth, found)


def test_lines_for_a_terminal() -> None:
    report = many()
    lines = report.analysis.lines(report)
    assert lines[0].startswith("95 % intervals over 40 images: AP ")
    # Eight dogs are cats. Recall .8 costs cats 20 of 101 recalls, precision 40/48 dogs a sixth.
    assert lines[1] == "8 false positives at the best thresholds: another class 100%."
    assert lines[2] == "Cost of each kind of error in points of AP50: another class 18.2."
    assert lines[3] == "Confused most often: cat mistaken for dog (8)."
    assert lines[4].startswith("A score of 0.90 here means a precision of 100%")
    assert "\n".join(lines) in report.text()


def test_the_report_has_it_all(tmp_path: Path) -> None:
    report = many()
    report.save(tmp_path)
    saved = json.loads((tmp_path / "report.json").read_text())
    low, high = saved["intervals"]["AP"]["low"], saved["intervals"]["AP"]["high"]
    assert low < report.summary["AP"] < high
    assert len(saved["intervals"]["AP"]["values"]) == 1000
    assert '"values"' not in (tmp_path / "index.html").read_text()
    calibration = saved["calibration"]
    assert calibration["after"]["all"]["dece"] < calibration["before"]["all"]["dece"]
    assert sum(number for number, *_ in calibration["before"]["iou"]) == 80
    assert saved["errors"]["worst_images"][0][0] == [32, 0, 1]
    # Recall of cats and dogs from .9 on, and precision of dogs from .5 and .92 on.
    assert [row[45] for row in saved["thresholds"]["recall"]] == [0.8, 1]
    assert saved["thresholds"]["precision"][1][25] == pytest.approx(40 / 48, abs=1e-3)
    assert saved["thresholds"]["precision"][1][46] == 0
    assert saved["thresholds"]["precision"][1][50] is None


def test_worst_images() -> None:
    report = many()
    cats, dogs = worst_images_of_classes(report, 3)
    assert cats.tolist() == [[32, 0, 1], [33, 0, 1], [34, 0, 1]]
    assert dogs.tolist() == [[32, 1, 0], [33, 1, 0], [34, 1, 0]]
    assert worst_images_of_pair(report, detected=1, object_=0, limit=3) == [39, 38, 37]  # the highest-scoring first


def test_one_image_cannot_be_calibrated_honestly() -> None:
    truth = {
        "images": [{"id": 1}],
        "categories": [{"id": 1, "name": "cat"}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [0, 0, 9, 9]}],
    }
    row = {"image_id": 1, "category_id": 1, "bbox": [0, 0, 9, 9], "score": 0.5}
    quality = evaluate_detections(truth, [row]).analysis.scores
    assert quality.after is None
    assert "two or more" in quality.why_not
    assert quality.before.all.laece == pytest.approx(0.5)
    assert quality.example is None
    assert np.isnan(evaluate_detections(truth, []).analysis.scores.before.all.dece)


def test_one_image_has_no_interval(tmp_path: Path) -> None:
    box = {"image_id": 1, "category_id": 1, "bbox": [10, 10, 40, 40]}
    truth = {
        "images": [{"id": 1}, {"id": 2}],
        "categories": [{"id": 1, "name": "cell"}],
        "annotations": [{**box, "id": 1}, {**box, "id": 2, "bbox": [60, 60, 20, 20]}],
    }
    report = evaluate_detections(truth, [{**box, "score": 0.5}])
    assert report.analysis.intervals is None  # it would be from 50.5 to 50.5
    assert "intervals" not in report.text()
    report.save(tmp_path)
    assert json.loads((tmp_path / "report.json").read_text())["intervals"] is None
    elsewhere = {**truth, "annotations": [truth["annotations"][0], {**box, "id": 2, "image_id": 2}]}
    assert evaluate_detections(elsewhere, [{**box, "score": 0.5}]).analysis.intervals is not None


def test_without_scipy_the_rest_is_there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("scipy.sparse", "scipy.optimize"):
        monkeypatch.setitem(sys.modules, name, None)
    report = many()
    report.save(tmp_path)
    saved = json.loads((tmp_path / "report.json").read_text())
    assert saved["intervals"] is None
    assert saved["calibration"]["after"] is None
    assert "ranksort[calibration]" in saved["calibration"]["why_not"]
    assert report.analysis.lines(report)[0].startswith("8 false positives")
