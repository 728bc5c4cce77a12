import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from pycocotools import mask as coco_mask

from ranksort.data.annotations import decode_mask, parse_annotations
from ranksort.data.check import check_data
from ranksort.data.coco import CocoDataset, find_split

Write = Callable[[Any], tuple[Path, Path]]


def _faults(content: Any, write: Write) -> list[tuple[str, str, str]]:
    return [(fault.kind, fault.where, fault.consequence) for fault in check_data(*write(content)).faults]


def test_a_good_data_set(content: dict[str, Any], write: Write) -> None:
    content["annotations"][2]["iscrowd"] = 1
    check = check_data(*write(content))
    assert check.faults == []
    assert check.is_usable
    assert (check.images, check.annotations, check.crowds, check.images_without_objects) == (2, 3, 1, 1)
    assert check.sizes == {"small": 2, "medium": 0, "large": 0}
    assert [(c.name, c.objects, c.images) for c in check.classes] == [("dog", 1, 1), ("cat", 1, 1)]


@pytest.mark.parametrize(
    ("change", "kind", "consequence"),
    [
        ({"bbox": [1, 2, 3]}, "malformed annotation", "fatal"),
        ({"bbox": [1, 2, 3, float("nan")]}, "malformed annotation", "fatal"),
        ({"bbox": [1, 2, 3, 10**400]}, "malformed annotation", "fatal"),
        ({"image_id": "1"}, "malformed annotation", "fatal"),
        ({"area": None}, "malformed annotation", "fatal"),
        ({"image_id": 9}, "unknown image", "fatal"),
        ({"category_id": 9}, "unknown category", "fatal"),
        ({"id": 12}, "duplicate annotation id", "fatal"),
        ({"bbox": [1, 2, -3, 4]}, "box without area", "dropped"),
        ({"bbox": [1, 2, 0, 4]}, "box without area", "dropped"),
        ({"bbox": [100, 2, 9, 4]}, "box outside the image", "dropped"),
        ({"bbox": [1, 2, 0.5, 4]}, "small box", "dropped"),
        ({"bbox": [-5, 2, 30, 4]}, "box partly outside the image", "kept"),
        ({"bbox": [-0.5, 2, 30, 4]}, None, None),
        ({"segmentation": []}, "bad segmentation", "fatal"),
        ({"segmentation": [], "iscrowd": 1}, "bad segmentation", "kept"),
        ({"segmentation": [[1, 2, 3, 4]]}, "bad segmentation", "fatal"),
        ({"segmentation": [[1, 2, 3, 4, 5, 6, 7]]}, "bad segmentation", "fatal"),
        ({"segmentation": [[1, 2, 3, 4, 5, 1e9]]}, "bad segmentation", "fatal"),
        ({"segmentation": {"size": [64, 48], "counts": [64 * 48]}}, "bad segmentation", "fatal"),
        ({"segmentation": {"size": [48, 64], "counts": [5, 5]}}, "bad segmentation", "fatal"),
        ({"segmentation": {"size": [48, 64], "counts": [48 * 64 + 1, -1]}}, "bad segmentation", "fatal"),
        ({"segmentation": {"size": [48, 64], "counts": "not runs"}}, "bad segmentation", "fatal"),
        ({"segmentation": {"size": [48, 64], "counts": [48 * 64]}}, None, None),
    ],
)
def test_every_fault_of_an_annotation(
    content: dict[str, Any], write: Write, change: dict[str, Any], kind: str | None, consequence: str | None
) -> None:
    changed = {**content["annotations"][1], "id": 99, **change}
    content["annotations"].append(changed)
    expected = [(kind, f"annotation {changed['id']}", consequence)] if kind else []
    assert _faults(content, write) == expected
    if consequence == "fatal":
        with pytest.raises(ValueError, match=f"annotation {changed['id']}"):
            CocoDataset(*write(content), training=True, masks=True)
    else:
        dropped = CocoDataset(*write(content), training=True, masks=True).dropped["small boxes"]
        assert dropped == (consequence == "dropped")


