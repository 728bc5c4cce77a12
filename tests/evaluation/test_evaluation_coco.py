import copy
import faulthandler
import json
from pathlib import Path

import numpy as np
import pytest
from evaluation_data import data_sets, random_masks
from hypothesis import given, settings
from pycocotools import mask as mask_utils
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from ranksort.evaluation import evaluate_detections

SHARED = Path(__file__).resolve().parents[2] / "../shared"
GOLDEN = SHARED / "golden/evaluation"
LVIS = SHARED / "data/lvis100"
NAMES = {
    "AR@300": "AR300",
    "ARs@300": "ARs",
    "ARm@300": "ARm",
    "ARl@300": "ARl",
    "oLRP_Localisation": "oLRP_loc",
    "oLRP_false_positive": "oLRP_fp",
    "oLRP_false_negative": "oLRP_fn",
    "oLRP_small": "oLRPs",
    "oLRP_medium": "oLRPm",
    "oLRP_large": "oLRPl",
    "lrp_optimal_threshold": "oLRP_threshold",
}
COCO_CASES = ["coco128_val_bbox", "coco128_val_segm", "val2014_100_fakebbox100", "val2014_100_fakesegm100"]
LVIS_CASES = [
    f"lvis100_{quality}_{kind}"
    for quality in ("poor", "mid", "good")
    for kind in ("bbox", "segm", "segm_without_bbox_field")
]


def without_ties(detections):
    """The detections with scores that differ by 1e-14 where they were equal, in the order in which they are evaluated.

    The authors' evaluator takes a minimum of the LRP error between equal scores, which no threshold reaches and ours does not take: so
    both find the same, and all else stays as it is.
    """
    order = sorted(range(len(detections)), key=lambda n: (-detections[n]["score"], detections[n]["image_id"], n))
    rank = {n: place for place, n in enumerate(order)}
    return [{**row, "score": max(row["score"] - 1e-14 * rank[n], 0)} for n, row in enumerate(detections)]


@pytest.mark.parametrize("case", COCO_CASES + LVIS_CASES)
def test_golden_figures(case):
    if not GOLDEN.is_dir():
        pytest.skip(f"the golden figures are not at {GOLDEN}")
    expected = json.loads((GOLDEN / f"{case}.expected.json").read_text())
    style = "lvis" if case in LVIS_CASES else "coco"
    truth = (LVIS / "annotations" if style == "lvis" else GOLDEN) / expected["ground_truth"]
    found = json.loads(((LVIS / "results" if style == "lvis" else GOLDEN) / expected["results"]).read_text())
    if case.endswith("without_bbox_field"):
        found = [{key: value for key, value in row.items() if key != "bbox"} for row in found]
    report = evaluate_detections(truth, without_ties(found), expected["iou_type"], style)

    summary = report.as_dict()
    figures = {NAMES.get(key, key): value for key, value in (expected["stats"] | expected["olrp"]).items()}
    compared = {key: value for key, value in figures.items() if key in summary}
    assert len(compared) == (20 if style == "lvis" else 19)
    assert {key: summary[key] for key in compared} == pytest.approx(compared, abs=1e-9)

    per_class = expected.get("classes_with_gt") or {
        "category_ids": expected["category_ids"],
        **expected["per_class"],
        **expected["olrp"]["per_class"],
    }
    rows = {row["category_id"]: row for row in report.per_class}
    for key in per_class.keys() - {"category_ids"}:
        for category_id, value in zip(per_class["category_ids"], per_class[key], strict=True):
            if value == -1:
                assert category_id not in rows
            else:
                value = np.nan if value is None else value
                assert rows[category_id][NAMES.get(key, key)] == pytest.approx(value, abs=1e-9, nan_ok=True)


@pytest.mark.parametrize(
    "case", ["coco128_val_bbox", "val2014_100_fakesegm100", "lvis100_poor_bbox", "lvis100_mid_segm"]
)
def test_ties_move_olrp_by_less_than_a_thousandth_and_nothing_else(case):
    if not GOLDEN.is_dir():
        pytest.skip(f"the golden figures are not at {GOLDEN}")
    expected = json.loads((GOLDEN / f"{case}.expected.json").read_text())
    style = "lvis" if case in LVIS_CASES else "coco"
    truth = (LVIS / "annotations" if style == "lvis" else GOLDEN) / expected["ground_truth"]
    found = (LVIS / "results" if style == "lvis" else GOLDEN) / expected["results"]
    summary = evaluate_detections(truth, found, expected["iou_type"], style).as_dict()
    figures = {NAMES.get(key, key): value for key, value in expected["stats"].items()}
    assert {key: summary[key] for key in figures} == pytest.approx(figures, abs=1e-9)
    assert 0 <= summary["oLRP"] - expected["olrp"]["oLRP"] < 0.001


def official_stats(ground_truth, detections, iou_type):
    truth = COCO()
    truth.dataset = copy.deepcopy(ground_truth)
    truth.createIndex()
    evaluator = COCOeval(truth, truth.loadRes(copy.deepcopy(detections)), iou_type)
    evaluator.evaluate()
    evaluator.accumulate()
    evaluator.summarize()
    return np.where(evaluator.stats == -1, np.nan, evaluator.stats)


