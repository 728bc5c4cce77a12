import json
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools.coco import COCO

from ranksort.data.check import check_data
from ranksort.data.coco import CocoDataset
from ranksort.data.coco_columns import Category
from ranksort.data.images import read_image, stated_sizes
from ranksort.data.layouts import find_split
from ranksort.data.transforms import training_transforms
from ranksort.prediction.images import load_pixels
from ranksort.recipes import get_recipe

Write = Callable[[Any], tuple[Path, Path]]


def test_targets_of_a_small_data_set(content: dict[str, Any], write: Write) -> None:
    files = write(content)
    dataset = CocoDataset(*files, training=True, masks=True)
    assert dataset.categories == (Category(3, "dog"), Category(7, "cat"))
    assert [category.name for category in dataset.categories] == ["dog", "cat"]
    assert dataset.image_ids == [1, 2]
    assert dataset.landscape == [True, False]
    assert not any(dataset.dropped.values())

    image, target = dataset[0]
    assert image.shape == (3, 48, 64)
    assert image.dtype == torch.uint8
    assert target["boxes"].tolist() == [[10, 10, 30, 30], [5, 0, 15, 8]]
    assert target["labels"].tolist() == [1, 0]
    assert target["image_id"] == 1
    assert target["masks"].shape == (2, 48, 64)
    assert target["masks"].flatten(1).sum(1).tolist()[0] == 400

    image, target = dataset[-1]
    stored = np.asarray(Image.open(files[0] / "high.png"))
    assert torch.equal(image, torch.from_numpy(stored.copy()).permute(2, 0, 1))
    assert target["boxes"].tolist() == [[0, 0, 40, 10]]
    assert target["masks"][0, :, :10].all()
    assert target["masks"].sum() == 640
    with pytest.raises(IndexError):
        dataset[2]


def test_training_drops_what_the_published_rules_drop(content: dict[str, Any], write: Write) -> None:
    annotation = content["annotations"][0]
    changes = [
        {"iscrowd": 1},
        {"bbox": [5, 5, 0.9, 20]},
        {"bbox": [5, 5, -4, 20]},
        {"bbox": [64, 5, 20, 20]},
        {"bbox": [-30, 5, 30, 20]},
        {"area": 0},
        {"bbox": [-5, -5, 20, 20]},  # kept, and not clipped
    ]
    content["annotations"] += [{**annotation, "id": 100 + i, **change} for i, change in enumerate(changes)]
    content["annotations"] = [a for a in content["annotations"] if a["image_id"] == 1]
    content["images"].append({"id": 3, "file_name": "low.png", "width": 64, "height": 31})
    files = write(content)
    Image.new("RGB", (64, 31)).save(files[0] / "low.png")

    dataset = CocoDataset(*files, training=True)
    boxes = {"boxes without area": 2, "boxes outside the image": 2, "small boxes": 1}
    assert dataset.dropped == {"crowd": 1, **boxes, "images without objects": 1, "small images": 1}
    assert dataset.image_ids == [1]
    assert dataset[0][1]["boxes"].tolist() == [[10, 10, 30, 30], [5, 0, 15, 8], [-5, -5, 15, 15]]

    assert CocoDataset(*files, training=True, min_box_size=15).dropped["small boxes"] == 2
    with_empty = CocoDataset(*files, training=True, masks=True, keep_empty_images=True)
    assert with_empty.image_ids == [1, 2]
    assert with_empty[1][1]["boxes"].shape == (0, 4)
    assert with_empty[1][1]["masks"].shape == (0, 64, 48)

    evaluation = CocoDataset(*files, training=False)
    assert evaluation.image_ids == [1, 2, 3]
    assert not any(evaluation.dropped.values())
    assert len(evaluation[0][1]["labels"]) == 8  # all but the crowd


def test_training_on_nothing_is_refused(content: dict[str, Any], write: Write) -> None:
    files = write({**content, "annotations": []})
    with pytest.raises(ValueError, match="no annotations: there is nothing to be found"):
        CocoDataset(*files, training=False)
    assert len(CocoDataset(*files, training=True, keep_empty_images=True)) == 2
    with pytest.raises(ValueError, match="there is no object to train on"):
        CocoDataset(*files, training=True)


