import json
from pathlib import Path

import numpy as np
import pytest
from evaluation_data import random_masks

from ranksort.evaluation import evaluate_detections
from ranksort.evaluation.bootstrap import Bootstrap, Resampled, bootstrap
from ranksort.evaluation.inputs import read_detections, read_ground_truth
from ranksort.evaluation.intervals import (
    difference_in_words,
    differences,
    fingerprint,
    interval_line,
    intervals_as_dict,
)
from ranksort.evaluation.page import compare_reports


def entry(ap: float, olrp: float, spread: float = 0.0) -> dict:
    """What a report has, of resamples with that standard deviation."""
    truth = read_ground_truth(random_masks(1)[0], "bbox", "coco")
    noise = np.random.default_rng(0).normal(0, 1, 1000)
    return intervals_as_dict(
        Bootstrap(Resampled(ap, ap + spread * noise), Resampled(olrp, olrp - spread * noise)), truth
    )


def test_differences_are_said_as_better_or_worse() -> None:
    # Resamples go up and down together, one four times as far: 3 sigma of the difference remain.
    said = difference_in_words(entry(0.40, 0.60, 0.001), entry(0.45, 0.62, 0.004))
    assert said == "AP better by 5.0 ± 0.6, oLRP worse by 2.0 ± 0.6"
    assert difference_in_words(entry(0.40, 0.60, 0.001), entry(0.402, 0.5999, 0.004)) == (
        "AP better by 0.2 ± 0.6 (may be chance), oLRP the same (± 0.6)"
    )


def test_intervals_end_where_the_metrics_do() -> None:
    found = entry(0.01, 0.99, 0.02)
    assert (found["AP"]["low"], found["oLRP"]["high"]) == (0, 1)
    assert 0.04 < found["AP"]["high"] < 0.06
    noise = np.random.default_rng(0).normal(0, 0.02, 1000)
    line = interval_line(Bootstrap(Resampled(0.01, 0.01 + noise), Resampled(0.99, 0.99 + noise)), 8)
    assert line.startswith("95 % intervals over 8 images: AP 0.0 to ")
    assert line.endswith(" to 100.0.")


def test_differences_are_those_of_paired_resamples() -> None:
    ground_truth, detections = random_masks(2)
    truth = read_ground_truth(ground_truth, "bbox", "coco")
    worse = [{**row, "score": 1 - row["score"]} for row in detections]
    a, b = (bootstrap(truth, read_detections(rows, truth, "bbox")) for rows in (detections, worse))
    saved = [json.loads(json.dumps(intervals_as_dict(result, truth))) for result in (a, b)]
    found = differences(*saved)
    assert found is not None
    assert found.ap.values == pytest.approx(b.ap.values - a.ap.values, abs=2e-6, nan_ok=True)
    assert found.olrp.measured == b.olrp.measured - a.olrp.measured


def test_other_objects_are_not_compared() -> None:
    ground_truth, _ = random_masks(2)
    one, other = entry(0.4, 0.6), entry(0.5, 0.5)
    other["objects"] = fingerprint(read_ground_truth(ground_truth, "bbox", "coco"))
    assert differences(one, other) is None
    assert "no paired difference" in difference_in_words(one, other)
    moved = {**ground_truth, "annotations": ground_truth["annotations"][::-1]}
    assert fingerprint(read_ground_truth(moved, "bbox", "coco")) == other["objects"]


def test_reports_are_compared_on_the_terminal(tmp_path: Path) -> None:
    ground_truth, detections = random_masks(2)
    for name, rows in (("a", detections[:10]), ("b", detections), ("c", [])):
        evaluate_detections(ground_truth, rows).save_numbers(tmp_path / name)
    lines = compare_reports([tmp_path / name for name in "abc"])
    assert [line.split(" against ")[0] for line in lines] == [f"{tmp_path.name}/b", f"{tmp_path.name}/c"]
    assert "AP better by" in lines[0]
    assert "AP worse by" in lines[1]
    old = json.loads((tmp_path / "c" / "report.json").read_text())
    del old["intervals"], old["errors"]
    (tmp_path / "c" / "report.json").write_text(json.dumps(old))
    (line,) = compare_reports([tmp_path / "a", tmp_path / "c"])  # of an older version
    assert line.endswith(": not compared, because one of the reports has no intervals")
    other_rules = json.loads((tmp_path / "b" / "report.json").read_text()) | {"style": "lvis"}
    (tmp_path / "b" / "report.json").write_text(json.dumps(other_rules))
    (line,) = compare_reports([tmp_path / "a", tmp_path / "b"])
    assert line.endswith(": not compared, because one was evaluated by COCO's rules and the other by LVIS'")
    with pytest.raises(ValueError, match=r"is a file: name a folder .*ranksort evaluate"):
        compare_reports([tmp_path / "a" / "report.json"])
