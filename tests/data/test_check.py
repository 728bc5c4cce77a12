import contextlib
import copy
import json
import re
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from PIL import Image
from pycocotools import mask as coco_mask

from ranksort.data.check import check_data
from ranksort.data.coco import CocoDataset
from ranksort.data.coco_columns import Category
from ranksort.data.coco_file import read_coco_file
from ranksort.data.faults import CONSEQUENCES
from ranksort.data.layouts import find_split
from ranksort.data.segmentations import decode_mask
from ranksort.evaluation.inputs import read_ground_truth
from ranksort.prediction.images import load_image

Write = Callable[[Any], tuple[Path, Path]]


def _faults(content: Any, write: Write) -> list[tuple[str, str]]:
    """The kind of each fault, and the beginning of its line, such as "annotation 7"."""
    faults = check_data(*write(content)).faults
    return [(fault.kind, " ".join(line.split()[:2])) for fault in faults for line in fault.lines]


def test_a_good_data_set(content: dict[str, Any], write: Write) -> None:
    content["annotations"][2]["iscrowd"] = 1
    check = check_data(*write(content))
    assert check.faults == []
    assert check.is_usable
    assert (check.images, check.annotations, check.crowds, check.images_without_objects) == (2, 3, 1, 1)
    assert check.sizes == {"small": 2, "medium": 0, "large": 0}
    assert [(c.name, c.objects, c.images) for c in check.classes] == [("dog", 1, 1), ("cat", 1, 1)]


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        ({"bbox": [1, 2, 3]}, "bad box"),
        ({"bbox": [1, 2, 3, float("nan")]}, "bad box"),
        ({"bbox": [1, 2, 3, 10**400]}, "bad box"),
        ({"bbox": [1, 2, 3, 1e9]}, "bad box"),
        ({"image_id": "one"}, "unknown image"),
        ({"image_id": 9}, "unknown image"),
        ({"image_id": 1.5}, "malformed annotation"),
        ({"image_id": None}, "malformed annotation"),
        ({"image_id": [1]}, "malformed annotation"),
        ({"category_id": 9}, "unknown category"),
        ({"iscrowd": 2}, "malformed annotation"),
        ({"iscrowd": "yes"}, "malformed annotation"),
        ({"iscrowd": [0]}, "malformed annotation"),
        ({"image_id": "1", "category_id": 3.0, "id": 99.0, "iscrowd": 0.0}, None),
        ({"iscrowd": "0"}, None),
        ({"iscrowd": None}, None),
        ({"iscrowd": False}, None),
        ({"id": "a7"}, None),
        ({"area": None}, "no area given"),
        ({"area": 1e11}, "wrong area"),
        ({"area": float("inf")}, "wrong area"),
        ({"area": "big"}, "wrong area"),
        ({"area": -5}, "box without area"),
        ({"id": 12}, "duplicate annotation id"),
        ({"bbox": [1, 2, -3, 4]}, "box without area"),
        ({"bbox": [1, 2, 0, 4]}, "box without area"),
        ({"bbox": [100, 2, 9, 4]}, "box outside the image"),
        ({"bbox": [1, 2, 0.5, 4]}, "small box"),
        ({"bbox": [-5, 2, 30, 4]}, "box partly outside the image"),
        ({"bbox": [-0.5, 2, 30, 4]}, None),
        ({"bbox": [5, 0, 10, 8]}, "same annotation twice"),
        ({"segmentation": []}, "no segmentation"),
        ({"segmentation": [[]]}, "no segmentation"),
        ({"segmentation": None}, "no segmentation"),
        ({"segmentation": [], "iscrowd": 1}, "bad segmentation of a crowd"),
        ({"segmentation": [[1, 2, 3, 4]]}, "bad segmentation"),
        ({"segmentation": [[1, 2], [30, 4], [5, 40]]}, "bad segmentation"),
        ({"segmentation": [[1, 2, 3, 4, 5, 6, 7]]}, "bad segmentation"),
        ({"segmentation": [[1, 2, 3, 4, 5, 1e9]]}, "bad segmentation"),
        ({"segmentation": [[1, 2, 3, 4, 5, float("nan")]]}, "bad segmentation"),
        ({"segmentation": [[1, 2, 3, 4, 5, "6;7"]]}, "bad segmentation"),
        ({"segmentation": [1, 2, 3, 4, 5, 6]}, "bad segmentation"),
        ({"segmentation": "polygon"}, "bad segmentation"),
        ({"segmentation": {"size": [64, 48], "counts": [64 * 48]}}, "bad segmentation"),
        ({"segmentation": {"size": [48, 64], "counts": [5, 5]}}, "bad segmentation"),
        ({"segmentation": {"size": [48, 64], "counts": [48 * 64 + 1, -1]}}, "bad segmentation"),
        ({"segmentation": {"size": [48, 64], "counts": "not runs"}}, "bad segmentation"),
        ({"segmentation": {"size": [48, 64], "counts": [48 * 64]}}, "mask without a pixel"),
        ({"segmentation": [[1, 1, 20, 20, 40, 40]]}, "mask without a pixel"),
        ({"segmentation": [[100, 1, 120, 1, 120, 30]]}, "mask without a pixel"),
    ],
)
def test_every_fault_of_an_annotation(
    content: dict[str, Any], write: Write, change: dict[str, Any], kind: str | None
) -> None:
    changed = {**content["annotations"][1], "id": 99, "bbox": [5, 0, 10, 9], **change}
    content["annotations"].append(changed)
    found = _faults(content, write)
    if kind == "box without area" and change.get("area") == -5:
        assert found.pop() == ("wrong area", "annotation 99")
    assert found == ([(kind, f"annotation {changed['id']}")] if kind else [])
    # What is called refused is refused by name, what is called left out is left out, and all else is there.
    files, crowd = write(content), str(change.get("iscrowd")) == "1"
    for masks, use in ((False, "boxes"), (True, "masks")):
        consequence = getattr(CONSEQUENCES[kind], use) if kind else "kept"
        if consequence == "refused":
            with pytest.raises(ValueError, match=f"annotation {changed['id']}"):
                CocoDataset(*files, training=True, masks=masks)
        else:
            dataset = CocoDataset(*files, training=True, masks=masks)
            assert sum(dataset.dropped.values()) == (consequence == "left out" or crowd)
            assert sum(len(dataset[i][1]["labels"]) for i in range(2)) == 4 - (consequence == "left out" or crowd)
    for iou_type, use in (("bbox", "evaluation"), ("segm", "mask_evaluation")):
        if kind and getattr(CONSEQUENCES[kind], use) == "refused":
            with pytest.raises(ValueError, match=f"annotation {changed['id']}|objects without masks"):
                read_ground_truth(files[1], iou_type, "coco")
        else:
            assert len(read_ground_truth(files[1], iou_type, "coco").image) == 4


