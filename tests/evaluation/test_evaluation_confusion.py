from typing import Any

import numpy as np
import pytest
from evaluation_data import data_sets, random_masks
from hypothesis import given, settings
from oracles import confusion as oracle

from ranksort.evaluation import evaluate_detections
from ranksort.evaluation.confusion import BACKGROUND, BOTH, CLASS, DUPLICATE, LOCALIZATION, MISSED, Errors, find_errors
from ranksort.evaluation.overlaps import compare
from ranksort.evaluation.report import Report

CAT, DOG = 1, 2
OBJECT = [100.0, 100.0, 40.0, 40.0]


def report(objects: list[tuple[int, list[float]]], found: list[tuple[int, list[float], float]]) -> Report:
    """Of an image with objects (class, box) and detections (class, box, score)."""
    truth = {
        "images": [{"id": 1}],
        "categories": [{"id": CAT, "name": "cat"}, {"id": DOG, "name": "dog"}],
        "annotations": [
            {"id": n, "image_id": 1, "category_id": category, "bbox": box}
            for n, (category, box) in enumerate(objects, 1)
        ],
    }
    rows = [{"image_id": 1, "category_id": category, "bbox": box, "score": score} for category, box, score in found]
    return evaluate_detections(truth, rows)


def errors_of(result: Report) -> Errors:
    ground_truth, candidates, _ = result.matched
    return find_errors(result.matched, compare(ground_truth, candidates))


def kinds(result: Report) -> list[int]:
    """Of the detections in the order of the results."""
    order = np.argsort(result.matches.place)
    return errors_of(result).kind[order].tolist()


@pytest.mark.parametrize(
    ("category", "box", "kind"),
    [
        (CAT, [100, 100, 40, 38], -1),
        (CAT, [100, 100, 40, 10], LOCALIZATION),
        (CAT, [100, 100, 40, 3], BACKGROUND),
        (DOG, [100, 100, 40, 38], CLASS),
        (DOG, [100, 100, 40, 10], BOTH),
        (DOG, [100, 100, 40, 3], BACKGROUND),
        (CAT, [300, 300, 40, 40], BACKGROUND),
    ],
)
def test_the_kind_of_one_detection(category: int, box: list[float], kind: int) -> None:
    result = report([(CAT, OBJECT)], [(category, box, 0.5)])
    assert kinds(result) == [kind]
    missed = kind in (BACKGROUND, BOTH)
    assert errors_of(result).missed.tolist() == [missed]
    costs = errors_of(result).costs[:, 0]
    # If the one error were fixed, the only object would be found; one which is missed would not be there.
    expected = {LOCALIZATION: [LOCALIZATION], CLASS: [CLASS]}.get(kind, [MISSED] if missed else [])
    assert np.flatnonzero(costs).tolist() == expected
    assert costs[expected] == pytest.approx(1)


def test_a_second_detection_of_an_object_is_a_duplicate() -> None:
    result = report(
        [(CAT, OBJECT), (CAT, [0, 0, 40, 40])], [(CAT, OBJECT, 0.9), (CAT, OBJECT, 0.8), (CAT, [0, 0, 40, 40], 0.7)]
    )
    assert kinds(result) == [-1, DUPLICATE, -1]
    # Precision 1, 1/2, 2/3: 51 recalls up to .5 at 1, 50 at 2/3.
    assert errors_of(result).costs[DUPLICATE, 0] == pytest.approx(50 / 101 / 3)


def test_only_one_error_about_an_object_is_made_right() -> None:
    """The dog on the cat scores higher than the loose cat: to know its class finds the cat, a better box does not."""
    result = report([(CAT, OBJECT)], [(DOG, OBJECT, 0.9), (CAT, [100, 100, 40, 15], 0.8)])
    assert kinds(result) == [CLASS, LOCALIZATION]
    costs = errors_of(result).costs[:, 0]
    assert costs[CLASS] == pytest.approx(1)
    assert costs[LOCALIZATION] == 0


