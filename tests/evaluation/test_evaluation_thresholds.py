import json
from pathlib import Path

import numpy as np
import pytest
from evaluation_data import data_sets, random_masks
from hypothesis import given, settings
from hypothesis import strategies as st

from ranksort.data.coco_columns import Category
from ranksort.evaluation import evaluate_detections
from ranksort.evaluation.model_scores import find_thresholds
from ranksort.evaluation.page import save_reports
from ranksort.evaluation.thresholds import Wish, _points, parse_threshold, read_thresholds, thresholds_content


def reach(checkpoint, categories, wish=Wish("lrp")):  # noqa: B008
    return find_thresholds(checkpoint, {}, categories).reach(wish)


def test_thresholds_are_those_of_the_report(tmp_path: Path) -> None:
    truth, detections = random_masks(2)
    boxes, masks = (evaluate_detections(truth, detections, kind) for kind in ("bbox", "segm"))
    save_reports(tmp_path / "report", [boxes, masks])
    content = json.loads((tmp_path / "report" / "thresholds.json").read_bytes())
    first, second = (row["oLRP_threshold"] for row in boxes.per_class)
    rows = content.pop("thresholds")
    assert content == {"iou_type": "bbox", "scores": "raw", "default": pytest.approx((first + second) / 2)}
    names = ("category_id", "class", "threshold")
    assert [[row[name] for name in names] for row in rows] == [
        [0, "class 0", first],
        [3, "class 3", second],
        [7, "class 7", None],  # has no objects
    ]
    assert [row.get("objects") for row in rows] == [*(row["objects"] for row in boxes.per_class), None]

    categories = [Category(id, f"class {id}") for id in (7, 3, 99, 0)]
    for checkpoint in (tmp_path, tmp_path / "a.safetensors", tmp_path / "checkpoints" / "best.ckpt"):
        of_masks = [row["oLRP_threshold"] for row in masks.per_class]
        mean = sum(of_masks) / 2
        reached = reach(checkpoint, categories)
        assert reached.values == pytest.approx([mean, of_masks[1], mean, of_masks[0]])
        (remark,) = reached.remarks
        assert "no true positives of class 7, class 99: the mean threshold of the other classes is used" in remark
    save_reports(tmp_path / "report", [boxes])
    assert reach(tmp_path, categories[1::2]).values == [second, first]
    with pytest.raises(ValueError, match="no threshold for any class"):
        reach(tmp_path, [Category(0, "of another model")])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (0.25, 0.25),
        ("0", 0.0),
        (1, 1.0),
        ("lrp", Wish("lrp")),
        ("precision:.9", Wish("precision", 0.9)),
        ("recall:1", Wish("recall", 1.0)),
    ],
)
def test_what_a_threshold_may_be(text: float | str, expected: float | Wish) -> None:
    assert parse_threshold(text) == expected or str(parse_threshold(text)) == str(expected)


@pytest.mark.parametrize(
    "text",
    ["high", "", "precision", "precision:", "precision:90", "recall:0", "lrp:.5", "recall:nan", -0.1, 1.1, [0.5]],
)
def test_what_no_threshold_is(text: float | str) -> None:
    with pytest.raises(
        ValueError, match=r'must be a number within 0\.\.1, "lrp", "precision:P" or "recall:R"'
    ) as error:
        parse_threshold(text)
    assert repr(text) in str(error.value)