def test_equal_annotations_with_another_between_them(content: dict[str, Any], write: Write) -> None:
    """The other one has their box, and another polygon."""
    one = content["annotations"][1]
    other = {**one, "id": 98, "segmentation": [[6, 1, 14, 1, 14, 7]]}
    content["annotations"] += [other, {**one, "id": 99}, {**one, "id": 100}]
    faults = check_data(*write(content)).faults
    assert [fault.kind for fault in faults] == ["same annotation twice"]
    assert [line.rpartition(" of ")[2] for line in faults[0].lines] == [f"annotation {one['id']}"] * 2


def test_faults_of_images_and_categories(content: dict[str, Any], write: Write) -> None:
    images = write(content)[0]
    (images / "truncated.jpg").write_bytes((images / "wide.jpg").read_bytes()[:700])
    Image.new("RGB", (64, 20)).save(images / "low.png")
    names = [("gone.jpg", 48), ("truncated.jpg", 48), ("low.png", 48), ("./low.png", 20), ("a\0b", 48), ("n" * 999, 48)]
    for i, (name, height) in enumerate(names):
        content["images"].append({"id": 10 + i, "file_name": name, "width": 64, "height": height})
    content["images"] += [{"id": 20, "width": 64, "height": 48}, {"id": 21, "file_name": "wide.jpg", "width": "64"}]
    content["images"] += [{"id": None, "file_name": "x.jpg", "width": 64, "height": 48}, 7]
    content["categories"].append({"id": 7, "name": "tiger"})
    content["categories"].append({"id": 8})
    assert sorted(_faults(content, write)) == [
        ("bad category name", "category 8"),
        ("bad file name", "image 20"),
        ("bad image size", "image 21"),
        ("bad image size", "image 21"),
        ("duplicate category id", "category 7"),
        ("malformed image", "image number"),
        ("malformed image", "image number"),
        ("missing image", "image 10"),
        ("missing image", "image 14"),
        ("missing image", "image 15"),
        ("same file in two images", "image 21"),
        ("small image", "image 13"),
        ("unreadable image", "image 11"),
        ("wrong image size", "image 12"),
    ]


