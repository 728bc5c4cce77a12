import json
import subprocess
import sys

import pytest
from evaluation_data import random_masks

from ranksort.data.coco_file import read_coco_file
from ranksort.evaluation import evaluate_detections

RLE = {"size": [90, 120], "counts": [10, 20, 10770]}


def small():
    """A data set of 2 images and 2 classes, and one detection."""
    ground_truth = {
        "images": [{"id": i, "height": 90, "width": 120} for i in (10, 11)],
        "categories": [{"id": c, "name": f"class {c}"} for c in (1, 2)],
        "annotations": [
            {"id": 77, "image_id": 10, "category_id": 1, "bbox": [0, 0, 40, 40], "segmentation": RLE},
            {"id": 78, "image_id": 11, "category_id": 2, "bbox": [0, 0, 40, 40], "segmentation": [[0, 0, 9, 0, 9, 9]]},
        ],
    }
    detection = {"image_id": 10, "category_id": 1, "score": 0.5, "bbox": [0, 0, 40, 40], "segmentation": RLE}
    return ground_truth, detection


@pytest.mark.parametrize("iou_type", ["bbox", "segm"])
def test_areas_crowd_flags_and_any_encoding_of_masks_are_accepted(iou_type):
    ground_truth, detection = small()
    summary = evaluate_detections(ground_truth, [detection], iou_type).as_dict()
    assert summary["AP"] == pytest.approx(0.5)
    assert summary["APl"] != summary["APl"]  # both objects are smaller


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"image_id": 12}, r"1 of 2 detections have an unknown image_id: 12 \(position 1\)"),
        ({"category_id": None}, r"have no 'category_id' \(position 1\)"),
        ({"score": float("nan")}, r"1 of 2 detections have a score that is not a number, but nan \(position 1\)"),
        ({"score": 97.5}, r"have a score outside 0\.\.1 and look like percentages: divide them by 100"),
        ({"score": 1.0000001}, r"have a score outside 0\.\.1 \(position 1\)"),
        ({"score": 10**400}, "have a score that is not a number, but 1000"),
        ({"category_id": [1]}, r"have a category_id that is not an integer or string, but \[1\]"),
        ({"category_id": True}, "have a category_id that is not an integer or string, but True"),
        ({"category_id": float("nan")}, "have a category_id that is not an integer or string, but nan"),
        ({"score": "0.5"}, "have a score that is not a number, but '0.5'"),
        ({"score": True}, "have a score that is not a number, but True"),
        ({"bbox": [0, 0, -1, 5]}, "bbox of negative width or height"),
        ({"bbox": [0, 0, float("nan"), 5]}, r"bbox that is not \[x, y, width, height\], but \[0, 0, nan, 5\]"),
        ({"bbox": [0, 0, 1e9, 5]}, "bbox that is not four finite numbers"),
        ({"bbox": [0, 0, 5]}, r"a bbox that is not .* but \[0, 0, 5\] \(position 1\)"),
        ({"bbox": None}, "have no 'bbox'"),
    ],
)
def test_wrong_detections_are_named(change, sentence):
    ground_truth, detection = small()
    with pytest.raises(ValueError, match=sentence):
        evaluate_detections(ground_truth, [detection, {**detection, **change}])


def test_masks_that_are_missing_and_bad_boxes_beside_them_are_named():
    ground_truth, detection = small()
    with pytest.raises(ValueError, match="have no 'segmentation': boxes are compared with --iou-type bbox"):
        evaluate_detections(ground_truth, [{**detection, "segmentation": []}], "segm")
    with pytest.raises(ValueError, match=r"have a bbox that is not \[x, y, width, height\], but \['0'"):
        evaluate_detections(ground_truth, [{**detection, "bbox": ["0", 0, 9, 9]}, detection], "segm")


@pytest.mark.parametrize("key", ["image_id", "category_id", "score", "bbox"])
def test_missing_keys_are_named(key):
    ground_truth, detection = small()
    incomplete = {name: value for name, value in detection.items() if name != key}
    with pytest.raises(ValueError, match=rf"1 of 2 detections have no .*'{key}' \(position 0\)"):
        evaluate_detections(ground_truth, [incomplete, detection])