def test_labels_follow_the_classes_of_a_trained_model(content: dict[str, Any], write: Write) -> None:
    files = write(content)
    trained = [Category(7, "cat"), Category(1, "bird"), Category(3, "dog")]
    dataset = CocoDataset(*files, training=False, categories=trained)
    assert [category.name for category in dataset.categories] == ["cat", "bird", "dog"]
    assert dataset[0][1]["labels"].tolist() == [0, 2]
    for unfit in ([Category(7, "cat")], [Category(7, "cat"), Category(3, "wolf")]):
        with pytest.raises(ValueError, match="1 class that the model does not know, such as 'dog' with id 3"):
            CocoDataset(*files, training=False, categories=unfit)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: json.dumps(c)[:-20], "not complete JSON, perhaps cut off"),
        (lambda c: [c], '"images" is missing'),
        (lambda c: {**c, "images": []}, '"images" is missing, empty'),
        (lambda c: {**c, "annotations": None}, '"annotations" is missing'),
        (lambda c: {**c, "images": c["images"] + c["images"][:1]}, "image 1 has the same id"),
        (lambda c: {**c, "images": c["images"][:1]}, "annotation 13 names the unknown image 2"),
        (lambda c: {**c, "categories": c["categories"][:1]}, "annotation 12 names the unknown category 3.*13 names"),
        (
            lambda c: {**c, "images": [{"id": 1, "file_name": "wide.jpg"}, *c["images"][1:]]},
            'image 1 needs .* as "width", which is missing',
        ),
        (
            lambda c: {**c, "annotations": [{"id": 5, "image_id": 1, "category_id": 7}]},
            'annotation 5 needs .* as "bbox", which is missing',
        ),
        (lambda c: {**c, "annotations": [{}] * 10}, "annotation number 1 of the list needs.*and 7 more faults"),
    ],
)
def test_malformed_files_are_refused(content: dict[str, Any], write: Write, change: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        CocoDataset(*write(change(content)), training=True)
    assert "\n" not in str(caught.value)


def test_masks_need_segmentations(content: dict[str, Any], write: Write) -> None:
    content["annotations"][1]["segmentation"] = []
    files = write(content)
    assert len(CocoDataset(*files, training=True)) == 2
    with pytest.raises(ValueError, match="annotation 12 has only a box and no segmentation"):
        CocoDataset(*files, training=True, masks=True)


def test_missing_files_are_named(content: dict[str, Any], write: Write, tmp_path: Path) -> None:
    images, annotations = write(content)
    with pytest.raises(FileNotFoundError, match=r"nowhere does not exist"):
        CocoDataset(tmp_path / "nowhere", annotations, training=True)
    with pytest.raises(FileNotFoundError, match=r"nothing\.json does not exist"):
        CocoDataset(images, tmp_path / "nothing.json", training=True)
    (images / "wide.jpg").unlink()
    for training in (True, False):
        with pytest.raises(FileNotFoundError, match=r"wide\.jpg is not in .*images\."):
            CocoDataset(images, annotations, training=training)


def _save_wide(images: Path, image: Image.Image, name: str, **options: Any) -> Path:
    (images / "wide.jpg").unlink()
    image.save(images / "wide.jpg", format=name, **options)
    return images / "wide.jpg"


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "P", "CMYK", "1", "I;16", "I"])
def test_any_kind_of_image_becomes_rgb(content: dict[str, Any], write: Write, mode: str) -> None:
    images, annotations = write(content)
    grey = np.tile(np.arange(64, dtype=np.uint8) * 4, (48, 1))
    if mode.startswith("I"):
        kind, grey_16 = (np.uint16 if mode == "I;16" else np.int32), grey.astype(np.uint16) * 257
        source = Image.fromarray(grey_16.astype(kind))
    else:
        source = Image.fromarray(grey).convert("RGB").convert(mode)
    _save_wide(images, source, "TIFF")
    image, _ = CocoDataset(images, annotations, training=True)[0]
    assert image.shape == (3, 48, 64)
    expected = Image.fromarray(grey) if mode.startswith("I") else source
    assert np.array_equal(image.permute(1, 2, 0).numpy(), np.asarray(expected.convert("RGB")))


