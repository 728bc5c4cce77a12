import numpy as np
import pytest
from evaluation_data import data_sets, random_masks
from hypothesis import given, settings
from oracles.lrp import optimal_lrp
from pycocotools import mask as mask_utils

from ranksort.evaluation import evaluate_detections
from ranksort.evaluation.inputs import read_detections, read_ground_truth
from ranksort.evaluation.lrp import evaluate_lrp, lrp_error
from ranksort.evaluation.matching import AREA_RANGES, match, take_part


def three_objects():
    """One class: found with IoU .9, found with IoU .75, missed."""
    boxes = [[0, 0, 100, 100], [200, 0, 100, 100], [400, 0, 100, 100]]
    annotations = [{"id": n + 1, "image_id": 7, "category_id": 3, "bbox": box} for n, box in enumerate(boxes)]
    ground_truth = {"images": [{"id": 7}], "categories": [{"id": 3, "name": "cat"}], "annotations": annotations}
    found = [(0.9, [0, 0, 90, 100]), (0.8, [0, 300, 9, 9]), (0.7, [200, 0, 75, 100]), (0.6, [50, 300, 9, 9])]
    detections = [{"image_id": 7, "category_id": 3, "score": score, "bbox": box} for score, box in found]
    return ground_truth, detections


def test_an_example_computed_by_hand():
    # Thresholds .9, .8, .7, .6: (.2+0+2)/3, (.2+1+2)/4, (.2+.5+1+1)/4, (.2+.5+2+1)/5; the third is the smallest.
    report = evaluate_detections(*three_objects())
    expected = {"oLRP": 0.675, "oLRP_loc": 0.175, "oLRP_fp": 1 / 3, "oLRP_fn": 1 / 3}
    assert {name: report.as_dict()[name] for name in expected} == pytest.approx(expected, abs=1e-12)
    assert report.per_class[0]["oLRP_threshold"] == 0.7
    assert report.lrp[0, [0, 60, 61, 70, 71, 80, 81, 90, 91]] == pytest.approx(
        [0.74, 0.74, 0.675, 0.675, 0.8, 0.8, 2.2 / 3, 2.2 / 3, 1.0]
    )


def test_what_becomes_of_each_detection_and_object():
    ground_truth, detections = three_objects()
    ground_truth["annotations"].append(
        {**ground_truth["annotations"][0], "id": 9, "bbox": [0, 400, 50, 50], "iscrowd": 1}
    )
    in_the_crowd = {**detections[0], "bbox": [10, 410, 10, 10]}
    matches = evaluate_detections(ground_truth, [*detections, in_the_crowd]).matches
    assert matches.score.tolist() == [0.9, 0.9, 0.8, 0.7, 0.6]
    assert matches.outcome.tolist() == [1, -1, 0, 1, 0]
    assert matches.iou == pytest.approx([0.9, 1, 0, 0.75, 0])
    assert matches.object_score == pytest.approx([0.9, 0.7, np.nan], nan_ok=True)


def test_ignored_detections_do_not_change_the_error():
    scores, iou = np.array([0.9, 0.8, 0.7]), np.array([0.0, 0.8, 0.0])
    errors, best = lrp_error(scores, np.array([False, True, False]), np.array([False, False, False]), iou, 2)
    assert errors == pytest.approx([1, 1, 0.7, 0.7])
    assert (best.threshold, best.false_positive, best.false_negative) == (0.8, 0, 0.5)


def test_a_true_positive_at_the_iou_threshold_is_an_optimum_although_it_improves_nothing():
    errors, best = lrp_error(np.array([0.9]), np.array([True]), np.array([False]), np.array([0.5]), 1)
    assert errors.tolist() == [1, 1]
    assert tuple(best) == (1, 0.5, 0, 0, 0.9)


def test_the_optimum_is_not_between_equal_scores():
    is_tp, iou = np.array([True, True, False, False]), np.array([0.9, 0.8, 0.0, 0.0])
    errors, best = lrp_error(np.array([0.9, 0.5, 0.5, 0.4]), is_tp, ~is_tp, iou, 4)
    assert errors.argmin() == 2  # which has both true positives, but not the false one of the same score
    assert (best.threshold, best.error, best.false_positive) == pytest.approx((0.5, (0.2 + 0.4 + 1 + 2) / 5, 1 / 3))


@given(data_sets())
@settings(max_examples=50, deadline=None)
def test_the_reported_threshold_applied_gives_the_reported_error(data):
    ground_truth, detections = data
    report = evaluate_detections(ground_truth, detections)
    thresholds = {row["category_id"]: row["oLRP_threshold"] for row in report.per_class}
    kept = [row for row in detections if row["score"] >= thresholds.get(row["category_id"], np.inf)]
    lrp = {
        row["category_id"]: errors[0]
        for row, errors in zip(report.per_class, evaluate_detections(ground_truth, kept).lrp, strict=True)
    }
    assert lrp == pytest.approx({row["category_id"]: row["oLRP"] for row in report.per_class})