def test_many_wrong_detections_are_counted():
    ground_truth, detection = small()
    wrong = [{**detection, "image_id": c} for c in range(100, 110)]
    with pytest.raises(
        ValueError, match=r"10 of 11 .* 100, 101, 102, 103, 104, \.\.\. \(position 1, 2, 3, 4, 5, \.\.\."
    ):
        evaluate_detections(ground_truth, [detection, *wrong])


@pytest.mark.parametrize(
    ("segmentation", "sentence"),
    [
        ({"size": [120, 90], "counts": [10800]}, "mask whose size is not the height and width of their image"),
        ({"counts": "abc"}, "have a segmentation that is not an RLE, but .*: boxes are compared with --iou-type bbox"),
        (None, "have no 'segmentation': boxes are compared with --iou-type bbox"),
        ([], "have no 'segmentation'"),
        ("polygon", "a segmentation that is not an RLE, but 'polygon'"),
        ([[0, 0, 5, 5]], "polygon that is not at least three points"),
        ({"size": [90, 120], "counts": [10800, 1]}, "broken RLE"),
        ({"size": [90, 120], "counts": None}, "a segmentation that is not an RLE"),
    ],
)
def test_wrong_masks_are_named(segmentation, sentence):
    ground_truth, detection = small()
    with pytest.raises(ValueError, match=rf"1 of 1 detections .*{sentence}"):
        evaluate_detections(ground_truth, [{**detection, "segmentation": segmentation}], "segm")
    ground_truth["annotations"][1]["segmentation"] = segmentation
    with pytest.raises(ValueError, match=r"annotation 78 |compare boxes with --iou-type bbox"):
        evaluate_detections(ground_truth, [detection], "segm")


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"image_id": 12}, "annotation 78 names the unknown image 12"),
        ({"category_id": "cat"}, "annotation 78 names the unknown category 'cat'"),
        ({"bbox": [0, 0, float("inf"), 5]}, 'annotation 78 needs four finite numbers .* as "bbox", not .*inf'),
        ({"iscrowd": "yes"}, "annotation 78 needs 0 or 1 as \"iscrowd\", not 'yes'"),
    ],
)
def test_wrong_annotations_are_named(change, sentence):
    ground_truth, detection = small()
    ground_truth["annotations"][1] |= change
    with pytest.raises(ValueError, match=sentence):
        evaluate_detections(ground_truth, [detection])


@pytest.mark.parametrize("wrong", [{}, {"images": [], "categories": []}, {"images": 3, "annotations": None}])
def test_what_is_no_ground_truth_is_refused(wrong):
    with pytest.raises(ValueError, match=r'("(categories|images|annotations)" is missing.*){3}'):
        evaluate_detections(wrong, [])


@pytest.mark.parametrize("wrong", [{}, {"annotations": []}, 1, None])
def test_what_is_no_list_of_detections_is_refused(wrong):
    with pytest.raises(ValueError, match="detections must be a JSON list"):
        evaluate_detections(small()[0], wrong)


def test_ground_truth_without_objects_is_refused():
    ground_truth, detection = small()
    crowds = [{**row, "iscrowd": 1} for row in ground_truth["annotations"]]
    for annotations in ([], crowds):
        with pytest.raises(ValueError, match=r"no annotations( other than crowds)?: there is nothing"):
            evaluate_detections({**ground_truth, "annotations": annotations}, [detection])


def test_ids_must_be_unique():
    ground_truth, detection = small()
    ground_truth["images"].append({"id": 10})
    with pytest.raises(ValueError, match="image 10 has the same id as an earlier one"):
        evaluate_detections(ground_truth, [detection])


def test_masks_need_the_size_of_images():
    ground_truth, detection = small()
    del ground_truth["images"][1]["height"]
    with pytest.raises(ValueError, match=r'image 11 needs .* as "height", which is missing'):
        evaluate_detections(ground_truth, [detection], "segm")


def test_coco_ground_truth_is_no_lvis_ground_truth():
    ground_truth, _ = small()
    with pytest.raises(ValueError, match='not an LVIS file: its images need "neg_category_ids"'):
        evaluate_detections(ground_truth, [], style="lvis")
    for image in ground_truth["images"]:
        image["neg_category_ids"] = image["not_exhaustive_category_ids"] = []
    with pytest.raises(ValueError, match=r'not an LVIS file.*its categories a "frequency"'):
        evaluate_detections(ground_truth, [], style="lvis")


