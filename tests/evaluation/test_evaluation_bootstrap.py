import sys

import numpy as np
import pytest
from evaluation_data import random_masks

from ranksort.evaluation.bootstrap import Bootstrap, Resampled, bootstrap, evaluate_weighted, paired_difference
from ranksort.evaluation.coco import evaluate_detections
from ranksort.evaluation.inputs import read_detections, read_ground_truth
from ranksort.evaluation.matching import AREA_RANGES, match, take_part


def data(seed, lvis=False, scores=None):
    """(ground truth, detections) in 12 images, with crowds; no two scores are equal, or there are but so many."""
    ground_truth, detections = {"images": [], "annotations": []}, []
    for part in range(4):
        truth, found = random_masks(10 * seed + part)
        for rows in (truth["images"], truth["annotations"], found):
            for row in rows:
                row["image_id" if "image_id" in row else "id"] += 100 * part
        for name in ground_truth:
            ground_truth[name] += truth[name]
        detections += found
    ground_truth["categories"] = truth["categories"]
    order = np.random.default_rng(seed).permutation(len(detections))
    scores = order % scores / scores if scores else order / len(detections)
    for row, score in zip(detections, scores.tolist(), strict=True):
        row["score"] = score
    if lvis:
        for n, image in enumerate(ground_truth["images"]):
            image["neg_category_ids"], image["not_exhaustive_category_ids"] = [7], [[], [3]][n % 2]
        for category in ground_truth["categories"]:
            category["frequency"] = "c"
    return ground_truth, detections


def drawn(ground_truth, detections, draws):
    """The data set of the images in the order of their ids, each as often as drawn, by other ids."""
    ids = sorted(image["id"] for image in ground_truth["images"])
    result, found = {**ground_truth, "images": [], "annotations": []}, []
    for id, number in zip(ids, draws, strict=True):
        for copy in range(number):
            new = 1000 * id + copy
            result["images"] += [{**image, "id": new} for image in ground_truth["images"] if image["id"] == id]
            for rows, source in ((result["annotations"], ground_truth["annotations"]), (found, detections)):
                rows += [{**row, "image_id": new} for row in source if row["image_id"] == id]
    return result, found


def test_of_equal_scores_all_count_or_none():
    ground_truth, detections = data(4, scores=9)
    truth = read_ground_truth(ground_truth, "bbox", "coco")
    candidates = take_part(truth, read_detections(detections, truth, "bbox"), federated=False, limit=100)
    setting = next(iter(match(truth, candidates, [AREA_RANGES[""]])))
    draws = np.stack([np.ones(12, int), *np.random.default_rng(1).multinomial(12, np.full(12, 1 / 12), 9)], axis=1)
    _, olrp = evaluate_weighted(truth, candidates, setting, draws.astype(np.float32))
    for number, column in zip(olrp, draws.T, strict=True):
        report = evaluate_detections(*drawn(ground_truth, detections, column))
        assert number == pytest.approx(report.summary["oLRP"], abs=2e-6)


def test_a_threshold_above_equal_scores_can_be_the_best():
    truth = {"images": [{"id": 1}], "categories": [{"id": 1, "name": "a"}]}
    truth["annotations"] = [{"id": n, "image_id": 1, "category_id": 1, "bbox": [100 * n, 0, 40, 40]} for n in (1, 2)]
    found = [([100, 0, 40, 40], 0.9), ([200, 0, 40, 20], 0.8), *([[900, 90 * n, 9, 9], 0.8] for n in range(3))]
    detections = [{"image_id": 1, "category_id": 1, "bbox": box, "score": score} for box, score in found]
    read = read_ground_truth(truth, "bbox", "coco")
    result = bootstrap(read, read_detections(detections, read, "bbox"), resamples=2)
    assert result.olrp.measured == pytest.approx(
        0.5
    )  # one found exactly, one missed; at .8 three wrong ones come with the second
    assert evaluate_detections(truth, detections).summary["oLRP"] == pytest.approx(0.5)


