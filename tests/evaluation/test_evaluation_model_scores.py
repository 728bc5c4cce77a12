import json
from pathlib import Path

import numpy as np
import pytest
import torch
from evaluation_data import random_masks

from ranksort.data.coco_columns import Category
from ranksort.evaluation import evaluate_detections
from ranksort.evaluation.calibration import Calibrator, Curve
from ranksort.evaluation.calibration_file import calibrator_content, save_calibrator
from ranksort.evaluation.calibration_summary import calibrate_evaluation
from ranksort.evaluation.model_scores import ModelCalibration, find_calibration, find_thresholds, read_report
from ranksort.evaluation.thresholds import Wish, thresholds_content

CATEGORIES = [Category(0, "class 0"), Category(3, "class 3")]


def calibrator(top: float, target="iou") -> Calibrator:
    """Class 0 has a curve of its own, up to `top`."""
    own, other = (Curve(np.array([0.0, 1.0]), np.array([0.0, value])) for value in (top, 0.5))
    return Calibrator(target, "linear", CATEGORIES, np.array([50, 3]), [own, None], other)


def test_detections_are_sorted_again_and_no_two_scores_become_equal() -> None:
    curve = Curve(np.array([0.0, 0.5, 0.6, 1.0]), np.array([0.0, 0.8 - 1e-4, 0.8, 0.9]))
    flat = Calibrator("iou", "isotonic", CATEGORIES, np.array([50, 50]), [curve, None], calibrator(1).all_classes)
    calibration = ModelCalibration(flat, "it", [CATEGORIES[1], CATEGORIES[0]])  # labels in another order
    raw = torch.linspace(0.5, 0.6, 500).flip(0)
    found = {"scores": raw, "labels": torch.arange(500) % 2, "boxes": torch.arange(2000.0).view(500, 4)}
    calibrated = calibration(found)
    assert calibrated["scores"].dtype == torch.float64
    assert (calibrated["scores"].diff() <= 0).all()
    for label in (0, 1):
        scores = calibrated["scores"][calibrated["labels"] == label]
        assert len(scores.unique()) == len(scores) == 250
        boxes = calibrated["boxes"][calibrated["labels"] == label]
        assert (boxes[:, 0].diff() > 0).all()  # the order within the class is as it was
    assert calibrated["scores"][0] == calibration.calibrated(np.array([float(raw[1])]), np.array([1]))[0]
    assert str(calibration).startswith("scores are the expected IoU, from it (1 of 2 classes have")


def test_the_report_of_the_run_comes_before_what_is_carried_and_that_before_what_lies_beside(tmp_path: Path) -> None:
    run, lone = tmp_path / "run", tmp_path / "lone" / "model.safetensors"
    best = run / "checkpoints" / "best.ckpt"

    def top(checkpoint: Path, carried: dict) -> float:
        return find_calibration(checkpoint, carried, CATEGORIES).calibrated(np.ones(1), np.zeros(1, int))[0]

    for path in (best, lone):
        path.parent.mkdir(parents=True)
        path.touch()
        with pytest.raises(
            FileNotFoundError, match=f"{path} has no calibration, .*ranksort test {path} .*--calibration"
        ):
            top(path, {})
    carried = {"iou": json.loads(json.dumps(calibrator_content(calibrator(0.3))))}
    save_calibrator(calibrator(0.1), run / "report" / "calibration.json")
    save_calibrator(calibrator(0.2), lone.parent / "calibration.json")
    assert [top(path, {}) for path in (run, best, lone)] == [0.1, 0.1, 0.2]
    assert [top(path, carried) for path in (run, best, lone)] == [0.1, 0.1, 0.3]
    save_calibrator(calibrator(0.4), run / "report" / "masks" / "calibration.json")
    assert top(best, {}) == 0.4
    (run / "report" / "calibration.json").write_text("[")
    (run / "report" / "masks" / "calibration.json").unlink()
    with pytest.raises(ValueError, match=r"calibration\.json is damaged"):
        top(run, carried)


def test_a_file_that_is_named(tmp_path: Path) -> None:
    truth, detections = random_masks(2)
    report = evaluate_detections(truth, detections)
    save_calibrator(calibrator(0.2), file := tmp_path / "c.json", thresholds=thresholds_content(report))
    assert find_calibration(tmp_path, {}, CATEGORIES, "iou", file).target == "iou"
    thresholds = [row["oLRP_threshold"] for row in report.per_class]
    assert find_thresholds(tmp_path, {}, CATEGORIES, file).reach(Wish("lrp")).values == thresholds
    with pytest.raises(ValueError, match=r"gives the expected IoU, not the probability .*--target precision"):
        find_calibration(tmp_path, {}, CATEGORIES, "precision", file)
    with pytest.raises(ValueError, match="belongs to another model: it has none of the classes"):
        find_calibration(tmp_path, {}, [Category(0, "other")], "iou", file)
    with pytest.raises(ValueError, match="is not a calibration"):
        find_calibration(tmp_path, {"iou": {"format": "other"}}, CATEGORIES)


def test_an_evaluation_leaves_what_a_checkpoint_can_carry(tmp_path: Path) -> None:
    content, rows = random_masks(2)
    report = evaluate_detections(content, rows)
    report.save(tmp_path)
    text = calibrate_evaluation(report, tmp_path, {"data": "some"})
    assert "calibrated on other images" in text
    carried = read_report(tmp_path)
    assert set(carried) == {"thresholds", "iou", "precision"}
    assert (
        carried["iou"]["about"]["errors"]["after.all"]["laece"]
        < carried["iou"]["about"]["errors"]["before.all"]["laece"]
    )
    assert carried["iou"]["thresholds"] == carried["thresholds"]
    model = Path("elsewhere") / "model.safetensors"
    assert find_calibration(model, carried, CATEGORIES, "precision").target == "precision"
    assert len(find_thresholds(model, carried, CATEGORIES).reach(Wish("recall", 0.5)).values) == 2

    report.scores_are = "calibrated"
    assert "calibrated on other images" not in calibrate_evaluation(report, tmp_path, {})
    assert not [*tmp_path.glob("calibration*.json")]
    text = calibrate_evaluation(evaluate_detections(content, []), tmp_path, {})
    assert "no calibration of the scores: There are no detections to calibrate" in text