def test_the_size_in_the_file_decides_about_exif_orientation(content: dict[str, Any], write: Write) -> None:
    images, annotations = write(content)
    upright = Image.open(images / "wide.jpg").copy()
    exif = Image.Exif()
    exif[0x0112] = 6  # stored turned by 90 degrees to the left
    _save_wide(images, upright.transpose(Image.Transpose.ROTATE_90), "PNG", exif=exif)
    image, _ = CocoDataset(images, annotations, training=True)[0]
    assert np.array_equal(image.permute(1, 2, 0).numpy(), np.asarray(upright))

    _save_wide(images, upright, "PNG", exif=exif)  # only as it is stored has it the size that the file states
    image, _ = CocoDataset(images, annotations, training=True)[0]
    assert np.array_equal(image.permute(1, 2, 0).numpy(), np.asarray(upright))

    exif[0x0112] = 3  # upside down: upright or not, the size fits, and viewers show it upright
    _save_wide(images, upright.transpose(Image.Transpose.ROTATE_180), "PNG", exif=exif)
    image, _ = CocoDataset(images, annotations, training=True)[0]
    assert np.array_equal(image.permute(1, 2, 0).numpy(), np.asarray(upright))

    _save_wide(images, upright.resize((64, 47)), "PNG")
    with pytest.raises(ValueError, match=r"wide\.jpg is 64x47, but its annotations are for 64x48"):
        CocoDataset(images, annotations, training=True)[0]


@pytest.mark.parametrize(
    ("entries", "turned"),
    [
        (None, False),  # no TIFF header
        ({0x0112: b"6\0"}, False),  # a letter
        ({0x0112: 9}, False),
        (
            {0x0112: 6, 0x0128: b"2\0"},
            True,
        ),  # the unit of resolution is a letter, which Pillow reads but cannot write again
    ],
)
def test_damaged_exif_does_not_matter(
    content: dict[str, Any], write: Write, entries: dict[int, int | bytes] | None, turned: bool
) -> None:
    images, annotations = write(content)
    exif = b"Exif\0\0rubbish"
    if entries is not None:
        exif = b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<H", len(entries))
        for tag, value in entries.items():
            kind, raw = (2, value) if isinstance(value, bytes) else (3, struct.pack("<H", value))
            exif += struct.pack("<HHI", tag, kind, 2 if kind == 2 else 1) + raw.ljust(4, b"\0")
        exif += bytes(4)
    stored = Image.open(images / "wide.jpg").copy()
    upright = stored.rotate(-90, expand=True) if turned else stored
    content["images"][0] |= {"width": upright.width, "height": upright.height}
    write(content)
    _save_wide(images, stored, "PNG", exif=exif)
    assert stated_sizes(images / "wide.jpg") == (upright.size, stored.size)
    image, _ = CocoDataset(images, annotations, training=True)[0]
    assert np.array_equal(image.permute(1, 2, 0).numpy(), np.asarray(upright))
    assert np.array_equal(load_pixels(images / "wide.jpg"), np.asarray(upright))
    assert not check_data(images, annotations).file.refusals("boxes")


def test_the_size_of_a_tiff_is_that_of_its_pixels(tmp_path: Path) -> None:
    path, exif = tmp_path / "a.tif", Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (64, 48)).save(path, exif=exif)
    assert read_image(path).size == (48, 64)
    assert stated_sizes(path) == ((48, 64), (48, 64))
    with Image.open(path) as image:
        assert load_pixels(image).shape == (64, 48, 3)  # turned once


@pytest.mark.parametrize("size", [0, 10, 700])
def test_damaged_images_are_named(content: dict[str, Any], write: Write, size: int) -> None:
    images, annotations = write(content)
    path = images / "wide.jpg"
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(ValueError, match=r"wide\.jpg cannot be read"):
        CocoDataset(images, annotations, training=True)[0]


