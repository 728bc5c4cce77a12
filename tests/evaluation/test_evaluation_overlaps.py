from pathlib import Path

import numpy as np
import pytest
from evaluation_data import data_sets, random_masks
from hypothesis import given, settings
from oracles.calibration import worth

from ranksort.evaluation.coco import evaluate
from ranksort.evaluation.inputs import read_detections, read_ground_truth
from ranksort.evaluation.overlaps import TAU, assess

SHARED = Path(__file__).parents[3] / "shared"


@given(data_sets())
@settings(max_examples=100, deadline=None)
def test_equals_plain_loops(data_set):
    ground_truth, detections = data_set
    truth = read_ground_truth(ground_truth, "bbox", "coco")
    samples = assess(truth, read_detections(detections, truth, "bbox"))
    assert sorted(samples.place.tolist()) == list(range(len(detections)))
    iou, correct = np.empty((2, len(detections)))
    iou[samples.place], correct[samples.place] = samples.iou, samples.correct
    for category in truth.categories:
        places = [n for n, row in enumerate(detections) if row["category_id"] == category.id]
        annotations = [row for row in ground_truth["annotations"] if row["category_id"] == category.id]
        for column, threshold in ((iou, 0.0), (correct, TAU)):
            expected = worth(annotations, [detections[n] for n in places], threshold)
            for n, value in expected.items():
                got = column[places[n]]
                if column is correct and value:
                    value = 1.0
                assert np.isnan(got) if value is None else got == pytest.approx(value, abs=1e-12)


def same_as_evaluator(truth, found, style):
    samples, matches = assess(truth, found, style), evaluate(truth, found, style).matches
    assert (samples.place == matches.place).all()
    assert (np.nan_to_num(samples.correct, nan=-1) == matches.outcome).all()
    assert len(np.unique(samples.correct[~np.isnan(samples.correct)])) == 2


@pytest.mark.parametrize(
    ("truth", "found", "iou_type", "style"),
    [
        ("golden/evaluation/coco128_val.json", "golden/evaluation/coco128_val_bbox_results.json", "bbox", "coco"),
        ("golden/evaluation/coco128_val.json", "golden/evaluation/coco128_val_segm_results.json", "segm", "coco"),
        ("data/lvis100/annotations/lvis_val_100.json", "data/lvis100/results/good.json", "bbox", "lvis"),
        ("data/lvis100/annotations/lvis_val_100.json", "data/lvis100/results/poor.json", "segm", "lvis"),
    ],
)
def test_is_as_correct_at_iou_50_as_the_evaluator_says(truth, found, iou_type, style):
    if not (SHARED / truth).exists():
        pytest.skip(f"{SHARED / truth} is not there")
    ground_truth = read_ground_truth(SHARED / truth, iou_type, style)
    same_as_evaluator(ground_truth, read_detections(SHARED / found, ground_truth, iou_type), style)


def test_masks_are_compared_where_the_truth_has_any():
    ground_truth, detections = random_masks(4)
    truth = read_ground_truth(ground_truth, "segm", "coco")
    same_as_evaluator(truth, read_detections(detections, truth, "segm"), "coco")


def test_a_small_overlap_is_worth_little_and_a_touched_crowd_excuses_nothing():
    boxes = [[0, 0, 100, 100], [200, 0, 100, 100]]
    annotations = [{"id": n, "image_id": 1, "category_id": 1, "bbox": box, "iscrowd": n} for n, box in enumerate(boxes)]
    truth = {"images": [{"id": 1}], "categories": [{"id": 1, "name": "a"}], "annotations": annotations}
    found = [[0, 0, 30, 100], [0, 200, 9, 9], [210, 10, 20, 20], [290, 0, 100, 100]]
    rows = [{"image_id": 1, "category_id": 1, "bbox": box, "score": 0.9 - n / 10} for n, box in enumerate(found)]
    read = read_ground_truth(truth, "bbox", "coco")
    samples = assess(read, read_detections(rows, read, "bbox"))
    assert samples.iou == pytest.approx([0.3, 0, np.nan, 0], nan_ok=True)
    assert samples.correct == pytest.approx([0, 0, np.nan, 0], nan_ok=True)
    assert samples.num_objects.tolist() == [1]