@pytest.mark.parametrize("style", ["coco", "lvis"])
@pytest.mark.parametrize("iou_type", ["bbox", "segm"])
def test_equals_the_evaluator_on_resampled_data(iou_type, style, monkeypatch):
    monkeypatch.setattr("ranksort.evaluation.bootstrap._ROWS", 3)  # so that there are several parts
    ground_truth, detections = data(2, style == "lvis")
    truth = read_ground_truth(ground_truth, iou_type, style)
    candidates = take_part(truth, read_detections(detections, truth, iou_type), federated=style == "lvis", limit=300)
    setting = next(iter(match(truth, candidates, [AREA_RANGES[""]])))
    random = np.random.default_rng(0)
    draws = np.stack([np.ones(12, int), *(random.multinomial(12, np.full(12, 1 / 12)) for _ in range(8))], axis=1)
    got = np.stack(evaluate_weighted(truth, candidates, setting, draws.astype(np.float32)), axis=1)
    for numbers, column in zip(got, draws.T, strict=True):
        report = evaluate_detections(*drawn(ground_truth, detections, column), iou_type, style, 300)
        assert numbers == pytest.approx([report.summary["AP"], report.summary["oLRP"]], abs=2e-6)


def test_recalls_are_reached_as_by_the_evaluator():
    # 20 objects: 7 of them are a recall of .35, which as COCO computes it is not reached by 7.
    boxes = [[50 * n, 0, 40, 40] for n in range(20)]
    rows = [{"image_id": 1, "category_id": 1, "bbox": box} for box in boxes]
    truth = {"images": [{"id": 1}], "categories": [{"id": 1, "name": "a"}], "annotations": []}
    truth["annotations"] = [{"id": n, **row} for n, row in enumerate(rows)]
    wrong = [{**rows[0], "bbox": [0, 500, 9, 9], "score": 0.5}] * 9
    detections = [{**row, "score": 0.9 - n / 100} for n, row in enumerate(rows[:7])] + wrong
    detections += [{**row, "score": 0.3} for row in rows[7:]]
    read = read_ground_truth(truth, "bbox", "coco")
    result = bootstrap(read, read_detections(detections, read, "bbox"), resamples=2)
    report = evaluate_detections(truth, detections)
    assert result.ap.measured == pytest.approx(report.summary["AP"], abs=1e-6)
    assert result.ap.values == pytest.approx(report.summary["AP"], abs=1e-6)  # there is but one image to draw


def test_equal_seeds_draw_equal_images_and_differences_are_paired(monkeypatch):
    ground_truth, detections = data(3)
    truth = read_ground_truth(ground_truth, "bbox", "coco")
    worse = [{**row, "score": 1 - row["score"]} for row in detections]
    a, b = (bootstrap(truth, read_detections(rows, truth, "bbox"), resamples=300) for rows in (detections, worse))
    again = bootstrap(truth, read_detections(detections, truth, "bbox"), resamples=300)
    assert (again.ap.values == a.ap.values).all()
    assert not paired_difference(a, again).ap.values.any()
    difference = paired_difference(a, b)
    assert difference.ap.measured == b.ap.measured - a.ap.measured
    assert difference.olrp.values == pytest.approx(b.olrp.values - a.olrp.values)
    monkeypatch.setattr(
        "ranksort.evaluation.bootstrap._CELLS", 1
    )  # more objects, so that fewer resamples fit into memory
    again = bootstrap(truth, read_detections(detections, truth, "bbox"), resamples=300)
    assert again.ap.values == pytest.approx(a.ap.values)
    other = bootstrap(truth, read_detections(detections, truth, "bbox"), resamples=300, seed=1)
    assert (other.ap.values != a.ap.values).any()


def test_interval_is_around_what_was_measured():
    low, high = Resampled(0.4, np.random.default_rng(0).normal(0.45, 0.01, 5000)).interval
    assert low == pytest.approx(0.4 - 1.96 * 0.01, abs=1e-3)
    assert high == pytest.approx(0.4 + 1.96 * 0.01, abs=1e-3)


def test_nothing_found():
    ground_truth, _ = data(1)
    truth = read_ground_truth(ground_truth, "bbox", "coco")
    result = bootstrap(truth, read_detections([], truth, "bbox"), resamples=5)
    assert isinstance(result, Bootstrap)
    assert result.ap.interval == (0, 0)
    assert result.olrp.interval == (1, 1)


def test_scipy_is_asked_for_where_it_is_missing(monkeypatch):
    ground_truth, detections = data(1)
    truth = read_ground_truth(ground_truth, "bbox", "coco")
    monkeypatch.setitem(sys.modules, "scipy.sparse", None)
    with pytest.raises(ValueError, match=r"ranksort\[calibration\]"):
        bootstrap(truth, read_detections(detections, truth, "bbox"), resamples=5)