def assert_equals_oracle(ground_truth, detections, iou_type, **oracle_settings):
    truth = read_ground_truth(ground_truth, iou_type, "coco")
    found = read_detections(detections, truth, iou_type)
    areas = found.areas.tolist()
    rows = [{**row, "area": area} for row, area in zip(detections, areas, strict=True)]
    candidates = take_part(truth, found, federated=False, limit=100)
    for area_range, setting in zip(AREA_RANGES.values(), match(truth, candidates, AREA_RANGES.values()), strict=True):
        optima = evaluate_lrp(truth, candidates, setting).optima
        for c, category in enumerate(truth.categories):
            of_class = [
                [row for row in table if row["category_id"] == category.id]
                for table in (ground_truth["annotations"], rows)
            ]
            result = optima[c]
            if not any(area_range[0] <= r["area"] <= area_range[1] and not r["iscrowd"] for r in of_class[0]):
                assert np.isnan(result).all()
                continue
            expected = np.array(optimal_lrp(*of_class, area_range=area_range, **oracle_settings), dtype=float)
            close = np.isclose(result, expected, rtol=0, atol=1e-10, equal_nan=True)
            assert close.all(axis=1).any(), (result, expected)


@given(data_sets())
@settings(max_examples=150, deadline=None)
def test_boxes_agree_with_plain_loops(data):
    assert_equals_oracle(*data, "bbox")


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # pycocotools' decode
@pytest.mark.parametrize("seed", range(4))
def test_masks_agree_with_plain_loops(seed):
    ground_truth, detections = random_masks(seed)

    def mask_iou(detection, annotation):
        one, other = (mask_utils.decode(row["segmentation"]).astype(bool) for row in (detection, annotation))
        union = one if annotation["iscrowd"] else one | other
        return (one & other).sum() / union.sum()

    assert_equals_oracle(ground_truth, detections, "segm", iou=mask_iou)


def test_only_the_100_best_detections_of_a_class_in_an_image_count():
    ground_truth, detections = three_objects()
    wrong = [{"image_id": 7, "category_id": 3, "score": 1.0, "bbox": [0, 500 + n, 9, 9]} for n in range(100)]
    assert evaluate_detections(ground_truth, detections + wrong).as_dict()["oLRP"] == 1
    summary = evaluate_detections(ground_truth, detections + wrong[1:]).as_dict()
    assert summary["oLRP"] == pytest.approx((0.2 + 99 + 2) / 102)  # the best one of `detections` is the 100th


def test_of_equally_good_objects_the_later_one_is_taken():
    ground_truth, detections = three_objects()
    del ground_truth["annotations"][2]
    boxes = [0, 0, 100, 100], [20, 0, 100, 100], [10, 0, 100, 100], [0, 0, 100, 100]
    for row, box in zip(ground_truth["annotations"] + detections[:2], boxes, strict=True):
        row["bbox"] = box
    summary = evaluate_detections(ground_truth, detections[:2]).as_dict()
    assert summary["oLRP_loc"] == pytest.approx((1 - 90 / 110 + 0) / 2)


def test_classes_unknown_or_incomplete_in_an_image_do_not_count_in_lvis():
    ground_truth, detections = three_objects()
    ground_truth["categories"] = [{"id": c, "name": str(c), "frequency": "f"} for c in (3, 4)]
    ground_truth["images"] = [
        {"id": 7, "neg_category_ids": [4], "not_exhaustive_category_ids": [3]},
        {"id": 8, "neg_category_ids": [3], "not_exhaustive_category_ids": []},
        {"id": 9, "neg_category_ids": [4], "not_exhaustive_category_ids": []},
    ]
    elsewhere = [{"image_id": i, "category_id": 3, "score": 0.95, "bbox": [0, 0, 9, 9]} for i in (8, 9)]
    summary = evaluate_detections(ground_truth, detections + elsewhere, style="lvis").as_dict()
    # In image 7 the unmatched are tolerated; of the others, that in image 8 is wrong and that in image 9 is dropped.
    assert summary["oLRP"] == pytest.approx((0.2 + 0.5 + 1 + 1) / 4)
    assert summary["oLRP"] == summary["oLRPf"]
    assert np.isnan(summary["oLRPr"])


def test_the_order_of_images_and_annotations_does_not_matter():
    ground_truth, detections = random_masks(9)
    for n, row in enumerate(detections):
        row["score"] = (n * 37 % len(detections)) / len(detections)  # all different
    expected = evaluate_detections(ground_truth, detections).as_dict()
    turned = {key: rows[::-1] for key, rows in ground_truth.items()}
    assert evaluate_detections(turned, detections[::-1]).as_dict() == pytest.approx(expected, abs=1e-12, nan_ok=True)


def test_classes_without_ground_truth_change_nothing():
    ground_truth, detections = three_objects()
    expected = evaluate_detections(ground_truth, detections)
    more = {**ground_truth, "categories": [{"id": 1, "name": "none"}, *ground_truth["categories"]]}
    report = evaluate_detections(more, [*detections, {**detections[0], "category_id": 1}])
    assert report.as_dict() == pytest.approx(expected.as_dict(), nan_ok=True)
    assert report.per_class == [pytest.approx(row, nan_ok=True) for row in expected.per_class]
    assert (report.classes_without_objects, expected.classes_without_objects) == (1, 0)
