import json
import time
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pycocotools import mask as coco_mask

from ranksort.data import coco_file, json_source
from ranksort.data.coco_file import read_coco_file
from ranksort.data.faults import USES
from ranksort.data.ids import IdIndex, canonical
from ranksort.data.json_source import decode_rows
from ranksort.data.segmentations import Packed, check_segmentations, decode_mask, encode_segmentations

ids = st.integers(-5, 5) | st.sampled_from(["a", "b", "7", "-1", ""]) | st.integers(10**18, 10**19)


@given(known=st.lists(ids, unique=True), values=st.lists(ids | st.floats(-5, 5) | st.none()))
def test_ids_are_found_as_by_a_dictionary(known: list[Any], values: list[Any]) -> None:
    def place(value: Any) -> int:
        id = canonical(value)
        spelt = str(id) if isinstance(id, int) else int(id) if id in ("7", "-1") else None
        return known.index(id) if id in known else known.index(spelt) if spelt in known else -1

    assert IdIndex(known).find(values).tolist() == [place(value) for value in values]


def test_an_id_of_too_many_digits_for_a_number_is_unknown() -> None:
    content = {
        "images": [{"id": 1, "file_name": "a.jpg", "width": 64, "height": 48}],
        "categories": [{"id": 1, "name": "a"}],
        "annotations": [{"id": 1, "image_id": "9" * 5000, "category_id": 1, "bbox": [1, 2, 3, 4], "area": 12}],
    }
    (fault,) = read_coco_file(content, segmentations=False).faults
    assert fault.kind == "unknown image"


def test_ids_may_be_integral_floats_and_strings(tmp_path: Path) -> None:
    for number, text in ((3.0, "3"), (10**17, str(10**17)), ("x", "x")):
        content = {
            "images": [{"id": number, "file_name": "a.jpg", "width": 64.0, "height": 48.0}],
            "categories": [{"id": text, "name": "a"}],
            "annotations": [{"id": 1.0, "image_id": text, "category_id": number, "bbox": [1, 2, 3, 4], "area": 12}],
        }
        file = read_coco_file(content, segmentations=False)
        assert file.faults == []
        assert (file.annotations.image.tolist(), file.annotations.category.tolist()) == ([0], [0])
        assert file.images.widths.tolist() == [64]


class Row(msgspec.Struct):
    text: str = ""
    number: int = 0


tricky = st.sampled_from(["}, {", '"},{"', "\\", "[", "]}", "é", "\n"]).map(lambda text: "a" + text)
# Rows of another kind: a string as number, rows within a row, a number that is none.
OTHERS = [{"number": "9"}, {"number": 1, "more": [{"a": 1}, {"b": 2}]}, {"number": float("inf")}, {}, 7]


def _repaired(row: Any) -> Row:
    number = row.get("number", 0) if isinstance(row, dict) else 0
    return Row(row.get("text", "") if isinstance(row, dict) else "", int(number) if number != float("inf") else 0)


@given(
    rows=st.lists(st.builds(lambda text, number: {"text": text, "number": number}, tricky, st.integers(0, 9))),
    others=st.lists(st.sampled_from(OTHERS)),
    chunk=st.integers(1, 60),
)
def test_a_list_is_split_between_rows_alone(rows: list[Any], others: list[Any], chunk: int) -> None:
    rows = [*rows, *others, *rows]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_source, "_CHUNK", chunk)
        parts = list(decode_rows(memoryview(json.dumps(rows).encode()), Row, _repaired))
    assert [row for part in parts for row in part] == list(map(_repaired, rows))