def test_one_cause_is_reported_once(content: dict[str, Any], write: Write) -> None:
    content["images"][0]["id"] = 1.5
    for annotation in content["annotations"][:2]:
        annotation["image_id"] = 1.5
    check = check_data(*write(content))
    assert [(fault.kind, list(fault.lines)) for fault in check.faults] == [
        ("malformed image", ['image number 1 of the list needs an integer or a string as "id", not 1.5'])
    ]


def test_placeholders_and_repeated_names_of_categories(content: dict[str, Any], write: Write) -> None:
    content["categories"] += [{"id": 0, "name": "Pets"}, {"id": 9, "name": "cat "}]
    content["categories"][0]["supercategory"] = "Pets"
    faults = check_data(*write(content)).faults
    assert [(fault.kind, len(fault.lines)) for fault in faults] == [
        ("category without objects", 2),
        ("same name in two categories", 1),
    ]
    assert "category 0 (Pets) has no object, and another names it as its supercategory" in faults[0].lines[0]


def test_corners_instead_of_sides_are_recognised(content: dict[str, Any], write: Write) -> None:
    for annotation, box in zip(
        content["annotations"], ([10, 10, 60, 40], [20, 30, 63, 47], [30, 40, 47, 62]), strict=True
    ):
        annotation["bbox"] = box
    (fault,) = check_data(*write(content)).faults
    assert fault.kind == "boxes extend beyond their images"
    assert "3 of 3 boxes extend beyond their images, but would fit as corners" in fault.lines[0]


def test_masks_that_an_exporter_marks_as_crowd(content: dict[str, Any], write: Write) -> None:
    for annotation in content["annotations"]:
        annotation["iscrowd"] = 1
    files = write(content)
    check = check_data(*files)
    assert not check.is_usable
    assert {fault.kind for fault in check.faults} == {"mostly crowd", "no object to train on", "nothing to evaluate"}
    assert "--data.crowd keep" in str(check)
    with pytest.raises(ValueError, match=r"all are marked as crowd: --data\.crowd keep treats them as objects"):
        CocoDataset(*files, training=True)
    with pytest.raises(ValueError, match="no annotations other than crowds"):
        CocoDataset(*files, training=False)
    kept = check_data(*files, keep_crowds=True)
    assert kept.is_usable
    assert kept.crowds == 0
    dataset = CocoDataset(*files, training=True, masks=True, keep_crowds=True)
    assert [len(dataset[i][1]["masks"]) for i in range(2)] == [2, 1]
    for annotation in content["annotations"][:1]:
        annotation["iscrowd"] = 0  # "a large share" is not all
    assert {fault.kind for fault in check_data(*write(content)).faults} == {"mostly crowd"}


def test_boxes_and_masks_mixed_are_good_for_boxes(content: dict[str, Any], write: Write) -> None:
    content["annotations"][1]["segmentation"] = []
    check = check_data(*write(content))
    assert check.is_usable
    assert check.verdicts() == {
        "boxes": "yes",
        "masks": "refused for 1 fault (no segmentation)",
        "evaluation": "yes",
        "mask_evaluation": "refused for 1 fault (no segmentation)",
    }


def test_a_verdict_tells_evaluation_with_and_without_images_apart(content: dict[str, Any], write: Write) -> None:
    images, annotations = write(content)
    (images / content["images"][0]["file_name"]).unlink()
    verdict = check_data(images, annotations).verdicts()["evaluation"]
    assert verdict == "yes, but `test` and the validation of `train` refuse it for 1 fault (missing image)"
    with pytest.raises(FileNotFoundError, match="is not in"):
        CocoDataset(images, annotations, training=False)


@pytest.mark.parametrize("key", ["image_id", "category_id"])
def test_a_boolean_is_no_id(content: dict[str, Any], write: Write, key: str) -> None:
    content["annotations"][0][key] = True
    (fault,) = check_data(*write(content)).faults[:1]
    assert fault.kind == "malformed annotation"
    assert f'needs an integer or a string as "{key}", not True' in fault.lines[0]


