import math
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as mask_utils

from ranksort.evaluation.merging import merge_rows, soft_nms
from ranksort.evaluation.result_rows import boxes_of_masks


def row(box, score, image=1, category=1, **more):
    return {"image_id": image, "category_id": category, "bbox": list(map(float, box)), "score": score, **more}


def iou_of(a, b):
    width, height = (max(0, min(a[n] + a[n + 2], b[n] + b[n + 2]) - max(a[n], b[n])) for n in (0, 1))
    overlap = width * height
    return overlap / (a[2] * a[3] + b[2] * b[3] - overlap) if overlap else 0.0


def plain_merge(parts):
    """One image and class: {position: (score, box)} by loops over the definition."""
    rows = [r for part in parts for r in part]
    left = {}
    for own in parts:
        for r in own:
            says = []
            for other in (part for part in parts if part is not own):
                near = ((iou_of(o["bbox"], r["bbox"]), o["score"]) for o in other)
                says.append(max((s * math.exp(-((1 - iou) ** 2) / 0.1) for iou, s in near if iou > 0.01), default=0.0))
            left[len(left)] = (r["score"] + sum(says)) / sum(map(bool, parts))
    result = {}
    while left:
        best = max(left, key=left.get)
        score = left.pop(best)
        left = {n: s * math.exp(-(iou_of(rows[n]["bbox"], rows[best]["bbox"]) ** 2) / 0.5) for n, s in left.items()}
        near = [(iou_of(r["bbox"], rows[best]["bbox"]), r) for r in rows]
        weights = [(r["score"] * math.exp(-((1 - iou) ** 2) / 0.025), r) for iou, r in near if iou > 0.01]
        x, y, right, below = (
            sum(w * corner(r["bbox"]) for w, r in weights) / sum(w for w, _ in weights)
            for corner in (lambda b: b[0], lambda b: b[1], lambda b: b[0] + b[2], lambda b: b[1] + b[3])
        )
        result[best] = (score, [x, y, right - x, below - y])
    return result


sizes = st.tuples(st.integers(0, 60), st.integers(0, 60), st.integers(20, 60), st.integers(20, 60))


@given(st.lists(sizes, min_size=2, max_size=12, unique=True), st.randoms(use_true_random=False))
@settings(max_examples=60, deadline=None)
def test_equals_plain_loops(boxes, random):
    rows = [row(box, 0.01 + 0.99 * random.random(), n=n) for n, box in enumerate(boxes)]
    far = [row(box, 0.5, image=2) for box in boxes[:2]]  # a group of another size
    cut = len(rows) // 3
    parts = [rows[:1], rows[1 : 1 + cut], rows[1 + cut :]]
    merged = merge_rows({"a": [*far[:1], *parts[0]], "b": parts[1], "c": [*parts[2], *far[1:]]})
    expected = plain_merge(parts)
    got = [r for r in merged if r["image_id"] == 1]
    assert {r["n"] for r in got} == {n for n, (score, _) in expected.items() if score > 1e-6}
    for r in got:
        score, box = expected[r["n"]]
        assert r["score"] == pytest.approx(score, abs=1e-9)
        assert r["bbox"] == pytest.approx(box, abs=1e-6)
    assert [r["score"] for r in got] == sorted((r["score"] for r in got), reverse=True)


def test_the_box_moves_between_those_of_two_detectors():
    a, b = row([0, 0, 100, 100], 0.6), row([10, 0, 100, 100], 0.6)
    (best, other) = merge_rows({"a": [a], "b": [b]})
    assert 0 < best["bbox"][0] < 5
    assert 0.5 < best["score"] < 0.6
    assert other["score"] < 0.2
    assert a["bbox"][0] == 0  # what is given stays