def test_a_large_file_is_read_like_a_small_one(tmp_path: Path) -> None:
    """Several chunks, one of which holds what has to be repaired."""
    rng = np.random.default_rng(0)
    annotations = []
    for n in range(30_000):
        polygon = rng.uniform(0, 90, 60).round(2).tolist()
        annotations.append(
            {
                "id": n,
                "image_id": n % 7,
                "category_id": 1 + n % 3,
                "bbox": [n % 50, 1, 20, 30],
                "area": n,
                "iscrowd": n % 2,
            }
            | {"segmentation": [polygon]}
        )
    annotations[20_000] |= {"iscrowd": "1", "image_id": "6"}
    annotations[20_001]["bbox"] = None
    images = [{"id": n, "file_name": f"{n}.jpg", "width": 100, "height": 100} for n in range(7)]
    content = {
        "images": images,
        "categories": [{"id": c, "name": f"c{c}"} for c in (3, 1, 2)],
        "annotations": annotations,
    }
    path = tmp_path / "large.json"
    path.write_text(json.dumps(content))
    assert path.stat().st_size > 3 * 2**22
    file = read_coco_file(path, segmentations=True, pixels=False)
    objects = file.annotations
    assert len(objects) == 30_000
    numbers = np.arange(30_000)
    expected_images = numbers % 7
    expected_images[20_000] = 6
    assert np.array_equal(objects.image, expected_images)
    assert np.array_equal(objects.category, numbers % 3)
    assert np.array_equal(objects.crowd, (numbers % 2 == 1) | (numbers == 20_000))
    assert np.array_equal(objects.areas, numbers)
    assert np.isnan(objects.boxes).any(axis=1).nonzero()[0].tolist() == [20_001]
    assert objects.segmentations is not None
    assert [json.loads(objects.segmentations[n]) for n in (0, 19_999, 29_999)] == [
        annotations[n]["segmentation"] for n in (0, 19_999, 29_999)
    ]
    assert [list(fault.lines) for fault in file.faults if fault.kind == "bad box"] == [
        ['annotation 20001 needs four finite numbers [x, y, width, height] as "bbox", which is missing']
    ]


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_other_encodings_of_json_are_read(content: dict[str, Any], tmp_path: Path, encoding: str) -> None:
    content["categories"][0]["name"] = "Kätzchen"
    (tmp_path / "a.json").write_text(json.dumps(content, ensure_ascii=False), encoding=encoding)
    assert [c.name for c in read_coco_file(tmp_path / "a.json", segmentations=True).categories] == ["dog", "Kätzchen"]


def test_nan_in_a_field_that_is_not_needed_does_no_harm(content: dict[str, Any]) -> None:
    content["annotations"][0]["confidence"] = float("nan")
    content["images"][0]["gps"] = [float("inf")]
    assert read_coco_file(content, segmentations=True).faults == []


# fmt: off
shapes = st.sampled_from([
    [], [[]], None, "a", 7, {},
    [[1, 1, 9, 1, 9, 9]], [[1, 1, 9, 1, 9, 9], []], [[1.5, 1, 9, 1, 9, 9]], [[0, 0, 0, 0, 0, 0]],
    [[1, 1, 9, 1, 9, 1000000.0]], [[-1234567, 1, 9, 1, 9, 9]], [[1, 1, 9, 1, 9, 9.123456789]], [[100000.5, 1, 9, 1, 9, 9]],
    [[1, 1, 9, 1, 9, 9], [3]], [[1, 2]], [[1, 2, 3, 4, 5]], [["1", 2, 3, 4, 5, 6]], [[1, 2, 3, 4, 5, None]],
    [1, 2, 3, 4, 5, 6], [[[1, 2], [3, 4], [5, 6]]], [[1, 2], [3, 4], [5, 6]],
    {"counts": [1]}, {"size": [10, 12], "counts": [50, 20, 50]}, {"size": [10, 12], "counts": [120]},
])
# fmt: on


@given(st.lists(shapes, max_size=6))
def test_the_quick_look_finds_what_the_slow_one_finds(segmentations: list[Any]) -> None:
    packed = Packed.of([json.dumps(s).encode() for s in segmentations])
    sizes = np.full(len(packed), 10), np.full(len(packed), 12)
    quick, slow = (check_segmentations(packed, *sizes, pixels=pixels) for pixels in (False, True))
    assert quick.problems == slow.problems
    assert np.array_equal(quick.missing, slow.missing)
    good = [n for n in range(len(packed)) if n not in slow.problems and not slow.missing[n]]
    chosen = packed.select(np.array(good, dtype=int)), *(side[good] for side in sizes)
    counts, areas = encode_segmentations(*chosen, quick.areas[good])
    for n, runs, area in zip(good, counts, areas, strict=True):
        mask = decode_mask(packed[n], 10, 12)
        assert np.array_equal(coco_mask.decode({"size": [10, 12], "counts": runs}), mask)
        assert mask.sum() == area
        assert slow.areas[n] == area


