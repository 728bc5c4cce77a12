"""Files whose scores end at a threshold are told from whole ones, on detections of real shape."""

from typing import Any

import numpy as np
import pytest

from ranksort.evaluation import evaluate_detections


def detector(seed: int, per_image: int = 40) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Objects, and a detector whose scores are the probability of being right: many low ones, and `per_image` in each image."""
    rng = np.random.default_rng(seed)
    boxes = [[30.0 * n, 0.0, 20.0, 20.0] for n in range(per_image)]
    rows, objects = [], []
    for image in range(60):
        scores = np.sort(rng.beta(0.15, 1.0, per_image))[::-1]
        is_right = rng.random(per_image) < scores
        for box, score, right in zip(boxes, scores.tolist(), is_right, strict=True):
            place = {"image_id": image, "category_id": 1 + (box[0] > 60), "bbox": box}
            rows.append(place | {"score": score})
            objects += [place] if right else []
        objects += [{"image_id": image, "category_id": 1, "bbox": [30.0, 100.0, 20.0, 20.0]}] * (image % 2)  # missed
    images = [{"id": n} for n in range(60)]
    return {
        "images": images,
        "categories": [{"id": 1, "name": "a"}, {"id": 2, "name": "b"}],
        "annotations": [{**row, "id": n} for n, row in enumerate(objects)],
    }, rows


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_cut_files_are_told(seed: int) -> None:
    truth, rows = detector(seed)
    whole = evaluate_detections(truth, rows).summary["AP50"]
    for threshold, is_told in ((0, False), (0.01, False), (0.05, False), (0.12, True), (0.3, True), (0.5, True)):
        report = evaluate_detections(truth, [row for row in rows if row["score"] >= threshold])
        said = [note for note in report.notes() if "cut off" in note]
        assert len(said) == is_told
        if is_told:
            assert f"The lowest score is {threshold:.2f}" in said[0]
            most = float(said[0].partition("up to about ")[2].split()[0])
            assert whole - report.summary["AP50"] <= most / 100


def test_high_scores_which_are_wrong_are_no_threshold() -> None:
    """A detector in training, whose scores all are in .6..1, and one that finds everything."""
    truth, rows = detector(0)
    high = [{**row, "score": 0.6 + 0.4 * row["score"]} for row in rows]
    assert evaluate_detections(truth, high).notes() == []
    perfect = [{**row, "score": 0.9} for row in truth["annotations"]]
    assert evaluate_detections(truth, perfect).notes() == []


def test_a_limit_on_detections_is_no_threshold() -> None:
    truth, rows = detector(0)
    high = [row for row in rows if row["score"] >= 0.06]
    assert evaluate_detections(truth, high, max_detections=1).notes() == []


def test_a_limit_of_the_detector_is_no_threshold() -> None:
    """The best three detections of each image, as `detections_per_image` keeps them: low scores would not help."""
    truth, rows = detector(0)
    best = sorted(rows, key=lambda row: -row["score"])
    kept = [row for n, row in enumerate(best) if sum(r["image_id"] == row["image_id"] for r in best[:n]) < 3]
    shifted = [{**row, "score": 0.2 + 0.8 * row["score"]} for row in kept]
    assert evaluate_detections(truth, shifted).notes() == []
    best_of = {row["image_id"]: n for n, row in reversed([*enumerate(shifted)]) if row["image_id"] % 4 == 0}
    fewer = [row for n, row in enumerate(shifted) if n not in best_of.values()]
    assert len(fewer) == len(shifted) - 15  # images that have fewer than the others, and low scores, too
    assert evaluate_detections(truth, fewer).notes() == []
    assert not any("lowest score" in note for note in evaluate_detections(truth, shifted[:1]).notes())