@given(data_sets(), st.sampled_from(["precision", "recall"]), st.integers(1, 1000))
@settings(max_examples=60, deadline=None)
def test_thresholds_applied_reach_what_was_wished(data, kind, thousandths) -> None:
    truth, detections = data
    report, wish = evaluate_detections(truth, detections), Wish(kind, thousandths / 1000)
    thresholds = read_thresholds(json.loads(json.dumps(thresholds_content(report))), "it")
    for row in report.per_class:
        category = Category(row["category_id"], row["class"])
        c, matches = [info.id for info in report.categories].index(category.id), report.matches
        shares = {}  # precision and recall by threshold
        for score in set(matches.score[matches.category == c].tolist()):
            kept = matches.outcome[(matches.category == c) & (matches.score >= score)]
            shares[score] = ((kept == 1).sum() / max((kept >= 0).sum(), 1), (kept == 1).sum() / row["objects"])
        if not any(tp for _, tp in shares.values()):
            with pytest.raises(ValueError, match=r"no threshold for any class|no precisions and recalls"):
                thresholds.reach(wish, [category])
            continue
        (value,), remarks = thresholds.reach(wish, [category])
        place = kind == "recall"
        good = {score: share for score, share in shares.items() if share[place] >= wish.share}
        assert bool(remarks) == (not good)
        if not good:
            assert shares[value][place] == max(share[place] for share in shares.values())
            assert f"{wish} is never reached in it for {category.name} (at most" in remarks[0]
        elif kind == "recall":
            assert value == max(good)
        else:  # of those with the most true positives
            assert shares[value][0] >= wish.share
            assert shares[value][1] == max(share[1] for share in good.values())


def test_large_classes_have_a_thousand_points_a_measure_at_most() -> None:
    random = np.random.default_rng(0)
    scores = np.sort(random.random(200_000))[::-1]
    outcome = (random.random(200_000) < scores**2).astype(np.int8)
    points = _points(scores, outcome, 80_000)
    assert 1000 < len(points["scores"]) <= 2002
    tp, found = np.cumsum(outcome == 1), np.arange(1, 200_001)
    for share in (0.45, 0.7, 0.812, 0.95):
        precision = np.array(points["true_positives"]) / points["detections"]
        assert points["true_positives"][np.flatnonzero(precision >= share)[-1]] == tp[tp / found >= share][-1]
        needed = int(np.argmax(tp / 80_000 >= share))
        recall = np.array(points["true_positives"]) / 80_000
        if tp[-1] / 80_000 >= share:
            assert points["scores"][int(np.argmax(recall >= share))] == scores[needed]


def test_what_is_wrong_with_thresholds(tmp_path: Path) -> None:
    truth, _ = random_masks(2)
    categories = [Category(0, "class 0")]
    with pytest.raises(FileNotFoundError, match=r"there is no .*thresholds.json.*ranksort test"):
        reach(tmp_path, categories)
    checkpoint = tmp_path / "some.safetensors"
    checkpoint.touch()
    with pytest.raises(FileNotFoundError, match=rf"with `ranksort test {checkpoint} --out {tmp_path}/report`"):
        reach(checkpoint, categories)
    evaluate_detections(truth, []).save(tmp_path / "report")
    assert json.loads((tmp_path / "report" / "thresholds.json").read_bytes())["default"] is None
    with pytest.raises(ValueError, match="no threshold for any class"):
        reach(tmp_path, categories)
    run = tmp_path / "run"
    run.mkdir()
    with pytest.raises(
        FileNotFoundError, match=f"there is no {run}/report"
    ):  # that of the folder around it is another's
        reach(run, categories)
    row = '{"category_id": 0, "class": "class 0", "threshold": 0.5, "objects": 2, "scores": [0.5], '
    for damaged in (
        "[",
        "{}",
        '{"iou_type": "bbox", "default": null, "thresholds": [{"category_id": 0, "threshold": "high"}]}',
        f'{{"iou_type": "bbox", "default": 0.5, "thresholds": [{row}"detections": [2], "true_positives": [3]}}]}}',
        f'{{"iou_type": "bbox", "default": 0.5, "thresholds": [{row}"detections": [2], "true_positives": []}}]}}',
    ):
        (tmp_path / "report" / "thresholds.json").write_text(damaged)
        with pytest.raises(ValueError, match="is damaged: evaluate the run again"):
            reach(tmp_path, categories)


def test_thresholds_of_other_scores_are_refused(tmp_path: Path) -> None:
    truth, detections = random_masks(2)
    report = evaluate_detections(truth, detections)
    report.scores_are = "calibrated"
    report.save(tmp_path / "report")
    with pytest.raises(ValueError, match="is for scores that were calibrated"):
        reach(tmp_path, [Category(0, "class 0")])