def test_a_folder_for_a_file_and_the_reverse_are_said(content: dict[str, Any], write: Write) -> None:
    images, annotations = write(content)
    with pytest.raises(ValueError, match="is a folder: name a file in it"):
        check_data(images, images)
    with pytest.raises(ValueError, match="is a file: name the folder that it is in"):
        check_data(annotations, annotations)
    with pytest.raises(ValueError, match="is not a regular file"):
        check_data(images, Path("/dev/null"))


def test_classes_that_differ_in_the_kind_of_id_are_told_apart(content: dict[str, Any], write: Write) -> None:
    images, annotations = write(content)
    known = [Category(str(c["id"]), c["name"]) for c in content["categories"]]
    id, name = min((c["id"], c["name"]) for c in content["categories"])
    with pytest.raises(ValueError, match=f"'{name}' with id {id}; the model knows .* such as '{name}' with id '{id}'"):
        CocoDataset(images, annotations, training=False, categories=known)


@pytest.mark.parametrize(
    ("written", "there"),
    [
        ("images\\wide.jpg", "images/wide.jpg"),
        ("data\\raw\\wide.jpg", "wide.jpg"),
        ("images/wide.jpg", "wide.jpg"),
        ("out/lm/wide.jpg", "wide.jpg"),
        ("out/lm/wide.jpg", "lm/wide.jpg"),
    ],
)
def test_names_with_folders_of_the_exporter_are_found(
    content: dict[str, Any], write: Write, written: str, there: str
) -> None:
    content["images"][0]["file_name"] = written
    images, annotations = write(content)
    (images / there).parent.mkdir(parents=True, exist_ok=True)
    (images / "wide.jpg").rename(images / there)
    check = check_data(images, annotations)
    assert [fault.kind for fault in check.faults] == ["found in another folder"]
    assert CocoDataset(images, annotations, training=True)[0][0].shape == (3, 48, 64)
    assert find_split(images.parent, "train")[0] in (images, images.parent)


def test_a_name_that_several_images_share_is_not_guessed(content: dict[str, Any], write: Write) -> None:
    content["images"].append({"id": 3, "file_name": "b/wide.jpg", "width": 64, "height": 48})
    content["images"][0]["file_name"] = "a/wide.jpg"
    files = write(content)
    lines = [line for fault in check_data(*files).faults for line in fault.lines]
    assert len(lines) == 2
    assert all("wide.jpg exists, but the file has several images of that name" in line for line in lines)
    with pytest.raises(FileNotFoundError, match="has several images of that name"):
        CocoDataset(*files, training=True)[0]


def test_a_name_in_another_case_is_pointed_out(content: dict[str, Any], write: Write) -> None:
    content["images"][0]["file_name"] = "Wide.JPG"
    (fault,) = check_data(*write(content)).faults
    assert "there is wide.jpg: rename it" in fault.lines[0]


def test_dark_images_and_turned_ones_are_said(content: dict[str, Any], write: Write) -> None:
    images, _ = write(content)
    exif = Image.Exif()
    exif[0x0112] = 3
    Image.open(images / "high.png").save(images / "high.png", exif=exif)
    content["images"][0]["file_name"] = "wide.tif"
    ramp = np.tile(np.linspace(0, 1, 64), (48, 1))
    for pixels, expected in (
        ((ramp * 4095).astype(np.uint16), None),  # of which 4095 is white
        (ramp.astype(np.float32), None),
        ((ramp * 1e5).astype(np.float32), "values up to 100000"),
        ((ramp * 200 - 100).astype(np.float32), "values down to -100"),
        ((ramp * 65535).astype(np.uint16), None),
        ((ramp * 255).astype(np.float32), None),
    ):
        Image.fromarray(pixels).save(images / "wide.tif")
        faults = {fault.kind: fault.lines[0] for fault in check_data(*write_again(content, images)).faults}
        assert ("nearly black" in faults) == (expected is not None)
        assert expected is None or expected in faults["nearly black"]
        assert "image 2 is rotated by its EXIF orientation 3" in faults["rotated by EXIF"]


def write_again(content: Any, images: Path) -> tuple[Path, Path]:
    path = images.parent / "annotations" / "instances_train.json"
    path.write_text(json.dumps(content))
    return images, path