@given(data_sets())
@settings(max_examples=40, deadline=None)
def test_boxes_agree_with_pycocotools(data):
    ground_truth, detections = data
    ours = list(evaluate_detections(ground_truth, detections).as_dict().values())[:12]
    if detections:  # pycocotools does not load an empty list
        official = official_stats(ground_truth, detections, "bbox")
        np.testing.assert_allclose(ours, official, rtol=0, atol=1e-12)


@pytest.mark.parametrize("with_boxes", [True, False])
def test_masks_agree_with_pycocotools(with_boxes):
    ground_truth, detections = random_masks(5)
    if not with_boxes:
        for row in detections:
            del row["bbox"]
    ours = list(evaluate_detections(ground_truth, detections, "segm").as_dict().values())[:12]
    np.testing.assert_allclose(ours, official_stats(ground_truth, detections, "segm"), rtol=0, atol=1e-12)


def test_masks_of_images_of_any_widths_agree_with_pycocotools():
    """Compared with a mask of an image of another width, a mask would keep pycocotools busy forever."""
    rng = np.random.default_rng(0)
    widths = [63 - 3 * n for n in range(12)]
    images = [{"id": n, "height": 40, "width": width} for n, width in enumerate(widths)]
    rows = []
    for n, category in ((image["id"], c) for image in images for c in (1, 2, 3)):
        mask = np.zeros((40, widths[n]), dtype=np.uint8, order="F")
        mask[5:35, 5 : 15 + rng.integers(15)] = 1
        rle = mask_utils.encode(mask)
        shape = {"size": list(mask.shape), "counts": rle["counts"].decode()}
        box = {"bbox": mask_utils.toBbox(rle).tolist(), "area": int(mask.sum()), "segmentation": shape}
        rows.append({"id": len(rows) + 1, "image_id": n, "category_id": category, "iscrowd": 0, **box})
    ground_truth = {"images": images, "categories": [{"id": c, "name": str(c)} for c in (1, 2, 3)], "annotations": rows}
    detections = [
        {key: row[key] for key in ("image_id", "category_id", "segmentation", "bbox")} | {"score": float(rng.random())}
        for row in rows
    ]
    faulthandler.dump_traceback_later(60, exit=True)  # Python cannot interrupt it
    ours = list(evaluate_detections(ground_truth, detections, "segm").as_dict().values())[:12]
    faulthandler.cancel_dump_traceback_later()
    np.testing.assert_allclose(ours, official_stats(ground_truth, detections, "segm"), rtol=0, atol=1e-12)


def test_paths_and_content_give_the_same_and_nothing_is_printed_or_changed(tmp_path, capfd):
    ground_truth, detections = random_masks(1)
    before = copy.deepcopy((ground_truth, detections))
    paths = tmp_path / "truth.json", tmp_path / "found.json"
    for path, content in zip(paths, before, strict=True):
        path.write_text(json.dumps(content))
    report = evaluate_detections(ground_truth, detections, "segm")
    from_files = evaluate_detections(paths[0], str(paths[1]), "segm")
    assert from_files.as_dict() == pytest.approx(report.as_dict(), nan_ok=True)
    assert (ground_truth, detections) == before
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("iou_type", ["bbox", "segm"])
def test_no_detections_are_the_worst_result(iou_type):
    ground_truth, _ = random_masks(1)
    summary = evaluate_detections(ground_truth, [], iou_type).as_dict()
    assert summary["AP"] == summary["AP50"] == summary["AR100"] == 0
    assert summary["oLRP"] == summary["oLRP_fn"] == 1
    assert np.isnan([summary["oLRP_loc"], summary["oLRP_fp"]]).all()


def test_an_object_with_id_0_can_be_found():
    # pycocotools itself takes the id 0 for "no match".
    box = [0, 0, 50, 50]
    annotation = {"id": 0, "image_id": "a.jpg", "category_id": 0, "bbox": box}
    ground_truth = {"images": [{"id": "a.jpg"}], "categories": [{"id": 0}], "annotations": [annotation]}
    detections = [{"image_id": "a.jpg", "category_id": 0, "bbox": box, "score": 0.5}]
    summary = evaluate_detections(ground_truth, detections).as_dict()
    assert (summary["AP"], summary["oLRP"]) == (pytest.approx(1), 0)


@pytest.mark.parametrize("case", COCO_CASES)
def test_golden_olrp_by_area(case):
    if not GOLDEN.is_dir():
        pytest.skip(f"the golden figures are not at {GOLDEN}")
    expected = json.loads((GOLDEN / f"{case}.expected.json").read_text())
    found = without_ties(json.loads((GOLDEN / expected["results"]).read_text()))
    report = evaluate_detections(GOLDEN / expected["ground_truth"], found, expected["iou_type"])
    for area in ("small", "medium", "large"):
        for part, name in (
            ("", "oLRP"),
            ("_loc", "oLRP_Localisation"),
            ("_fp", "oLRP_false_positive"),
            ("_fn", "oLRP_false_negative"),
        ):
            key = f"oLRP{area[0]}{part}"
            assert report.as_dict()[key] == pytest.approx(expected["olrp"][f"{name}_{area}"], abs=1e-9)
            golden = np.array(expected["olrp"]["per_class_by_area"][area][name], dtype=float)
            of_id = dict(zip(expected["category_ids"], np.where(golden == -1, np.nan, golden), strict=True))
            for row in report.per_class:
                assert row[key] == pytest.approx(of_id[row["category_id"]], abs=1e-9, nan_ok=True)