def test_scores_are_the_mean_of_what_detectors_say():
    a, b, far = row([0, 0, 10, 10], 0.9), row([0, 0, 10, 10], 0.3), row([50, 50, 10, 10], 0.8)
    assert [r["score"] for r in merge_rows({"a": [a, far], "b": [b]})] == pytest.approx([0.6, 0.4, 0.6 * math.exp(-2)])
    own = row([0, 0, 10, 10], 0.2)  # of the same detector: it has said .9 of the first, and .2 of this one
    assert merge_rows({"a": [a, own], "b": [b]})[0]["score"] == pytest.approx(0.6)
    # Who never finds a class has no say in it; who finds it in other images has.
    other = [row([0, 0, 10, 10], 0.7, category=2)]
    assert [r["score"] for r in merge_rows({"a": [a], "b": other})] == [0.9, 0.7]
    elsewhere = [row([0, 0, 10, 10], 0.7, image=2)]
    assert [r["score"] for r in merge_rows({"a": [a], "b": [*other, *elsewhere]})] == [0.7, 0.45, 0.35]
    same = {name: [a, far] for name in "abc"}
    assert [r["score"] for r in merge_rows(same)][:2] == pytest.approx([0.9, 0.8])


def test_images_and_classes_are_merged_apart():
    box = [0, 0, 10, 10]
    parts = {"a": [row(box, 0.9), row(box, 0.8, category=2)], "b": [row(box, 0.7, image=1.0), row(box, 0.6, image="x")]}
    merged = merge_rows(parts)
    assert [(r["image_id"], r["category_id"]) for r in merged] == [(1, 1), (1, 2), (1.0, 1), ("x", 1)]
    assert [r["score"] for r in merged] == pytest.approx([0.8, 0.8, 0.8 * math.exp(-2), 0.3])


@pytest.mark.parametrize("spelling", [str, float])
def test_ids_are_the_same_in_any_spelling(spelling):
    box = [0, 0, 10, 10]
    merged = merge_rows({"a": [row(box, 0.9)], "b": [row(box, 0.8, spelling(1), spelling(1))]})
    alike = merge_rows({"a": [row(box, 0.9)], "b": [row(box, 0.8)]})
    assert [r["score"] for r in merged] == [r["score"] for r in alike]


def test_masks_stay_with_their_boxes_and_other_fields_with_both():
    mask = {"size": [20, 20], "counts": "abc"}
    parts = {"a": [row([0, 0, 10, 10], 0.9, segmentation=mask, model="a")], "b": [row([1, 0, 10, 10], 0.8)]}
    best, other = merge_rows(parts)
    assert (best["bbox"], best["segmentation"], best["model"]) == ([0, 0, 10, 10], mask, "a")
    assert other["bbox"][0] != 1


def test_the_best_of_an_image_are_kept():
    parts = {name: [row([50 * n, 0, 9, 9], 0.1 * (n + 1), i) for n in range(9) for i in (1, 2)] for name in "ab"}
    merged = merge_rows(parts, detections_per_image=3)
    assert [r["image_id"] for r in merged] == [1, 1, 1, 2, 2, 2]
    assert [r["score"] for r in merged[:3]] == pytest.approx([0.9, 0.8, 0.7])


def test_groups_of_any_size_are_independent():
    random = np.random.default_rng(0)
    scores, iou = random.random((5, 6)), random.random((5, 6, 6))
    alone = np.concatenate([soft_nms(scores[g : g + 1], iou[g : g + 1]) for g in range(5)])
    assert (soft_nms(scores, iou) == alone).all()
    padded = soft_nms(np.pad(scores, ((0, 0), (0, 2))), np.pad(iou, ((0, 0), (0, 2), (0, 2))))
    assert padded[:, :6] == pytest.approx(alone)


def test_many_equal_boxes_leave_the_best():
    picked = soft_nms(np.linspace(0.1, 0.9, 900)[None], np.ones((1, 900, 900)))[0]
    assert picked[-1] == 0.9
    assert picked[:-1].max() == pytest.approx(0.9 * math.exp(-2), rel=0.01)