def test_the_report_shortens_long_lists(content: dict[str, Any], write: Write) -> None:
    content["annotations"] += [{**content["annotations"][0], "id": 100 + i, "bbox": [i, 0, 0, 5]} for i in range(25)]
    check = check_data(*write(content))
    assert "box without area (25; left out of training on boxes, training on masks)" in str(check)
    assert "and 5 more" in str(check)
    assert "annotation 119 has no area" in str(check)
    assert "annotation 120" not in str(check)
    assert "annotation 124" in check.text()
    assert [len(fault.lines) for fault in check.faults] == [25]
    assert check.is_usable


@pytest.mark.parametrize("side", ["width", "height"])
def test_polygons_in_an_image_that_lacks_a_side(side: str, content: dict[str, Any], write: Write) -> None:
    del content["images"][0][side]
    assert ("bad image size", "image 1") in _faults(content, write)


@pytest.mark.parametrize("size", [10**400, -(10**400), 10**25])
def test_sides_that_no_number_of_64_bits_can_hold(size: int, content: dict[str, Any], write: Write) -> None:
    content["images"][0]["height"] = size
    faults = _faults(content, write)
    assert [fault for fault in faults if fault[0] == "bad image size"] == [("bad image size", "image 1")]


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=5)
    | st.sampled_from([0, 1, -1, 10**400]),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@given(data=st.data())
@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_nothing_in_the_file_makes_the_check_crash(content: dict[str, Any], write: Write, data: st.DataObject) -> None:
    broken: Any = copy.deepcopy(content)
    for _ in range(data.draw(st.integers(1, 3))):
        parent, key, node = None, None, broken
        while isinstance(node, dict | list) and node and (parent is None or data.draw(st.booleans())):
            key = data.draw(st.sampled_from(sorted(node) if isinstance(node, dict) else range(len(node))))
            parent, node = node, node[key]
        if parent is not None:
            parent[key] = data.draw(json_values)
    check = check_data(*write(broken))
    assert str(check)
    # Training does not open small images, whatever is wrong with them.
    assume(all(fault.kind != "small image" for fault in check.file.faults))
    files = check.images_path, check.annotations_path
    for masks, use in ((False, "boxes"), (True, "masks")):
        refused = bool(check.file.refusals(use))
        with pytest.raises((ValueError, FileNotFoundError)) if refused else contextlib.nullcontext():
            dataset = CocoDataset(*files, training=True, masks=masks)
            assert all(len(dataset[i]) == 2 for i in range(len(check.file.images) if refused else len(dataset)))
    for iou_type, use in (("bbox", "evaluation"), ("segm", "mask_evaluation")):
        with pytest.raises(ValueError) if check.file.refusals(use) else contextlib.nullcontext():  # noqa: PT011
            read_ground_truth(files[1], iou_type, "coco")


@given(data=st.data(), height=st.integers(1, 12), width=st.integers(1, 12))
@settings(max_examples=200, deadline=None)
def test_whole_rles_are_accepted_and_broken_ones_are_not(
    data: st.DataObject, height: int, width: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    bits = data.draw(st.lists(st.booleans(), min_size=height * width, max_size=height * width))
    mask = np.asfortranarray(np.array(bits, dtype=np.uint8).reshape(height, width))
    counts = coco_mask.encode(mask)["counts"].decode()
    assert _accepts(counts, height, width, tmp_path_factory)
    assert np.array_equal(decode_mask(json.dumps({"counts": counts}).encode(), height, width), mask)

    cut = counts[: data.draw(st.integers(0, len(counts) - 1))]
    assert not _accepts(cut, height, width, tmp_path_factory)
    assert not _accepts(counts, height + 1, width, tmp_path_factory)
    junk = data.draw(st.text(st.characters(max_codepoint=130), max_size=6))
    if _accepts(junk, height, width, tmp_path_factory):
        rle = {"size": [height, width], "counts": junk}
        assert decode_mask(json.dumps(rle).encode(), height, width).sum(dtype=int) == coco_mask.area(rle)


def _accepts(counts: str, height: int, width: int, tmp_path_factory: pytest.TempPathFactory) -> bool:
    annotation = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [0, 0, 1, 1], "area": 1}
    annotation["segmentation"] = {"size": [height, width], "counts": counts}
    path = tmp_path_factory.getbasetemp() / "rle.json"
    image = {"id": 1, "file_name": "a", "width": width, "height": height}
    content = {"images": [image], "categories": [{"id": 1, "name": "a"}], "annotations": [annotation]}
    path.write_text(json.dumps(content))
    return all(fault.kind != "bad segmentation" for fault in read_coco_file(path, segmentations=True).faults)


