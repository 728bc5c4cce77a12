"""The limit on detections, and what the findings say of it and of objects without an area."""

import csv
import json

import numpy as np
import pytest
from evaluation_data import random_masks

from ranksort import cli
from ranksort.evaluation import evaluate, evaluate_detections
from ranksort.evaluation.findings import findings
from ranksort.evaluation.inputs import read_detections, read_ground_truth


def crowded(num_objects=400):
    """An image of many small objects, all of which are detected exactly, the first ones with the highest scores."""
    boxes = [[30 * (n % 20), 30 * (n // 20), 20, 20] for n in range(num_objects)]
    ground_truth = {
        "images": [{"id": 3, "neg_category_ids": [], "not_exhaustive_category_ids": []}],
        "categories": [{"id": 1, "name": "cell", "frequency": "f"}],
        "annotations": [{"id": n, "image_id": 3, "category_id": 1, "bbox": box} for n, box in enumerate(boxes)],
    }
    scores = np.linspace(0.9, 0.1, num_objects).tolist()
    found = [{"image_id": 3, "category_id": 1, "bbox": b, "score": s} for b, s in zip(boxes, scores, strict=True)]
    return ground_truth, found


@pytest.mark.parametrize(("style", "names", "default"), [("coco", ["AR1", "AR10"], 100), ("lvis", [], 300)])
def test_the_limit_is_an_argument_and_names_the_recall(style, names, default):
    recalls = {}
    for limit in (None, 7, 250, 400, 5000):
        summary = evaluate_detections(*crowded(), style=style, max_detections=limit).as_dict()
        number = limit or default
        expected = [name for name in names if int(name[2:]) < number] + [f"AR{number}"]
        assert [name for name in summary if name.startswith("AR")] == [*expected, "ARs", "ARm", "ARl"]
        assert summary["ARs"] == summary[f"AR{number}"]
        recalls[number] = summary[f"AR{number}"]
    assert recalls == pytest.approx({number: min(number / 400, 1) for number in recalls})


@pytest.mark.parametrize("limit", [0, -1, 2.5, True, "100"])
def test_no_other_limit(limit):
    with pytest.raises(ValueError, match="max_detections must be a whole number, 1 or more; got"):
        evaluate_detections(*crowded(5), max_detections=limit)


def test_ties_at_the_limit_are_those_of_the_whole_order():
    ground_truth, found = crowded(40)
    for row in found:
        row["score"] = 0.5
    for style in ("coco", "lvis"):
        matches = evaluate_detections(ground_truth, found, style=style, max_detections=15).matches
        assert sorted(matches.place) == list(range(15))


@pytest.mark.parametrize(
    ("style", "limit", "where"), [("coco", 100, "per class and image"), ("lvis", 300, "per image")]
)
def test_findings_name_the_limit_and_count_what_it_cut(style, limit, where):
    said = findings(evaluate_detections(*crowded(), style=style))
    missed = f"{1 - limit / 400:.0%} of the 400 objects are not detected at all"
    assert said[1].startswith(
        f"{missed} (no box of their class among the {limit} highest-scoring {where} overlaps them"
    )
    assert said[2] == (
        f"{style.upper()}'s limit of {limit} detections {where} left out {400 - limit} detections. Objects that only "
        "these overlap count as missed. `ranksort evaluate --max-detections 400` counts all of them."
    )
    said = findings(evaluate_detections(*crowded(), style=style, max_detections=400))
    assert said == ["No errors: all 400 objects are detected exactly, without false positives."]


def test_a_limit_that_cuts_wrong_detections_only_is_named_too():
    ground_truth, found = crowded(40)
    wrong = [{**found[0], "bbox": [0, 900, 5, 5], "score": 0.01}] * 70
    said = findings(evaluate_detections(ground_truth, found + wrong, max_detections=40))
    assert said[0].startswith("No errors:")
    assert "left out 70 detections" in said[1]
    assert "--max-detections 110`" in said[1]
    said = findings(evaluate_detections(ground_truth, wrong, max_detections=40))
    assert said[0].startswith("No true positives:")
    assert "left out 30 detections" in said[1]


def test_objects_without_an_area_are_not_small_objects():
    ground_truth, found = crowded(40)
    for row, size in zip(ground_truth["annotations"], 20 * [200] + 20 * [20], strict=True):
        row["bbox"] = [*row["bbox"][:2], size, size]
        row["area"] = size * size
    found = [{**row, "bbox": a["bbox"]} for row, a in zip(found, ground_truth["annotations"], strict=True)][:30]
    expected = [s for s in findings(evaluate_detections(ground_truth, found)) if "objects are detected worst" in s]
    assert expected == ["Small objects are detected worst: AP 50.5 (large 100.0)."]
    flat = {"image_id": 3, "category_id": 1, "bbox": [0, 900, 50, 50], "area": 0}
    ground_truth["annotations"] += [{**flat, "id": 1000 + n} for n in range(20)]
    report = evaluate_detections(ground_truth, found)
    assert report.as_dict()["APs"] < 0.3  # as COCO counts them
    assert expected[0] in findings(report)
    assert any(s.startswith("Objects whose area is 0 in the annotations: 20 of 60.") for s in findings(report))


def test_where_no_object_has_an_area_nothing_is_said_of_sizes():
    ground_truth, found = crowded(40)
    for row in ground_truth["annotations"]:
        row["area"] = 0
    said = findings(evaluate_detections(ground_truth, [{**row, "bbox": [0, 0, 20, 20]} for row in found]))
    assert not any("are detected worst" in sentence for sentence in said)


def test_columns_that_were_read_before_are_evaluated():
    ground_truth, found = crowded()
    truth = read_ground_truth(ground_truth, "bbox", "lvis")
    columns = read_detections(found, truth, "bbox")
    for style, limit in (("coco", 50), ("lvis", None)):
        expected = evaluate_detections(ground_truth, found, "bbox", style, limit)
        report = evaluate(truth, columns, style, limit)
        assert report.as_dict() == pytest.approx(expected.as_dict(), nan_ok=True)
        assert (report.iou_type, report.style) == ("bbox", style)


def test_metrics_are_listed_once(tmp_path):
    report = evaluate_detections(*crowded(40), max_detections=20)
    report.save(tmp_path)
    names = [metric.name for metric in report.metrics]
    with (tmp_path / "per_class.csv").open(newline="") as file:
        assert next(csv.reader(file)) == ["class", "category_id", "objects", "detections", *names]
    saved = json.loads((tmp_path / "report.json").read_text())
    assert list(saved["summary"]) == [metric.name for metric in report.metrics if metric.in_summary]
    assert list(saved["per_class"][0]) == ["class", "category_id", "objects", "detections", *names]
    heads = str(report).splitlines()[5].split()
    assert heads == ["class", "objects", "AP", "AP50", "AP75", "oLRP", "oLRP_loc", "oLRP_fp", "oLRP_fn", "threshold"]


def test_the_option_of_the_command(tmp_path, capsys):
    for name, content in zip(("truth", "found"), crowded(), strict=True):
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    arguments = ["evaluate", str(tmp_path / "truth.json"), str(tmp_path / "found.json")]
    cli.main(arguments)
    assert "AR100 25.0" in capsys.readouterr().out
    cli.main([*arguments, "--max-detections", "400"])
    assert "AR400 100.0" in capsys.readouterr().out


def test_a_class_without_a_threshold_shows_a_dash() -> None:
    ground_truth, _ = random_masks(4)
    table = str(evaluate_detections(ground_truth, []))
    assert "nan" not in table
    assert table.splitlines()[-1].endswith(" -")