def test_one_crowded_image_among_many_takes_no_more_memory_than_it_needs():
    crowded = [row([n, 0, 10, 10], (n + 1) / 300) for n in range(300)]
    others = [row([0, 0, 10, 10], 0.5, image) for image in range(2, 3000)]
    tracemalloc.start()
    merged = merge_rows({"a": crowded + others, "b": others})
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert {r["image_id"] for r in merged} == {*range(1, 3000)}
    assert peak < 30e6


def test_what_cannot_be_merged():
    box = [0, 0, 10, 10]
    with pytest.raises(ValueError, match=r"b.json have no image_id in common"):
        merge_rows({"a.json": [row(box, 0.5)], "b.json": [row(box, 0.5, image=2)], "c.json": [row(box, 0.5)]})
    mask = {key: value for key, value in row(box, 0.5, segmentation={}).items() if key != "bbox"}
    with pytest.raises(ValueError, match=r"1 of 2 rows of the b.json have no 'bbox'.* \(position 1\)"):
        merge_rows({"a.json": [row(box, 0.5)], "b.json": [row(box, 0.5), mask]})
    with pytest.raises(ValueError, match="x, y, width and height"):
        merge_rows({"a.json": [row([0, 0, -1, 5], 0.5)], "b.json": []})
    assert merge_rows({"a.json": [], "b.json": []}) == []


def test_masks_without_boxes_are_compared_by_the_boxes_around_them():
    mask = np.zeros((40, 50), dtype=np.uint8, order="F")
    mask[10:30, 5:25] = 1
    rle = mask_utils.encode(mask)
    forms = [
        {"size": [40, 50], "counts": rle["counts"].decode()},
        {"size": [40, 50], "counts": uncompressed(mask)},
        [[5, 10, 25, 10, 25, 30, 5, 30], [6.5, 12]],
    ]
    assert boxes_of_masks(forms).tolist() == [[5, 10, 20, 20]] * 3
    rows = [
        {"image_id": 1, "category_id": 1, "score": score, "segmentation": forms[n]}
        for n, score in enumerate((0.8, 0.4, 0.6))
    ]
    first, *others = merge_rows({"a": rows[:1], "b": rows[1:]})
    assert first == rows[0] | {"score": pytest.approx(0.7)}
    assert [row["score"] for row in others] == pytest.approx([0.7 * math.exp(-2), 0.6 * math.exp(-4)])
    assert merge_rows({"a": [rows[0] | {"bbox": []}], "b": rows[1:]}) == [first | {"bbox": []}, *others]
    with_boxes = merge_rows({"a": rows[:1], "b": [row([5, 10, 20, 20], 0.6)]})
    assert [r["score"] for r in with_boxes] == pytest.approx([0.7, 0.7 * math.exp(-2)])


@pytest.mark.parametrize(
    "mask",
    [
        {"size": [40, 50], "counts": "nonsense"},
        {"size": [40, 50], "counts": [1, 2]},
        {"size": [40], "counts": [40]},
        {"size": [1 << 17, 1 << 17], "counts": [1 << 34]},
        {"counts": [2000]},
        [[1, 2, 3]],
        "polygon",
        [1, 2, 3, 4, 5, 6],
    ],
)
def test_masks_that_are_none_are_named(mask):
    rows = [row([0, 0, 9, 9], 0.5), {"image_id": 1, "category_id": 1, "score": 0.5, "segmentation": mask}]
    with pytest.raises(ValueError, match=r"1 of 2 rows of the b have a mask that is neither .* \(position 1\)"):
        merge_rows({"a": rows[:1], "b": rows})


def uncompressed(mask):
    pixels = mask.flatten(order="F")
    bounds = np.flatnonzero(np.diff(pixels, prepend=0)).tolist()
    return np.diff([0, *bounds, len(pixels)]).tolist()