def test_files_that_are_absent_or_cut_off(tmp_path):
    ground_truth, detections = random_masks(0)
    with pytest.raises(FileNotFoundError, match=r"The ground truth .*truth\.json does not exist"):
        evaluate_detections(tmp_path / "truth.json", detections)
    path = tmp_path / "found.json"
    path.write_text(json.dumps(detections)[:-500])
    with pytest.raises(ValueError, match=r"detections .*found\.json is not complete JSON"):
        evaluate_detections(ground_truth, path)


TOO_LITTLE_MEMORY = """
import json, resource, sys
from ranksort.evaluation import evaluate_detections
ground_truth = json.load(open(sys.argv[1]))
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + int(sys.argv[3]), -1))
try:
    evaluate_detections(ground_truth, sys.argv[2])
except ValueError as error:
    print(error)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="memory is limited as Linux does it")
@pytest.mark.parametrize("megabytes", [4, 12])  # too little for a part of the file, and for all that it holds
def test_a_file_larger_than_the_memory_is_named(tmp_path, megabytes):
    ground_truth, detection = small()
    for name, content in (("truth", ground_truth), ("found", [detection] * 200_000)):
        (tmp_path / name).write_text(json.dumps(content))
    arguments = [tmp_path / "truth", tmp_path / "found", str(megabytes * 2**20)]
    said = subprocess.run([sys.executable, "-c", TOO_LITTLE_MEMORY, *arguments], capture_output=True, text=True)
    assert said.stdout == (
        f"This machine has too little memory for the detections {tmp_path / 'found'} (0.0276 GB): "
        "keep fewer per image, for example the 100 best.\n"
    ), said.stderr


def test_unknown_settings():
    with pytest.raises(ValueError, match="iou_type must be one of bbox, segm; got 'keypoints'"):
        evaluate_detections(*small(), iou_type="keypoints")
    with pytest.raises(ValueError, match="style must be one of coco, lvis; got 'voc'"):
        evaluate_detections(*small(), style="voc")


def test_a_score_that_is_no_float_is_said() -> None:
    truth = {
        "images": [{"id": 1, "width": 9, "height": 9}],
        "categories": [{"id": 1, "name": "a"}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 1, 5, 5]}],
    }
    found = {"image_id": 1, "category_id": 1, "bbox": [1, 1, 5, 5], "score": 10**400}
    with pytest.raises(ValueError, match="1 of 1 detections have a score that is not a number, but 1000"):
        evaluate_detections(truth, [found])


def test_perfect_detections_have_no_negative_zeros():
    ground_truth, detection = small()
    ground_truth["annotations"][0]["bbox"] = detection["bbox"] = [22.31, 16.31, 66.59, 44.7]
    assert "-0.0" not in str(evaluate_detections(ground_truth, [detection]))


def test_results_of_masks_alone_are_told_how_to_compare_them(tmp_path):
    ground_truth, detection = small()
    masks = [{key: value for key, value in detection.items() if key != "bbox"}]
    with pytest.raises(ValueError, match="1 of 1 detections have no 'bbox': masks are compared with --iou-type segm"):
        evaluate_detections(ground_truth, masks)


def test_an_empty_box_beside_a_mask_is_none():
    """As for pycocotools: the area of the detection is then that of its mask."""
    ground_truth, detection = small()
    masks = [{**detection, "bbox": []}, {**detection, "image_id": 11, "bbox": []}]
    report = evaluate_detections(ground_truth, masks, "segm")
    without = [{key: value for key, value in mask.items() if key != "bbox"} for mask in masks]
    assert report.as_dict() == pytest.approx(evaluate_detections(ground_truth, without, "segm").as_dict(), nan_ok=True)
    with pytest.raises(
        ValueError, match=r"1 of 2 detections have a bbox that is not \[x, y, width, height\], but \[\]"
    ):
        evaluate_detections(ground_truth, [detection, masks[1]], "segm")


def test_a_ground_truth_read_without_masks():
    ground_truth, _ = small()
    file = read_coco_file(ground_truth, segmentations=False)
    with pytest.raises(ValueError, match="was read without segmentations"):
        evaluate_detections(file, [], "segm")
