"""Files whose scores end at a threshold are told from whole ones, on detections of real shape."""

from typing import Any

import numpy as np
import pytest

from ranksort.evaluation import evaluate_detections
from ranksort.evaluation.lrp import Matches
from ranksort.evaluation.score_cut import find_score_cut


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


@pytest.mark.parametrize(("full", "is_told"), [(4, True), (6, False)])
def test_most_of_the_lowest_scores_are_in_full_images_or_not(full: int, is_told: bool) -> None:
    """100 detections, of which 30 are right, in images of 10 or of 5; of the ten lowest so many are in images of 10."""
    image = np.concatenate([np.repeat(np.arange(6), 10), np.repeat(np.arange(6, 14), 5)])
    low = np.concatenate([np.arange(full), 60 + np.arange(10 - full)])
    others = np.setdiff1d(np.arange(100), low)
    score, outcome = np.empty(100), np.zeros(100, dtype=np.int64)
    score[[*low, *others]] = np.linspace(0.5, 0.9, 100)
    outcome[[*low[:3], *others[:27]]] = 1
    nothing, one = np.zeros(100, dtype=np.int64), np.zeros(50, dtype=np.int64)
    fields = {"score": score, "image": image, "outcome": outcome, "category": nothing, "object_category": one}
    matches = Matches(**{name: fields.get(name, nothing) for name in Matches._fields})
    assert (find_score_cut(0.5, matches) is not None) == is_told