def test_faults_of_images_and_categories(content: dict[str, Any], write: Write) -> None:
    images = write(content)[0]
    (images / "truncated.jpg").write_bytes((images / "wide.jpg").read_bytes()[:700])
    Image.new("RGB", (64, 20)).save(images / "low.png")
    for i, (name, height) in enumerate(
        [("gone.jpg", 48), ("truncated.jpg", 48), ("low.png", 48), ("low.png", 20), ("a\0b", 48), ("n" * 999, 48)]
    ):
        content["images"].append({"id": 10 + i, "file_name": name, "width": 64, "height": height})
    content["categories"].append({"id": 7, "name": "tiger"})
    content["categories"].append({"id": 8})
    assert set(_faults(content, write)) == {
        ("duplicate category id", "category 7", "fatal"),
        ("malformed category", "category 8", "fatal"),
        ("missing image", "image 10", "fatal"),
        ("unreadable image", "image 11", "fatal"),
        ("wrong image size", "image 12", "fatal"),
        ("small image", "image 13", "dropped"),
        ("unreadable image", "image 14", "fatal"),
        ("unreadable image", "image 15", "fatal"),
    }


def test_the_report_shortens_long_lists(content: dict[str, Any], write: Write) -> None:
    content["annotations"] += [{**content["annotations"][0], "id": 100 + i, "bbox": [0, 0, 0, 5]} for i in range(25)]
    check = check_data(*write(content))
    assert "box without area (25, dropped)" in str(check)
    assert "and 5 more" in str(check)
    assert "annotation 119 has no area" in str(check)
    assert "annotation 120" not in str(check)
    assert "annotation 124" in check.text()
    assert len(check.faults) == 25
    assert check.is_usable


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
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
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
    if check.is_usable:
        masks = any(a.get("segmentation") for a in broken["annotations"] if not a.get("iscrowd"))
        for sample in CocoDataset(check.images_path, check.annotations_path, training=False, masks=masks):
            assert len(sample) == 2


@given(data=st.data(), height=st.integers(1, 12), width=st.integers(1, 12))
@settings(max_examples=200, deadline=None)
def test_whole_rles_are_accepted_and_broken_ones_are_not(
    data: st.DataObject, height: int, width: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    bits = data.draw(st.lists(st.booleans(), min_size=height * width, max_size=height * width))
    mask = np.asfortranarray(np.array(bits, dtype=np.uint8).reshape(height, width))
    counts = coco_mask.encode(mask)["counts"].decode()
    assert _accepts(counts, height, width, tmp_path_factory)
    assert np.array_equal(decode_mask({"size": [height, width], "counts": counts}, height, width), mask)

    cut = counts[: data.draw(st.integers(0, len(counts) - 1))]
    assert not _accepts(cut, height, width, tmp_path_factory)
    assert not _accepts(counts, height + 1, width, tmp_path_factory)
    junk = data.draw(st.text(st.characters(max_codepoint=130), max_size=6))
    if _accepts(junk, height, width, tmp_path_factory):
        rle = {"size": [height, width], "counts": junk}
        assert decode_mask(rle, height, width).sum(dtype=int) == coco_mask.area(rle)


def _accepts(counts: str, height: int, width: int, tmp_path_factory: pytest.TempPathFactory) -> bool:
    annotation = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [0, 0, 1, 1], "area": 1}
    annotation["segmentation"] = {"size": [height, width], "counts": counts}
    path = tmp_path_factory.getbasetemp() / "rle.json"
    image = {"id": 1, "file_name": "a", "width": width, "height": height}
    content = {"images": [image], "categories": [{"id": 1, "name": "a"}], "annotations": [annotation]}
    path.write_text(json.dumps(content))
    return all(fault.kind != "bad segmentation" for fault in parse_annotations(path, masks=True).faults)


def test_coco128_and_bccd_have_no_fault(shared_data: Path) -> None:
    check = check_data(*find_split(shared_data / "coco128", "train"))
    assert check.faults == []
    assert (check.images, check.annotations, check.crowds, check.images_without_objects) == (128, 939, 10, 2)
    assert check.sizes == {"small": 414, "medium": 290, "large": 225}
    assert check.untrained["images without an object to train on"] == [250, 508]
    assert sum(c.objects > 0 for c in check.classes) == 71
    assert {c.name: c.objects for c in check.classes}["person"] == 254
    check = check_data(*find_split(shared_data / "bccd", "train"))
    assert check.faults == []
    assert [c.objects for c in check.classes] == [2381, 214, 209]
    assert check.sizes == {"small": 23, "medium": 855, "large": 1926}
