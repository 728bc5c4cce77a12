import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as rle
from pycocotools.coco import COCO

from ranksort.data.synthetic import CLASSES, MIN_SIDE, write_synthetic_dataset

SMALL = {"train_images": 3, "val_images": 2}


def contents(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_synthetic_dataset(tmp_path_factory.mktemp("synthetic"), train_images=70, val_images=10)


@pytest.fixture(scope="module")
def train(root: Path) -> COCO:
    return COCO(root / "annotations" / "instances_train.json")


def test_masks_boxes_and_areas_agree(root: Path, train: COCO) -> None:
    for image in train.imgs.values():
        with Image.open(root / "images" / image["file_name"]) as picture:
            assert picture.size == (image["width"], image["height"])
            assert picture.mode == "RGB"
        taken = np.zeros((image["height"], image["width"]), dtype=int)
        for annotation in train.imgToAnns[image["id"]]:
            mask = train.annToMask(annotation)
            taken += mask
            rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
            assert annotation["bbox"] == [columns[0], rows[0], np.ptp(columns) + 1, np.ptp(rows) + 1]
            assert annotation["area"] == mask.sum()
        assert taken.max(initial=0) <= 1, "visible masks overlap"


def test_ids_and_file_names_are_unique_over_the_splits(root: Path) -> None:
    splits = [json.loads((root / "annotations" / f"instances_{split}.json").read_text()) for split in ("train", "val")]
    images = [image for split in splits for image in split["images"]]
    assert len({image["id"] for image in images}) == len({image["file_name"] for image in images}) == 80
    for split in splits:
        assert split["categories"] == [{"id": kind.id, "name": kind.name} for kind in CLASSES]
        ids = [annotation["id"] for annotation in split["annotations"]]
        assert len(set(ids)) == len(ids)


def test_pictures_are_varied(train: COCO) -> None:
    images, objects = train.imgs.values(), [a for a in train.anns.values() if not a["iscrowd"]]
    landscapes = sum(image["width"] > image["height"] for image in images)
    assert 0.4 < landscapes / len(images) < 0.9
    assert any(not train.imgToAnns[image["id"]] for image in images)

    crowds = [a for a in train.anns.values() if a["iscrowd"]]
    assert crowds
    assert all(isinstance(crowd["segmentation"]["counts"], str) for crowd in crowds)

    counts = Counter(a["category_id"] for a in objects)
    assert set(counts) == {kind.id for kind in CLASSES}
    assert max(counts.values()) < 2 * min(counts.values())
    assert 4 < len(objects) / len(images) < 10


def test_sizes_and_occlusion(train: COCO) -> None:
    objects = [a for a in train.anns.values() if not a["iscrowd"]]
    sides = np.array([a["bbox"][2:] for a in objects])
    longest = sides.max(axis=1)
    assert sides.min() >= MIN_SIDE
    assert longest.max() <= 160
    assert ((longest >= 24) & (longest <= 120)).mean() > 0.75
    assert (longest < 24).mean() > 0.03

    # Boxes of disjoint masks that overlap by much: one thing hides a part of the other.
    overlapping = 0
    for image in train.imgs:
        boxes = np.array([a["bbox"] for a in train.imgToAnns[image] if not a["iscrowd"]]).reshape(-1, 4)
        iou = rle.iou(boxes, boxes, [0] * len(boxes)) if len(boxes) else np.zeros((0, 0))
        overlapping += int(((iou > 0.1) & (iou < 1)).any(axis=1).sum())
    assert 0.1 < overlapping / len(objects) < 0.6


def test_long_tail(tmp_path: Path) -> None:
    write_synthetic_dataset(tmp_path, train_images=40, val_images=0, long_tail=True)
    annotations = json.loads((tmp_path / "annotations" / "instances_train.json").read_text())["annotations"]
    counts = Counter(a["category_id"] for a in annotations if not a["iscrowd"])
    first, second, *_, last = (counts[kind.id] for kind in CLASSES)
    assert 2.5 * second < first
    assert 15 * last < first


def test_same_arguments_give_the_same_bytes(tmp_path: Path) -> None:
    one, two, other = (
        contents(write_synthetic_dataset(tmp_path / name, **SMALL, seed=seed))
        for name, seed in (("one", 3), ("two", 3), ("other", 4))
    )
    assert one == two
    assert len(one) == 3 + 2 + 2
    assert all(one[name] != other[name] for name in one)


def test_a_picture_does_not_depend_on_how_many_there_are(root: Path, tmp_path: Path) -> None:
    small = contents(write_synthetic_dataset(tmp_path, **SMALL))
    large = contents(root)
    assert all(small[name] == large[name] for name in small if name.endswith(".jpg"))
    assert small["images/train_00000.jpg"] != small["images/val_00000.jpg"]


def test_seed_0_is_the_data_set_that_published_numbers_refer_to(root: Path, train: COCO) -> None:
    """A failure means that figures measured on this data set no longer compare: raise GENERATOR_VERSION."""
    boxes = [annotation["bbox"] for annotation in train.imgToAnns[1]]
    np.testing.assert_allclose(boxes[:3], [[58, 164, 76, 73], [199, 288, 29, 29], [58, 7, 130, 124]], atol=1)
    with Image.open(root / "images" / "train_00000.jpg") as picture:
        np.testing.assert_allclose(np.asarray(picture).mean(axis=(0, 1)), [104.05, 68.92, 66.95], atol=0.2)


def test_complete_data_set_is_reused(tmp_path: Path) -> None:
    write_synthetic_dataset(tmp_path, **SMALL)
    (tmp_path / "images" / "train_00000.jpg").write_bytes(b"kept")
    assert write_synthetic_dataset(tmp_path, **SMALL) == tmp_path
    assert (tmp_path / "images" / "train_00000.jpg").read_bytes() == b"kept"


@pytest.mark.parametrize("lost", ["images/val_00001.jpg", "annotations/instances_val.json"])
def test_interrupted_data_set_is_written_anew(tmp_path: Path, lost: str) -> None:
    complete = contents(write_synthetic_dataset(tmp_path, **SMALL))
    (tmp_path / lost).unlink()
    (tmp_path / "images" / "train_00000.jpg").write_bytes(b"half a picture")
    assert contents(write_synthetic_dataset(tmp_path, **SMALL)) == complete


@pytest.mark.parametrize("split", ["train", "val"])
def test_another_data_set_is_not_overwritten(tmp_path: Path, split: str) -> None:
    annotations = tmp_path / "annotations" / f"instances_{split}.json"
    annotations.parent.mkdir()
    annotations.write_text('{"images": []}')
    with pytest.raises(ValueError, match=f"instances_{split}.json contains another data set"):
        write_synthetic_dataset(tmp_path, **SMALL)
    assert contents(tmp_path) == {f"annotations/instances_{split}.json": b'{"images": []}'}


def test_other_parameters_are_an_error(tmp_path: Path) -> None:
    before = contents(write_synthetic_dataset(tmp_path, **SMALL))
    with pytest.raises(ValueError, match=r"'seed': 0.*'seed': 1.*choose another folder"):
        write_synthetic_dataset(tmp_path, **SMALL, seed=1)
    assert contents(tmp_path) == before