ROW = '{"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 2, 3, 4], "area": 12, "note": [{"a": 1}, {"b": [2]}]}'
IMAGES, CATEGORIES = (
    '"images": [{"id": 1, "file_name": "a", "width": 64, "height": 48}]',
    '"categories": [{"id": 1, "name": "a"}]',
)
ANNOTATIONS = f'"annotations": [{ROW}, {ROW}]'


@pytest.mark.parametrize(
    ("sections", "usual"),
    [
        ([IMAGES, ANNOTATIONS, CATEGORIES], True),
        ([CATEGORIES, IMAGES, ANNOTATIONS], True),
        ([ANNOTATIONS, IMAGES, CATEGORIES], True),
        (['"info": 1', IMAGES, f'"annotations"\n: [\n{ROW}\n]\n', CATEGORIES, '"end": []'], True),
        ([IMAGES, '"annotations": []', CATEGORIES], True),
        ([IMAGES, ANNOTATIONS.replace("12", "NaN"), CATEGORIES], True),
        ([IMAGES, ANNOTATIONS.replace('"bbox"', '"annotations": [{}], "bbox"'), CATEGORIES], True),
        ([IMAGES, CATEGORIES, ANNOTATIONS, '"end": []'], False),
        ([IMAGES, ANNOTATIONS, '"end": []', CATEGORIES], False),
        ([IMAGES, ANNOTATIONS, '"annotations": []', CATEGORIES], False),
        ([IMAGES, ANNOTATIONS, CATEGORIES, '"annotations": ["annotations"]'], False),
        ([f'"info": {{{ANNOTATIONS}}}', IMAGES, ANNOTATIONS, CATEGORIES], False),
        ([IMAGES, r'"my \"annotations": [1]', ANNOTATIONS, CATEGORIES], False),
        ([IMAGES, ANNOTATIONS, CATEGORIES.replace("a", "images"), '"images": []'], False),
        ([IMAGES, ANNOTATIONS.replace("4]", "4"), CATEGORIES], False),
        ([IMAGES, ANNOTATIONS.replace('{"id"', '{{"id"'), CATEGORIES], False),
        ([IMAGES, ANNOTATIONS, CATEGORIES + "x"], False),
        ([ANNOTATIONS, CATEGORIES], False),
        ([IMAGES, CATEGORIES], False),
        ([IMAGES, '"annotations": 7', CATEGORIES], False),
    ],
)
def test_the_usual_sections_are_those_of_a_parser(
    sections: list[str], usual: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path, asked = tmp_path / "a.json", []
    path.write_text("{" + ", ".join(sections) + "}")
    parse = coco_file._sections
    monkeypatch.setattr(coco_file, "_sections", lambda *arguments: asked.append(1) or parse(*arguments))
    found = read_coco_file(path, segmentations=True, pixels=False)
    assert (not asked) == usual
    monkeypatch.setattr(coco_file, "_usual_sections", lambda *_: {})
    expected = read_coco_file(path, segmentations=True, pixels=False)
    assert [(fault.kind, list(fault.lines)) for fault in found.faults] == [
        (fault.kind, list(fault.lines)) for fault in expected.faults
    ]
    for name in ("boxes", "areas", "number", "image", "category"):
        assert np.array_equal(getattr(found.annotations, name), getattr(expected.annotations, name), equal_nan=True)
    assert (found.images.ids, found.categories) == (expected.images.ids, expected.categories)


def test_an_annotation_is_found_twice_however_it_is_spaced(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """One of two equal annotations is in a part of the file that is not strict JSON, and so is written again."""
    monkeypatch.setattr(json_source, "_CHUNK", 1)
    row = ROW.replace('"note"', '"segmentation": [[1,2,4,2,4,6]], "note"')
    path = tmp_path / "a.json"
    path.write_text(
        f'{{{IMAGES}, {CATEGORIES}, "annotations": [{row.replace("12", "NaN")}, {row.replace("1,", "2,", 1)}]}}'
    )
    faults = read_coco_file(path, segmentations=True).faults
    assert [fault.kind for fault in faults] == ["wrong area", "same annotation twice"]


@pytest.mark.parametrize("junk", ["[" * 3000, '"\\ud800"', "1" * 5000, "1e999", "{}", "tru", "\x00", '"', ""])
@pytest.mark.parametrize("place", ['"bbox": ', '"id": ', '"file_name": ', '"name": ', '"counts": '])
def test_junk_anywhere_is_a_fault_or_harmless(content: dict[str, Any], tmp_path: Path, junk: str, place: str) -> None:
    text = json.dumps(content).replace(place, place + junk + " ", 1)
    (tmp_path / "a.json").write_text(text)
    file = read_coco_file(tmp_path / "a.json", segmentations=True)
    for use in USES:
        if file.refusals(use):
            with pytest.raises(ValueError, match="cannot be used"):
                file.require(use)


@pytest.mark.parametrize("value", [None, True])
def test_what_is_no_id_stands_for_none(content: dict[str, Any], value: Any) -> None:
    """Neither a missing one for "None", nor true for 1."""
    content["images"][1]["id"] = "None"
    content["annotations"][2]["image_id"] = value
    (fault,) = read_coco_file(content, segmentations=False).faults
    assert fault.kind == "malformed annotation"
    assert fault.lines[0].startswith('annotation 13 needs an integer or a string as "image_id"')


def test_many_images_without_id_take_no_longer_than_others() -> None:
    """A few hundred thousand of each would have taken hours."""
    count = 20_000
    images = [{"image_id": n, "file_name": f"{n}.jpg", "width": 64, "height": 64} for n in range(count)]
    annotations = [{"id": n, "image_id": n, "category_id": 1, "bbox": [1, 1, 9, 9], "area": 81} for n in range(count)]
    content = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "a"}]}
    start = time.process_time()
    kinds = {fault.kind: len(fault.lines) for fault in read_coco_file(content, segmentations=False).faults}
    assert time.process_time() - start < 2
    assert kinds == {"malformed image": count, "unknown image": count}