def test_coco128_and_bccd_have_no_fault(shared_data: Path) -> None:
    check = check_data(*find_split(shared_data / "coco128", "train")[:2])
    assert check.faults == []
    assert (check.images, check.annotations, check.crowds, check.images_without_objects) == (128, 939, 10, 2)
    assert check.sizes == {"small": 414, "medium": 290, "large": 225}
    assert check.untrained["image", " without an object to train on"] == [250, 508]
    assert sum(c.objects > 0 for c in check.classes) == 71
    assert {c.name: c.objects for c in check.classes}["person"] == 254
    check = check_data(*find_split(shared_data / "bccd", "train")[:2])
    assert [fault.kind for fault in check.faults] == ["no segmentation"]
    assert check.is_usable
    assert [c.objects for c in check.classes] == [2381, 214, 209]
    assert check.sizes == {"small": 23, "medium": 855, "large": 1926}


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        ({"segmentation": None}, "no segmentation"),
        ({"segmentation": {"size": [48, 64], "counts": [10, 20]}}, "bad segmentation"),
        ({"bbox": [70, 70, 5, 5]}, "box outside the image"),
        ({"bbox": [5, 5, 0, 5]}, "box without area"),
    ],
)
def test_crowds_that_are_kept_are_checked_as_objects(
    content: dict[str, Any], write: Write, change: dict[str, Any], kind: str
) -> None:
    content["annotations"][1] |= {"iscrowd": 1, **change}
    files = write(content)
    assert kind not in [fault.kind for fault in check_data(*files).faults]
    assert kind in [fault.kind for fault in check_data(*files, keep_crowds=True).faults]
    if kind.endswith("segmentation"):
        with pytest.raises(ValueError, match="cannot be used for training on masks: annotation 12"):
            CocoDataset(*files, training=True, masks=True, keep_crowds=True)


def test_file_names_that_are_no_unicode(content: dict[str, Any], write: Write) -> None:
    """Python reads a name in another encoding, such as Latin-1, with such stand-ins."""
    images, _ = write(content)
    name = "h\udce9gh.png"
    try:
        (images / "high.png").rename(images / name)
    except OSError:
        pytest.skip("this file system has no such names")
    content["images"][1]["file_name"] = name
    content["images"].append({**content["images"][1], "id": 3})
    check = check_data(*write_again(content, images))
    assert [fault.kind for fault in check.faults] == ["same file in two images"]
    assert name in str(check)


def test_one_value_is_white_in_all_images(content: dict[str, Any], write: Write) -> None:
    """The network sees an image of 12 bits, or of floats, as bright as one of 8 bits; a dark one of the same data set stays dark."""
    images, annotations = write(content)
    content["images"][0]["file_name"], content["images"][1]["file_name"] = "wide.tif", "high.tif"
    write_again(content, images)
    ramp = np.tile(np.linspace(0, 1, 64), (48, 1))
    for kind, white in ((np.uint16, 4095), (np.uint16, 65535), (np.uint16, 1023), (np.float32, 1), (np.float32, 255)):
        Image.fromarray((ramp * white).astype(kind)).save(images / "wide.tif")
        Image.fromarray((ramp.T * white / 9).astype(kind)).save(images / "high.tif")
        dataset = CocoDataset(images, annotations, training=False)
        assert dataset.white == white
        assert (int(dataset[0][0].max()), int(dataset[1][0].max())) == (255, 28)
        given = CocoDataset(images, annotations, training=False, white=2 * white)
        assert int(given[0][0].max()) == 127
        assert int(load_image(images / "high.tif", white=white).max()) == 28
    Image.fromarray((ramp * 4095).astype(np.uint16)).save(images / "wide.tif")
    with pytest.raises(
        ValueError, match=r"The image .*wide\.tif is 16 bit .* values up to only 4095, .* multiply its values by 16"
    ):
        load_image(images / "wide.tif")
    Image.fromarray((ramp * 200 - 100).astype(np.float32)).save(images / "wide.tif")
    with pytest.raises(ValueError, match=r"wide\.tif has values from -100 to 100: .* --data\.white"):
        CocoDataset(images, annotations, training=False)