def test_classes_that_are_confused_are_counted() -> None:
    far: list[float] = [300, 300, 40, 40]
    objects = [(CAT, OBJECT), (CAT, far), (DOG, [200, 0, 40, 40])]
    result = report(objects, [(DOG, [200, 0, 40, 40], 0.9), (DOG, OBJECT, 0.8), (DOG, far, 0.1), (CAT, far, 0.3)])
    summary = result.analysis.summary
    # Dogs are best from .9 on, where neither error is; of all detections two are cats taken for dogs.
    assert summary.pairs.tolist() == [[1, 0, 2, 0]]
    assert summary.number.tolist() == [0, 2, 0, 0, 0, 0]
    assert summary.kept.tolist() == [0, 0, 0, 0, 0, 1]
    assert result.analysis.confused(result.categories) == []
    said = result.analysis.as_dict(result)["errors"]
    pair = {"detected": "dog", "detected_id": 2, "object": "cat", "object_id": 1}
    assert said["pairs"] == [{**pair, "detections": 2, "at_best_thresholds": 0, "images": []}]
    assert said["per_class"] == [[0, 0, 0, 0, 0, 1], [0] * 6]


def test_without_any_detection_all_is_missed() -> None:
    result = report([(CAT, OBJECT), (DOG, OBJECT)], [])
    assert errors_of(result).costs[:, :2].tolist() == [[0, 0]] * 5 + [[1, 1]]


def test_crowds_are_no_error() -> None:
    truth: dict[str, Any] = {
        "images": [{"id": 1}],
        "categories": [{"id": CAT, "name": "cat"}, {"id": DOG, "name": "dog"}],
        "annotations": [
            {"id": 1, "image_id": 1, "category_id": CAT, "bbox": OBJECT, "iscrowd": 1, "area": 1600},
            {"id": 2, "image_id": 1, "category_id": DOG, "bbox": [0, 0, 9, 9], "iscrowd": 0, "area": 81},
        ],
    }
    rows = [{"image_id": 1, "category_id": category, "bbox": OBJECT, "score": 0.5} for category in (CAT, DOG)]
    # The cat lies on a crowd of cats; the dog is no dog, and whether there is a single cat nobody knows.
    assert kinds(evaluate_detections(truth, rows)) == [-1, BACKGROUND]


@settings(max_examples=60, deadline=None)
@given(data_sets())
def test_equals_the_oracle(data: tuple[dict[str, Any], list[dict[str, Any]]]) -> None:
    check(*data, "coco")


@settings(max_examples=60, deadline=None)
@given(data_sets())
def test_equals_the_oracle_by_the_rules_of_lvis(data: tuple[dict[str, Any], list[dict[str, Any]]]) -> None:
    truth, found = data
    for n, image in enumerate(truth["images"]):
        image["neg_category_ids"], image["not_exhaustive_category_ids"] = [[7], [3], []][n], [[], [], [0, 3]][n]
    for category in truth["categories"]:
        category["frequency"] = "c"
    check(truth, found, "lvis")


def check(truth: dict[str, Any], found: list[dict[str, Any]], style: str) -> None:
    result = evaluate_detections(truth, found, style=style)
    errors, expected = errors_of(result), oracle.find_errors(truth, found, style == "lvis")
    got = {
        place: kind
        for place, kind in zip(result.matches.place.tolist(), errors.kind.tolist(), strict=True)
        if kind >= 0
    }
    assert got == expected["kinds"]
    assert np.flatnonzero(errors.missed).tolist() == expected["missed"]
    positions = {category.id: n for n, category in enumerate(result.categories)}
    assert {positions[c] for c in expected["ap"]} == set(np.flatnonzero(~np.isnan(errors.ap)).tolist())
    for c, value in expected["ap"].items():
        assert errors.ap[positions[c]] == pytest.approx(value)
        row = next(row for row in result.per_class if row["category_id"] == c)
        assert row["AP50"] == pytest.approx(value)
        for kind in range(6):
            assert errors.costs[kind, positions[c]] == pytest.approx(expected["costs"][kind][c])


def test_masks_are_compared_by_their_pixels() -> None:
    truth, found = random_masks(3)
    boxes, masks = (errors_of(evaluate_detections(truth, found, kind)) for kind in ("bbox", "segm"))
    assert (np.sort(boxes.kind) != np.sort(masks.kind)).any()
    assert set(masks.kind.tolist()) <= {-1, *range(6)}