def test_many_classes_take_no_longer_than_others() -> None:
    """Each was compared with each: many seconds for the 13,000 classes of V3Det."""
    classes = [{"id": n, "name": f"class {n}", "supercategory": "none"} for n in range(10_000)]
    images = [{"id": 1, "file_name": "1.jpg", "width": 64, "height": 64}]
    objects = [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 1, 9, 9], "area": 81}]
    start = time.process_time()
    file = read_coco_file({"images": images, "annotations": objects, "categories": classes}, segmentations=False)
    assert time.process_time() - start < 1.2
    assert not file.faults
    assert not file.placeholders()


def test_names_of_sections_in_another_encoding(content: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "latin.json"
    path.write_bytes(json.dumps({"caf\u00e9": 1, **content}, ensure_ascii=False).encode("latin-1"))
    assert [fault.kind for fault in read_coco_file(path, segmentations=False).faults] == ["not JSON"]


@pytest.mark.parametrize("segmentation", [{"size": [10**5] * 2, "counts": [10**10 - 9, 9]}, [[1, 1, 9, 1, 9, 9]]])
def test_images_too_large_for_masks(content: dict[str, Any], segmentation: Any) -> None:
    content["images"][0] |= {"width": 10**5, "height": 10**5}
    content["annotations"] = [{**content["annotations"][0], "segmentation": segmentation}]
    (fault,) = read_coco_file(content, segmentations=True).faults
    assert fault.kind == "bad segmentation"
    assert fault.lines[0] == "annotation 11 is a mask of a 100000x100000 image, which is too large for masks"