def test_a_seed_decides_the_transform_alone(content: dict[str, Any], write: Write) -> None:
    transform = training_transforms(range(32, 64), 100)
    dataset = CocoDataset(*write(content), training=True, masks=True, transform=transform)
    torch.manual_seed(1)
    expected = torch.rand(1)

    torch.manual_seed(1)
    image, target = dataset[0, 2**63 - 1]
    assert torch.equal(torch.rand(1), expected)  # the generator outside is untouched
    torch.rand(7)
    image_again, target_again = dataset[0, 2**63 - 1]
    assert torch.equal(image, image_again)
    assert torch.equal(target["boxes"], target_again["boxes"])
    assert torch.equal(target["masks"], target_again["masks"])
    assert len({dataset[0, seed][0].shape for seed in range(10)}) > 3

    torch.manual_seed(5)
    by_hand, _ = dataset[0]
    assert torch.equal(by_hand, dataset[0, 5][0])


def test_coco128_as_its_readme_counts_it(shared_data: Path) -> None:
    files = find_split(shared_data / "coco128", "train")
    training = CocoDataset(*files, training=True)
    assert len(training) == 126
    assert training.dropped == {
        "crowd": 10,
        "boxes without area": 0,
        "boxes outside the image": 0,
        "small boxes": 0,
        "images without objects": 2,
        "small images": 0,
    }
    assert not {250, 508} & set(training.image_ids)
    assert len(training.categories) == 80
    assert sum(len(training[i][1]["labels"]) for i in range(len(training))) == 929
    with_empty = CocoDataset(*files, training=True, keep_empty_images=True)
    assert len(with_empty) == 128
    assert {250, 508} < set(with_empty.image_ids)
    assert len(CocoDataset(*find_split(shared_data / "coco128", "val"), training=False)) == 100


def test_boxes_only_file_of_coco128_is_refused_for_masks(shared_data: Path) -> None:
    root = shared_data / "coco128"
    file = root / "annotations/instances_train_boxes128.json"
    with pytest.raises(ValueError, match="no object has a segmentation"):
        CocoDataset(root / "images/train2017", file, training=True, masks=True)


def test_bccd_as_its_readme_counts_it(shared_data: Path) -> None:
    dataset = CocoDataset(*find_split(shared_data / "bccd", "train"), training=True)
    assert len(dataset) == 205
    assert [category.name for category in dataset.categories] == ["RBC", "WBC", "Platelets"]
    assert len(dataset[0][1]["labels"]) > 0


@pytest.mark.parametrize("split", ["train", "val"])
def test_masks_are_those_of_pycocotools(shared_data: Path, split: Any) -> None:
    files = find_split(shared_data / "coco128", split)
    dataset = CocoDataset(*files, training=False, masks=True)
    oracle = COCO(files[1])
    for index in range(0, len(dataset), 3):
        _, target = dataset[index]
        annotations = oracle.loadAnns(oracle.getAnnIds(target["image_id"], iscrowd=False))
        assert target["masks"].shape[0] == len(annotations)
        for mask, annotation in zip(target["masks"], annotations, strict=True):
            assert np.array_equal(mask.numpy(), oracle.annToMask(annotation))


def test_yolact_trains_on_boxes_larger_than_4_px(content: dict[str, Any], write: Write) -> None:
    sides = (4, 4.01, 3.9)
    content["annotations"] += [
        {**content["annotations"][0], "id": 50 + i, "bbox": [5, 5, side, 9]} for i, side in enumerate(sides)
    ]
    least = get_recipe("ranksort_yolact_r50_55e_coco").data.min_box_size
    dataset = CocoDataset(*write(content), training=True, min_box_size=least)
    assert dataset.dropped["small boxes"] == 2


def test_an_image_without_objects_has_masks_of_the_same_type(content: dict[str, Any], write: Write) -> None:
    del content["annotations"][2]
    target = CocoDataset(*write(content), training=False, masks=True)[1][1]
    assert (target["masks"].dtype, target["masks"].shape) == (torch.uint8, (0, 64, 48))


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no such pipes here")
def test_a_pipe_under_the_name_of_an_image_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    for read in (read_image, stated_sizes):
        with pytest.raises(ValueError, match=r"pipe.jpg is a pipe or a device"):
            read(tmp_path / "pipe.jpg")