@pytest.mark.parametrize(
    ("values", "kinds"),
    [
        ((-100, 100), ["unclear white", "nearly black"]),
        ((0, 1e5), ["unclear white", "nearly black"]),
        ((0, 255), []),
    ],
)
def test_check_data_refuses_values_from_which_training_cannot_derive_white(
    content: dict[str, Any], write: Write, values: tuple[float, float], kinds: list[str]
) -> None:
    images, annotations = write(content)
    content["images"][0]["file_name"] = "wide.tif"
    Image.fromarray(np.tile(np.linspace(*values, 64, dtype=np.float32), (48, 1))).save(images / "wide.tif")
    write_again(content, images)
    check = check_data(images, annotations)
    assert [fault.kind for fault in check.faults] == kinds
    assert check.is_usable == (not kinds)
    for training in (True, False):
        if kinds:
            with pytest.raises(ValueError, match=re.escape(check.faults[0].lines[0])):
                CocoDataset(images, annotations, training=training)
            assert "`test` and the validation of `train` refuse it" in check.verdicts()["evaluation"]
        assert CocoDataset(images, annotations, training=training, white=255).white == 255
    assert check_data(images, annotations, white=255).is_usable


def test_a_damaged_image_does_not_make_the_others_dark(content: dict[str, Any], write: Write) -> None:
    images, annotations = write(content)
    content["images"][0]["file_name"], content["images"][1]["file_name"] = "wide.tif", "high.tif"
    write_again(content, images)
    ramp = np.tile(np.linspace(0, 4095, 64).astype(np.uint16), (48, 1))
    Image.fromarray(ramp).save(images / "wide.tif")
    Image.fromarray(ramp.T).save(images / "high.tif")
    (images / "wide.tif").write_bytes((images / "wide.tif").read_bytes()[:-3000])
    check = check_data(images, annotations)
    assert [fault.kind for fault in check.faults] == ["unreadable image"]
    assert check.white == 4095


def test_big_endian_greyscale(content: dict[str, Any], write: Write) -> None:
    """Pillow's `getextrema` refuses such TIFF files."""
    images, annotations = write(content)
    content["images"][0]["file_name"] = "wide.tif"
    write_again(content, images)
    for greatest, faults in ((4095, []), (400, ["nearly black"])):
        pixels = np.tile(np.linspace(0, greatest, 64).astype(">u2"), (48, 1))
        Image.frombytes("I;16B", (64, 48), pixels.tobytes()).save(images / "wide.tif")
        assert Image.open(images / "wide.tif").mode == "I;16B"
        assert [fault.kind for fault in check_data(images, annotations, white=4095).faults] == faults
    assert int(CocoDataset(images, annotations, training=True, white=400)[0][0].max()) == 255
    with pytest.raises(ValueError, match="values up to only 400"):
        load_image(images / "wide.tif")


def test_colours_of_16_bits_that_use_12(content: dict[str, Any], write: Write) -> None:
    """Pillow reads the upper 8 bits of such PNG files."""
    images, annotations = write(content)
    for name, (width, height) in {"wide.png": (64, 48), "high.png": (48, 64)}.items():
        for greatest in (65535, 4095):
            ramp = np.tile(np.linspace(0, greatest, width).astype(">u2")[None, :, None], (height, 1, 3))
            (images / f"{greatest}_{name}").write_bytes(png_of_16_bits(ramp))
    for greatest in (65535, 4095):
        for image, name in zip(content["images"], ("wide.png", "high.png"), strict=False):
            image["file_name"] = f"{greatest}_{name}"
        write_again(content, images)
        if greatest == 65535:
            assert int(CocoDataset(images, annotations, training=False)[0][0].max()) == 255
        else:
            with pytest.raises(ValueError, match=r"16 bits per colour, .* Multiply their values by 16"):
                CocoDataset(images, annotations, training=False)
            (fault,) = check_data(images, annotations).faults
            assert fault.kind == "unclear white"
            assert "Multiply their values by 16" in fault.lines[0]


def png_of_16_bits(pixels: np.ndarray) -> bytes:
    """A PNG file of RGB, big-endian uint16 [H, W, 3]."""
    height, width, _ = pixels.shape
    lines = b"".join(b"\0" + row.tobytes() for row in pixels)
    parts = (
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)),
        (b"IDAT", zlib.compress(lines)),
        (b"IEND", b""),
    )
    chunks = (
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in parts
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)
