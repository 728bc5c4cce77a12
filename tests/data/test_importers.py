import json
import math
import os
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ranksort.cli import main
from ranksort.data.check import check_data
from ranksort.data.coco import CocoDataset
from ranksort.data.coco_columns import Category
from ranksort.data.importers import import_data, recognize
from ranksort.data.importers.dataset import ImportedDataset, ImportedImage, ImportedObject
from ranksort.data.layouts import find_split

DETECTIONS = [("cat", (10.0, 5.0, 30.0, 25.0)), ("dog", (0.0, 0.0, 64.0, 48.0))]  # corners, of each image of 64x48


def picture(path: Path, size: tuple[int, int] = (64, 48), orientation: int = 1) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.new("RGB", size, "grey").save(path, exif=exif)
    return path


def text(path: Path, content: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)
    return path


def yolo_label(path: Path, *lines: str) -> Path:
    return text(path, "".join(f"{line}\n" for line in lines))


YOLO_LINES = ("0 0.3125 0.3125 0.3125 0.4166667", "1 0.5 0.5 1 1")  # DETECTIONS


@pytest.fixture
def yolo(tmp_path: Path) -> Path:
    """As Ultralytics documents it: two images in train, one in val."""
    root = tmp_path / "yolo"
    text(root / "data.yaml", "train: images/train\nval: images/val\nnames: [cat, dog]\n")
    for name in ("train/a", "train/b", "val/a"):
        picture(root / f"images/{name}.jpg")
        yolo_label(root / f"labels/{name}.txt", *YOLO_LINES)
    return root


def xml(objects: list[str], *, size: tuple[int, int] = (64, 48), filename: str = "", source: str = "Unknown") -> str:
    """As labelImg writes it."""
    return (
        f"<annotation>\n\t<folder>x</folder>\n\t<filename>{filename}</filename>\n\t<source>\n\t\t<database>{source}</database>\n\t</source>\n"
        f"\t<size>\n\t\t<width>{size[0]}</width>\n\t\t<height>{size[1]}</height>\n\t\t<depth>3</depth>\n\t</size>\n"
        f"\t<segmented>0</segmented>\n{''.join(objects)}</annotation>\n"
    )


def entry(name: str, corners: tuple[float, ...], difficult: int = 0) -> str:
    box = "".join(f"<{k}>{v}</{k}>" for k, v in zip(("xmin", "ymin", "xmax", "ymax"), corners, strict=True))
    return f"\t<object>\n<name>{name}</name><pose>Unspecified</pose><difficult>{difficult}</difficult><bndbox>{box}</bndbox></object>\n"


VOC_OBJECTS = [entry(name, corners) for name, corners in DETECTIONS]


@pytest.fixture
def voc(tmp_path: Path) -> Path:
    """The devkit's folders: two images in train, one in val."""
    root = tmp_path / "voc"
    for name in ("a", "b", "c"):
        picture(root / f"JPEGImages/{name}.jpg")
        text(root / f"Annotations/{name}.xml", xml(VOC_OBJECTS, filename=f"{name}.jpg"))
    text(root / "ImageSets/Main/train.txt", "a\nb\n")
    text(root / "ImageSets/Main/val.txt", "c\n")
    return root


def objects(out: Path, split: str = "train") -> dict[str, list[tuple[str, tuple[float, ...]]]]:
    """By file name, the class and the corners of all objects that were written."""
    content = json.loads((out / f"annotations/instances_{split}.json").read_bytes())
    names = {category["id"]: category["name"] for category in content["categories"]}
    found: dict[int, list[Any]] = {image["id"]: [] for image in content["images"]}
    for annotation in content["annotations"]:
        x, y, width, height = annotation["bbox"]
        found[annotation["image_id"]].append((names[annotation["category_id"]], (x, y, x + width, y + height)))
    return {image["file_name"]: found[image["id"]] for image in content["images"]}


def approximate(found: list[tuple[str, tuple[float, ...]]]) -> Any:
    return [(name, pytest.approx(corners, abs=1e-3)) for name, corners in found]


def cases(dataset: ImportedDataset, word: str) -> list[str]:
    """The lines of the remarks whose kind has a word."""
    return [line for kind, lines in dataset.remarks.items() if word in kind for line in lines]


@pytest.mark.parametrize("kind", ["yolo", "voc"])
@pytest.mark.parametrize("copy_images", [False, True])
def test_imported_data_are_trained_on(
    tmp_path: Path, request: pytest.FixtureRequest, kind: str, copy_images: bool
) -> None:
    source, out = request.getfixturevalue(kind), tmp_path / "new" / "out"
    dataset = import_data(source, out, copy_images=copy_images)
    assert not dataset.remarks
    assert (out / "images").is_symlink() != copy_images
    assert len(objects(out)) == 2
    for split in ("train", "val"):
        assert all(found == approximate(DETECTIONS) for found in objects(out, split).values())
        check = check_data(*find_split(out, split)[:2])
        assert [fault.kind for fault in check.faults] == ["no segmentation"]
    if copy_images:
        shutil.move(out, tmp_path / "moved")
        shutil.rmtree(source)
    train = CocoDataset(*find_split(tmp_path / "moved" if copy_images else out, "train"), training=True)
    assert [category.name for category in train.categories] == ["cat", "dog"]
    np.testing.assert_allclose(train[1][1]["boxes"], [corners for _, corners in DETECTIONS], atol=1e-3)


def test_the_command(yolo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    main(["import-data", str(yolo), "--out", str(out)])
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["images", "2", "1"] in lines
    assert ["objects", "4", "2"] in lines
    assert ["dog", "2", "1"] in lines
    assert lines[-1][-2:] == ["--data.root", str(out)]
    with pytest.raises(SystemExit) as end:
        main(["import-data", str(yolo), "--out", str(out)])
    assert end.value.code == 2
    assert "already exists" in capsys.readouterr().err
    with pytest.raises(SystemExit) as end:
        main(["train", "ranksort_atss_lite0_small", "--data.root", str(yolo)])
    assert end.value.code == 2
    assert f"{yolo} is a data set in YOLO format: convert it with `ranksort import-data {yolo} --out DIR`" in (
        capsys.readouterr().err
    )
    assert recognize(out) == ""
    with pytest.raises(ValueError, match=r"has annotations in COCO's format: .*--data\.root"):
        import_data(out, tmp_path / "again")


@pytest.mark.parametrize("when", ["reading", "writing"])
def test_nothing_half_written_is_left(yolo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: str) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(
        f"ranksort.data.importers.{'yolo._read_image' if when == 'reading' else 'dataset._link'}", interrupt
    )
    with pytest.raises(KeyboardInterrupt):
        import_data(yolo, tmp_path / "out")
    assert list(tmp_path.iterdir()) == [yolo]


def test_where_no_link_can_be_made(yolo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError("a required privilege is not held")

    monkeypatch.setattr(Path, "symlink_to", refuse)
    with pytest.raises(ValueError, match=r"privilege is not held\): add --copy-images"):
        import_data(yolo, tmp_path / "out")
    assert list(tmp_path.iterdir()) == [yolo]


def test_polygons_of_yolo(yolo: Path, tmp_path: Path) -> None:
    yolo_label(yolo / "labels/train/a.txt", "1.0 0.25 0.5 0.5 0.25 0.5 0.75", *YOLO_LINES)
    import_data(yolo, tmp_path / "out")
    assert objects(tmp_path / "out")["train/a.jpg"] == approximate([("dog", (16, 12, 32, 36)), *DETECTIONS])
    content = json.loads((tmp_path / "out/annotations/instances_train.json").read_bytes())
    assert content["annotations"][0] | {"id": 0, "image_id": 0} == {
        "id": 0,
        "image_id": 0,
        "category_id": 1,
        "bbox": [16, 12, 16, 24],
        "area": 192,
        "segmentation": [[16, 24, 32, 12, 32, 36]],
        "iscrowd": 0,
    }
    assert content["annotations"][1]["segmentation"] == []


@pytest.mark.parametrize(
    ("yaml", "images"),
    [
        ("path: .\ntrain: images/train\nval:\nnames:\n  0: cat\n  1: dog", 2),
        ("path: ../datasets/yolo\ntrain: [images/train, images/val]\nnames: {0: cat, 1: dog}", 3),
        ("train: ../images/train\nval: ../images/val\nnc: 2\nnames: ['cat', 'dog']", 2),  # Roboflow
        ("train: /content/datasets/yolo/images/train\nnames: [cat, dog]", 2),
        ("train: train.txt\nnames: [cat, dog]", 2),
        ("nc: 2\nnames: [cat, dog]", 2),  # supervision
        ("train: images\nnames: [cat, dog]", 3),
    ],
)
def test_yaml_files_of_yolo(yolo: Path, tmp_path: Path, yaml: str, images: int) -> None:
    (yolo / "data.yaml").unlink()
    text(yolo / "train.txt", f"./images/train/a.jpg\n{yolo / 'images/train/b.jpg'}\n\n")
    text(yolo / "cells.yml", yaml)
    for source, out in ((yolo, "one"), (yolo / "cells.yml", "two")):
        dataset = import_data(source, tmp_path / out)
        assert len(dataset.splits["train"]) == images
        assert [category.name for category in dataset.categories.values()] == ["cat", "dog"]


def test_names_of_yolo_are_as_they_are_written(yolo: Path, tmp_path: Path) -> None:
    """To YAML some of these are booleans and numbers."""
    text(yolo / "data.yaml", "train: images/train\nnames: [on, no, 007, 1.0]\n")
    dataset = import_data(yolo, tmp_path / "out")
    assert [category.name for category in dataset.categories.values()] == ["on", "no", "007", "1.0"]


def test_class_lists_of_yolo(tmp_path: Path) -> None:
    """labelImg and Label Studio: `classes.txt`; Darknet, CVAT and datumaro: `obj.data`, with labels beside the images."""
    for name in ("a", "b"):
        picture(tmp_path / f"studio/images/{name}.jpg")
        yolo_label(tmp_path / f"studio/labels/{name}.txt", *YOLO_LINES)
        picture(tmp_path / f"darknet/obj_{'train' if name == 'a' else 'valid'}_data/{name}.jpg")
        yolo_label(tmp_path / f"darknet/obj_{'train' if name == 'a' else 'valid'}_data/{name}.txt", *YOLO_LINES)
    text(tmp_path / "studio/classes.txt", "cat\ndog\n")
    import_data(tmp_path / "studio", tmp_path / "one")
    assert {name: approximate(found) for name, found in objects(tmp_path / "one").items()} == dict.fromkeys(
        ["a.jpg", "b.jpg"], DETECTIONS
    )
    text(tmp_path / "darknet/obj.names", "cat\ndog\n")
    text(tmp_path / "darknet/train.txt", "data/obj_train_data/a.jpg\n")
    text(tmp_path / "darknet/valid.txt", "data/obj_valid_data/b.jpg\n")
    text(
        tmp_path / "darknet/obj.data",
        "classes = 2\ntrain = data/train.txt\nvalid = data/valid.txt\nnames = data/obj.names\nbackup = backup/\n",
    )
    import_data(tmp_path / "darknet", tmp_path / "two")
    assert objects(tmp_path / "two", "val")["obj_valid_data/b.jpg"] == approximate(DETECTIONS)


def test_darknet_lists_that_name_an_image_twice_or_no_split(tmp_path: Path) -> None:
    folder = tmp_path / "darknet"
    picture(folder / "a.jpg")
    yolo_label(folder / "a.txt", *YOLO_LINES)
    text(folder / "obj.names", "cat\ndog\n")
    text(folder / "train.txt", "a.jpg\n./a.jpg\ndata/a.jpg\n")
    text(folder / "obj.data", "train = train.txt\nvalid =\nnames = obj.names\n")
    dataset = import_data(folder, tmp_path / "out")
    assert {split: [image.path.name for image in images] for split, images in dataset.splits.items()} == {
        "train": ["a.jpg"]
    }


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("0 320 240 100 80", "the coordinate 320 is not within 0..1"),
        ("0 nan 0.5 0.1 0.1", "there is a number that is not finite"),
        ("0 0.5 0.5 0.1", "there are 4 numbers; a class and a box need 5"),
        ("0 0.5 0.5 0.1 0.1 0.9", "is the last one a score, as in detections?"),
        ("0 .5 .5 .1 .1 .5 .5 2", "keypoints need kpt_shape"),
        ("cat 0.5 0.5 0.1 0.1", "'cat 0.5 0.5 0.1 0.1' are not all numbers"),
        ("0 0.5 0.5 -0.2 0.1", "the coordinate -0.2 is not within 0..1"),
    ],
)
def test_an_image_with_a_faulty_line_is_left_out(yolo: Path, tmp_path: Path, line: str, reason: str) -> None:
    file = yolo_label(yolo / "labels/train/b.txt", YOLO_LINES[0], line)
    dataset = import_data(yolo, tmp_path / "out")
    (said,) = cases(dataset, "cannot be read")
    assert said.startswith(f"{file}, line 2: ")
    assert reason in said
    assert said in str(dataset)
    assert list(objects(tmp_path / "out")) == ["train/a.jpg"]


@pytest.mark.parametrize("number", ["2", "-1", "0.5"])
def test_classes_that_do_not_fit_are_refused(yolo: Path, tmp_path: Path, number: str) -> None:
    yolo_label(yolo / "labels/train/b.txt", f"{number} 0.5 0.5 0.1 0.1")
    with pytest.raises(
        ValueError, match=rf"b\.txt, line 1: the class is {number}, but the 2 classes of .*data\.yaml are 0 to 1"
    ):
        import_data(yolo, tmp_path / "out")
    assert list(tmp_path.iterdir()) == [yolo]


def test_remarks_on_yolo(yolo: Path, tmp_path: Path) -> None:
    (yolo / "labels/train/a.txt").unlink()
    yolo_label(yolo / "labels/train/b.txt", "", "0 0.5 0.5 0 0.1", "0 0.1 0.1 0.2 0.2 0.3 0.3", "1 0.5 0.5 1 1")
    yolo_label(yolo / "labels/train/gone.txt", *YOLO_LINES)
    yolo_label(yolo / "labels/train/empty.txt")
    text(yolo / "labels/train/classes.txt", "cat\ndog\n")
    picture(yolo / "images/train/empty.jpg")
    text(yolo / "images/train/broken.png", "no image")
    dataset = import_data(yolo, tmp_path / "out")
    assert cases(dataset, "without a label file") == [str(yolo / "images/train/a.jpg")]
    assert [line.partition(", ")[2] for line in cases(dataset, "without area")] == [
        "line 2: 0 0.5 0.5 0 0.1",
        "line 3: 0 0.1 0.1 0.2 0.2 0.3 0.3",
    ]
    assert cases(dataset, "without an image") == [str(yolo / "labels/train/gone.txt")]
    assert len(cases(dataset, "cannot be read")) == 1
    found = objects(tmp_path / "out")
    assert found["train/a.jpg"] == found["train/empty.jpg"] == []
    assert found["train/b.jpg"] == approximate(DETECTIONS[1:])


def test_images_outside_the_splits_of_yolo(yolo: Path, tmp_path: Path) -> None:
    (yolo / "data.yaml").unlink()
    text(yolo / "classes.txt", "cat\ndog\n")
    extra = picture(yolo / "images/extra.jpg")
    dataset = import_data(yolo, tmp_path / "out")
    assert {split: len(images) for split, images in dataset.splits.items()} == {"train": 2, "val": 1}
    assert cases(dataset, "outside the folders of the splits") == [str(extra)]


@pytest.mark.skipif(sys.platform == "darwin", reason="names of files are Unicode there")
def test_names_of_files_that_are_no_unicode(yolo: Path, tmp_path: Path) -> None:
    (yolo / "images/train/a.jpg").rename(yolo / os.fsdecode(b"images/train/\xff.jpg"))
    (yolo / "labels/train/a.txt").rename(yolo / os.fsdecode(b"labels/train/\xff.txt"))
    import_data(yolo, tmp_path / "out")
    assert objects(tmp_path / "out")[os.fsdecode(b"train/\xff.jpg")] == approximate(DETECTIONS)
    split = find_split(tmp_path / "out", "train")
    assert len([*CocoDataset(*split, training=True)]) == 2


def test_keypoints_of_yolo(yolo: Path, tmp_path: Path) -> None:
    text(yolo / "data.yaml", "train: images/train\nnames: [cat, dog]\nkpt_shape: [2, 2]\n")
    yolo_label(yolo / "labels/train/a.txt", f"{YOLO_LINES[1]} 0.5 0.5 400 0.1")
    dataset = import_data(yolo, tmp_path / "out")
    assert objects(tmp_path / "out")["a.jpg"] == approximate(DETECTIONS[1:])
    assert len(cases(dataset, "keypoints were left out")) == 1


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ("names: [cat, dog]\ntrain: nowhere", "There is no nowhere, which is train of"),
        ("names: {0: cat, 2: dog}\ntrain: images/train", "numbered from 0 without gaps"),
        ("names: cat\ntrain: images/train", "must be a list of the classes"),
        ("names: [cat, [dog]]\ntrain: images/train", "must be a list of the classes"),
    ],
)
def test_malformed_yaml_files_of_yolo(yolo: Path, tmp_path: Path, change: str, reason: str) -> None:
    text(yolo / "data.yaml", change)
    with pytest.raises(ValueError, match=reason):
        import_data(yolo, tmp_path / "out")


def test_nothing_to_import(yolo: Path, tmp_path: Path) -> None:
    for label in yolo.glob("labels/*/*.txt"):
        yolo_label(label, "0 5 5 1 1")
    with pytest.raises(
        ValueError, match=r"There is nothing to use in YOLO .* cannot be read \(3\), such as: .*a\.txt, line 1"
    ):
        import_data(yolo, tmp_path / "out")
    shutil.rmtree(yolo / "labels")
    with pytest.raises(
        ValueError, match=r"None of 3 images of .* has a label file: that of .* would be .*labels/train/a\.txt"
    ):
        import_data(yolo, tmp_path / "out")
    with pytest.raises(FileNotFoundError, match="does not exist"):
        import_data(tmp_path / "nowhere", tmp_path / "out")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"is neither in YOLO's format .* nor in VOC's"):
        import_data(tmp_path / "empty", tmp_path / "out")


def test_photos_that_are_turned(yolo: Path, voc: Path, tmp_path: Path) -> None:
    """YOLO's fractions are of the upright photo; a VOC file states whose size it means."""
    picture(yolo / "images/train/a.jpg", (48, 64), orientation=6)
    picture(voc / "JPEGImages/a.jpg", (48, 64), orientation=6)
    picture(voc / "JPEGImages/b.jpg", orientation=6)
    for source, out in ((yolo, tmp_path / "one"), (voc, tmp_path / "two")):
        import_data(source, out)
        train = CocoDataset(*find_split(out, "train"), training=True)
        for n in range(2):
            image, target = train[n]
            assert image.shape == (3, 48, 64)
            np.testing.assert_allclose(target["boxes"], [corners for _, corners in DETECTIONS], atol=1e-3)


@pytest.mark.parametrize(
    ("source", "corners"),
    [
        ("Unknown", (10, 5, 30, 25)),
        ("The VOC2007 Database</database><annotation>PASCAL VOC2007</annotation><database>", (9, 4, 30, 25)),
        ("roboflow.ai", (9, 4, 30, 25)),
    ],
)
def test_corners_of_voc(voc: Path, tmp_path: Path, source: str, corners: tuple[float, ...]) -> None:
    text(voc / "Annotations/a.xml", xml([entry("cat", (10, 5, 30, 25))], source=source))
    import_data(voc, tmp_path / "out")
    assert objects(tmp_path / "out")["a.jpg"] == [("cat", corners)]


def test_lists_of_voc(voc: Path, tmp_path: Path) -> None:
    picture(voc / "JPEGImages/d e.jpg")
    for name in ("d e", "rest"):
        text(voc / f"Annotations/{name}.xml", xml(VOC_OBJECTS))
    (voc / "ImageSets/Main/train.txt").unlink()
    text(voc / "ImageSets/Main/trainval.txt", 'a\nb\nc\n"d e"\nabsent\n')
    text(voc / "ImageSets/Main/cat_train.txt", "a -1\n")
    picture(voc / "SegmentationClass/a.png")
    picture(voc / "JPEGImages/extra.jpg")
    dataset = import_data(voc, tmp_path / "out")
    assert list(objects(tmp_path / "out")) == ["a.jpg", "b.jpg", "d e.jpg"]
    assert list(objects(tmp_path / "out", "val")) == ["c.jpg"]
    assert [line.split()[0] for line in cases(dataset, "entries of ImageSets/Main")] == ["absent"]
    assert cases(dataset, "no list of ImageSets/Main names") == [str(voc / "Annotations/rest.xml")]
    assert cases(dataset, "images without an annotation file") == [str(voc / "JPEGImages/extra.jpg")]


def test_images_beside_their_xml(tmp_path: Path) -> None:
    """Roboflow's folders: files of one name in several of them stay apart; an XML file goes before the name in it."""
    for folder in ("train", "valid", "test"):
        picture(tmp_path / f"rf/{folder}/a.jpg")
        text(tmp_path / f"rf/{folder}/a.xml", xml(VOC_OBJECTS, filename="another.jpg"))
        picture(tmp_path / f"rf/{folder}/other name.png")
        text(tmp_path / f"rf/{folder}/b.xml", xml(VOC_OBJECTS[:1], filename="other name.png"))
    dataset = import_data(tmp_path / "rf", tmp_path / "out")
    assert not dataset.remarks
    for split, folder in (("train", "train"), ("val", "valid"), ("test", "test")):
        found = objects(tmp_path / "out", split)
        assert found == {f"{folder}/a.jpg": DETECTIONS, f"{folder}/other name.png": DETECTIONS[:1]}


def test_images_of_the_same_name_in_many_folders(tmp_path: Path) -> None:
    """As in videos; with 60 of them, looking at all images for each pair of images takes half a minute."""
    for n in range(60):
        (tmp_path / f"voc/video{n}").mkdir(parents=True)
        for frame in range(3):
            text(tmp_path / f"voc/video{n}/{frame}.xml", xml([entry(f"of {n}", DETECTIONS[0][1])]))
            Image.new("L", (64, 48)).save(tmp_path / f"voc/video{n}/{frame}.png")
    start = time.process_time()
    dataset = import_data(tmp_path / "voc", tmp_path / "out")
    assert time.process_time() - start < 5
    assert not dataset.remarks
    assert all(found[0][0] == f"of {name.split('/')[0][5:]}" for name, found in objects(tmp_path / "out").items())


def test_images_in_folders_parallel_to_those_of_their_xml(tmp_path: Path) -> None:
    for camera in ("left", "right"):
        picture(tmp_path / f"voc/Data/{camera}/day/0.jpg")
        text(tmp_path / f"voc/Annotations/{camera}/day/0.xml", xml([entry(camera, DETECTIONS[0][1])]))
    import_data(tmp_path / "voc", tmp_path / "out")
    assert {name: found[0][0] for name, found in objects(tmp_path / "out").items()} == {
        "left/day/0.jpg": "left",
        "right/day/0.jpg": "right",
    }
    for folder in ("left", "right"):
        picture(tmp_path / f"voc/Other/{folder}/day/0.jpg")
    with pytest.raises(ValueError, match=r"its image could be .*Data/left/day/0.jpg or .*Other/left/day/0.jpg"):
        import_data(tmp_path / "voc", tmp_path / "out2")


def test_many_entries_of_trainval(voc: Path, tmp_path: Path) -> None:
    (voc / "ImageSets/Main/train.txt").unlink()
    names = [f"absent{n}\n" for n in range(10_000)]
    text(voc / "ImageSets/Main/val.txt", "".join(["c\n", *names]))
    text(voc / "ImageSets/Main/trainval.txt", "".join(["a\nb\nc\n", *names]))
    start = time.process_time()
    import_data(voc, tmp_path / "out")
    assert time.process_time() - start < 2
    assert list(objects(tmp_path / "out")) == ["a.jpg", "b.jpg"]


def test_many_images_that_a_yolo_list_misses(yolo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The folder is not listed again for each of them."""
    text(yolo / "train.txt", "".join(f"images/train/{name}.jpg\n" for name in ("a", "b", *range(50))))
    text(yolo / "data.yaml", "train: train.txt\nval: images/val\nnames: [cat, dog]\n")
    listed, list_folder = [], os.listdir
    monkeypatch.setattr(os, "listdir", lambda path: [listed.append(path), list_folder(path)][1])
    dataset = import_data(yolo, tmp_path / "out")
    assert len(objects(tmp_path / "out")) == 2
    assert len(cases(dataset, "listed but missing")) == 50
    assert 0 < len(listed) < 100


def test_remarks_on_voc(voc: Path, tmp_path: Path) -> None:
    polygon = VOC_OBJECTS[1].replace("</bndbox>", "</bndbox><polygon><x1>1</x1><y1>1</y1></polygon>")
    text(voc / "Annotations/a.xml", xml([entry("cat", (1, 1, 9, 9), difficult=1), entry("cat", (5, 5, 5, 9)), polygon]))
    dataset = import_data(voc, tmp_path / "out")
    assert [len(cases(dataset, word)) for word in ("difficult", "without area", "polygons were left out")] == [1, 1, 1]
    content = json.loads((tmp_path / "out/annotations/instances_train.json").read_bytes())
    assert [annotation["iscrowd"] for annotation in content["annotations"]] == [1, 0, 0, 0]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ('<!DOCTYPE a [<!ENTITY b "c">]>' + xml(VOC_OBJECTS), "declares a document type"),
        (xml(VOC_OBJECTS)[:-20], "is not complete XML"),
        ("", "is not complete XML"),
        ("<html></html>", "is not an annotation but <html>"),
        (xml(VOC_OBJECTS, size=(640, 480)), "it is for an image of 640x480, but .* has 64x48 pixels"),
        (xml([VOC_OBJECTS[0].replace("<xmax>30.0</xmax>", "")]), r"object 1 \(cat\): it has no <bndbox>"),
        (xml([VOC_OBJECTS[0].replace("30.0", "nan")]), r"object 1 \(cat\): it has no <bndbox>"),
        (xml([entry("", (1, 1, 9, 9))]), "object 1: it has no name"),
    ],
)
def test_faulty_xml_is_left_out(voc: Path, tmp_path: Path, content: str, reason: str) -> None:
    file = text(voc / "Annotations/a.xml", content)
    dataset = import_data(voc, tmp_path / "out")
    (said,) = cases(dataset, "cannot be read")
    assert said.startswith(str(file))
    with pytest.raises(ValueError, match=reason):
        raise ValueError(said)
    assert list(objects(tmp_path / "out")) == ["b.jpg"]


def test_sizes_that_an_xml_file_does_not_state(voc: Path, tmp_path: Path) -> None:
    text(voc / "Annotations/a.xml", xml(VOC_OBJECTS, size=(0, 0)))
    text(voc / "Annotations/b.xml", f"<annotation>{''.join(VOC_OBJECTS)}</annotation>")
    import_data(voc, tmp_path / "out")
    content = json.loads((tmp_path / "out/annotations/instances_train.json").read_bytes())
    assert {(image["width"], image["height"]) for image in content["images"]} == {(64, 48)}


def test_bccd_by_way_of_yolo_and_voc(shared_data: Path, tmp_path: Path) -> None:
    content = json.loads((shared_data / "bccd/annotations/instances_val.json").read_bytes())
    names = {category["id"]: category["name"] for category in content["categories"]}
    expected: dict[str, list[tuple[str, tuple[float, ...]]]] = {}
    for image in content["images"][:10]:
        stem, (width, height) = Path(image["file_name"]).stem, (image["width"], image["height"])
        lines, elements = [], []
        for annotation in (a for a in content["annotations"] if a["image_id"] == image["id"]):
            x, y, w, h = annotation["bbox"]
            name = names[annotation["category_id"]]
            expected.setdefault(image["file_name"], []).append((name, (x, y, x + w, y + h)))
            elements.append(entry(name, (x, y, x + w, y + h)))
            box = ((x + w / 2) / width, (y + h / 2) / height, w / width, h / height)
            lines.append(f"{list(names.values()).index(name)} " + " ".join(f"{value:.7f}" for value in box))
        for folder in ("yolo/images", "voc/JPEGImages"):
            (tmp_path / folder).mkdir(parents=True, exist_ok=True)
            (tmp_path / folder / image["file_name"]).symlink_to(shared_data / "bccd/images" / image["file_name"])
        yolo_label(tmp_path / f"yolo/labels/{stem}.txt", *lines)
        text(tmp_path / f"voc/Annotations/{stem}.xml", xml(elements, size=(width, height), filename=image["file_name"]))
    text(tmp_path / "yolo/data.yaml", f"train: images\nnames: {list(names.values())}\n")
    for kind in ("yolo", "voc"):
        import_data(tmp_path / kind, tmp_path / f"{kind}_out")
        found = objects(tmp_path / f"{kind}_out")
        assert {name: approximate(entries) for name, entries in found.items()} == expected


def test_roboflow_lists_a_test_split_that_it_did_not_export(yolo: Path, tmp_path: Path) -> None:
    (yolo / "data.yaml").write_text("train: images/train\nval: images/val\ntest: ../test/images\nnames: [cat, dog]\n")
    report = str(import_data(yolo, tmp_path / "out"))
    assert "../test/images, which is test of" in report
    assert sorted(file.name for file in (tmp_path / "out/annotations").iterdir()) == [
        "instances_train.json",
        "instances_val.json",
    ]


def test_images_of_two_splits_are_named(yolo: Path, tmp_path: Path) -> None:
    (yolo / "data.yaml").write_text("train: images\nval: images/val\nnames: [cat, dog]\n")
    assert "both for training and for evaluation" in str(import_data(yolo, tmp_path / "out"))


def test_labels_beside_the_images(tmp_path: Path) -> None:
    """As labelImg saves them: images, labels and classes.txt in one folder."""
    folder = tmp_path / "labelimg"
    text(folder / "classes.txt", "cat\ndog\n")
    for name in "ab":
        picture(folder / f"{name}.jpg")
        yolo_label(folder / f"{name}.txt", *YOLO_LINES)
    import_data(folder, tmp_path / "out")
    content = json.loads((tmp_path / "out/annotations/instances_train.json").read_text())
    assert (len(content["images"]), len(content["annotations"])) == (2, 4)


@pytest.mark.parametrize("wrong", ["names:\n\t- cat", "names: [cat, , dog]"])
def test_yaml_files_with_an_error_of_syntax(yolo: Path, tmp_path: Path, wrong: str) -> None:
    (yolo / "data.yaml").write_text(f"train: images/train\nval: images/val\n{wrong}\n")
    with pytest.raises(ValueError, match=r"data\.yaml, line [34]: this is not YAML"):
        import_data(yolo, tmp_path / "out")


def test_what_a_yolo_list_misses_is_left_out(yolo: Path, tmp_path: Path) -> None:
    lines = ["./images/train/a.jpg", "./images/train/gone.jpg"]
    text(yolo / "train.txt", "\n".join(lines))
    text(yolo / "data.yaml", "train: [train.txt, images/nowhere]\nval: images/val\nnames: [cat, dog]\n")
    dataset = import_data(yolo, tmp_path / "out")
    assert len(dataset.splits["train"]) == 1
    (missing,) = [cases for kind, cases in dataset.remarks.items() if kind.startswith("listed but missing")]
    assert [line.split(",")[0] for line in missing] == ["./images/train/gone.jpg", "images/nowhere"]
    text(yolo / "train.txt", lines[1])
    with pytest.raises(ValueError, match=r"There is no \./images/train/gone\.jpg"):
        import_data(yolo, tmp_path / "none")


def test_a_stray_yaml_is_not_taken(yolo: Path, tmp_path: Path) -> None:
    text(yolo / "args.yaml", "task: detect\nnc: 7\ndata: x.yaml\n")
    (yolo / "data.yaml").rename(yolo / "pets.yaml")
    assert "pets.yaml" in str(import_data(yolo, tmp_path / "out"))


def test_equal_classes_of_yolo_are_said(yolo: Path, tmp_path: Path) -> None:
    text(yolo / "data.yaml", "train: images/train\nval: images/val\nnames: [cat, dog, Cat]\n")
    said = str(import_data(yolo, tmp_path / "out"))
    assert "classes with the same name" in said
    assert "\n  0, 2: cat" in said


def test_a_split_without_labels_is_not_ready(yolo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of validation it is left out, so that the other file is divided; of training it is said."""
    shutil.copytree(yolo, tmp_path / "other")
    shutil.rmtree(yolo / "labels" / "val")
    main(["import-data", str(yolo), "--out", str(tmp_path / "the out")])
    said = capsys.readouterr().out
    assert f"\n  val, 1 image such as {yolo}/images/val/a.jpg\n" in said
    assert f"next: ranksort train RECIPE --data.root '{tmp_path}/the out'" in said
    assert find_split(tmp_path / "the out", "val").part == "val"
    shutil.rmtree(tmp_path / "other" / "labels" / "train")
    main(["import-data", str(tmp_path / "other"), "--out", str(tmp_path / "b")])
    assert "it cannot be trained on: none of 2 images for training has an object" in capsys.readouterr().out


def test_a_list_of_classes_with_images_for_validation_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text(tmp_path / "in" / "classes.txt", "cat\ndog\n")
    picture(tmp_path / "in/images/valid/a.jpg")
    yolo_label(tmp_path / "in/labels/valid/a.txt", *YOLO_LINES)
    main(["import-data", str(tmp_path / "in"), "--out", str(tmp_path / "out")])
    assert "it cannot be trained on: no image is for training" in capsys.readouterr().out
    assert not (tmp_path / "out/annotations/instances_train.json").exists()
    picture(tmp_path / "in/images/b.jpg")
    yolo_label(tmp_path / "in/labels/b.txt", *YOLO_LINES)
    dataset = import_data(tmp_path / "in", tmp_path / "both")
    assert {split: len(images) for split, images in dataset.splits.items()} == {"val": 1, "train": 1}


def test_a_folder_in_another_case_is_named(yolo: Path, tmp_path: Path) -> None:
    (yolo / "images" / "train").rename(yolo / "images" / "Train")
    with pytest.raises(ValueError, match=f"There is no images/train, .*; there is {yolo}/images/Train: use that name"):
        import_data(yolo, tmp_path / "out")


BOX = (1.0, 1.0, 5.0, 5.0)


@pytest.mark.parametrize(
    ("splits", "message"),
    [
        (None, "must return an ImportedDataset, not a list"),
        ({"valid": []}, "the split valid: splits are train, val and test"),
        ({"train": iter(())}, "the split train as a tuple_iterator: make it a list"),
        ({"train": ["a.png"]}, "a.png in the split train: it must be an ImportedImage"),
        ({"train": [ImportedImage(Path("no.png"), 64, 48)]}, "the image no.png, which does not exist"),
        ([None], r"a\.png .* None, which new_object returns"),
        ([("cat", BOX)], "an object of type tuple: make it with new_object"),
        ([ImportedObject("dog", BOX)], r"a\.png .* the class 'dog', which is not among its categories"),
        ([ImportedObject("cat", (1, 1, math.nan, 5))], "the box .*nan.*: it must be four finite numbers"),
        ([ImportedObject("cat", (9, 9, -3, -3))], "the box .*-3.*: .* the last two above 0"),
        ([ImportedObject("cat", ("1", "1", "5", "5"))], "the box .*: it must be four finite numbers"),  # type: ignore[arg-type]
        ([ImportedObject("cat", BOX, [[1, 1, 5, 1, 5, 5]])], "the polygon .*: it must be one list"),  # type: ignore[list-item]
        ([ImportedObject("cat", BOX, [1, 1, 5, 1, 5])], "the polygon .*: it must be one list"),
    ],
)
def test_mistakes_of_a_reader_are_named(tmp_path: Path, splits: Any, message: str) -> None:
    splits = (
        {"train": [ImportedImage(picture(tmp_path / "a.png"), 64, 48, splits)]} if isinstance(splits, list) else splits
    )

    def read(folder: Path) -> Any:
        return [] if splits is None else ImportedDataset("mine", {"cat": Category(1, "cat")}, splits)

    with pytest.raises(ValueError, match=message):
        import_data(tmp_path, tmp_path / "out", read=read)


@pytest.mark.parametrize(
    ("categories", "message"),
    [
        ({"cat": Category(1, "cat"), "dog": Category(1, "dog")}, "the classes cat and dog with the same id 1"),
        ({"cat": Category(1, " ")}, "the class 'cat' without a name"),
        ({"cat": "cat"}, r"the class 'cat' as 'cat': it must be a Category\(id, name\)"),
    ],
)
def test_mistakes_of_a_reader_in_classes_are_named(tmp_path: Path, categories: Any, message: str) -> None:
    image = ImportedImage(picture(tmp_path / "a.png"), 64, 48, [ImportedObject("cat", BOX)])
    with pytest.raises(ValueError, match=message):
        import_data(tmp_path, tmp_path / "out", read=lambda _: ImportedDataset("mine", categories, {"train": [image]}))


def test_a_reader_may_return_numbers_of_numpy(tmp_path: Path) -> None:
    box, polygon = np.array([1, 2, 4, 4], np.float32), np.array([1, 2, 5, 2, 5, 6], np.float32)
    entry = ImportedObject(np.int64(3), box, polygon)  # type: ignore[arg-type]
    image = ImportedImage(picture(tmp_path / "in" / "a.png"), np.int64(64), np.int64(48), [entry])
    dataset = ImportedDataset("mine", {3: Category(np.int64(3), "cat")}, {"train": [image]})
    import_data(tmp_path / "in", tmp_path / "out", read=lambda _: dataset)
    assert objects(tmp_path / "out") == {"a.png": [("cat", (1, 2, 5, 6))]}


@pytest.mark.parametrize(("images", "labels", "suffix"), [("Images", "Labels", ".txt"), ("Images", "labels", ".TXT")])
def test_folders_and_suffixes_of_yolo_in_capitals(tmp_path: Path, images: str, labels: str, suffix: str) -> None:
    picture(tmp_path / "in" / images / "a.JPG")
    yolo_label(tmp_path / "in" / labels / f"a{suffix}", *YOLO_LINES)
    text(tmp_path / "in" / "data.YAML", f"train: {images}\nval: {images}\nnames: [cat, dog]\n")
    import_data(tmp_path / "in", tmp_path / "out")
    assert approximate(DETECTIONS) == objects(tmp_path / "out")["a.JPG"]


def test_files_in_another_encoding_are_named(yolo: Path, voc: Path, tmp_path: Path) -> None:
    label = next(yolo.glob("labels/train/*.txt"))
    label.write_bytes(label.read_bytes() + "# Käse".encode("latin-1"))
    assert any(str(label) in line for line in cases(import_data(yolo, tmp_path / "out"), "cannot be read"))
    (yolo / "data.yaml").write_bytes((yolo / "data.yaml").read_bytes() + "# Käse".encode("latin-1"))
    with pytest.raises(ValueError, match=r"data\.yaml is not text in UTF-8: save it in that encoding"):
        import_data(yolo, tmp_path / "out2")
    (yolo / "data.yaml").unlink()
    (yolo / "classes.txt").write_bytes("Käse\nDog".encode("latin-1"))
    with pytest.raises(ValueError, match=r"classes\.txt is not text in UTF-8: save it in that encoding"):
        import_data(yolo, tmp_path / "out2")
    annotation = next(voc.rglob("*.xml"))
    content = '<?xml version="1.0" encoding="gbk"?>' + annotation.read_text()
    annotation.write_bytes(content.encode("gbk"))
    assert any(
        str(annotation) in line and "save it in UTF-8" in line
        for line in cases(import_data(voc, tmp_path / "out3"), "cannot be read")
    )


def test_a_class_of_yolo_without_a_name_is_refused(yolo: Path, tmp_path: Path) -> None:
    content = (yolo / "data.yaml").read_text()
    text(yolo / "data.yaml", content[: content.index("names")] + "names: [cat, '']\n")
    with pytest.raises(ValueError, match=r"Class 1 of .*data\.yaml has no name: give it one"):
        import_data(yolo, tmp_path / "out")


def test_images_without_any_object_are_counted(tmp_path: Path) -> None:
    picture(tmp_path / "in" / "images" / "a.jpg")
    yolo_label(tmp_path / "in" / "labels" / "a.txt")
    text(tmp_path / "in" / "classes.txt", "cat")
    with pytest.raises(ValueError, match=r"nothing to use in .*: none of its 1 image has an object"):
        import_data(tmp_path / "in", tmp_path / "out")


def test_images_that_share_a_label_file_are_named(yolo: Path, tmp_path: Path) -> None:
    image = next((yolo / "images" / "train").iterdir())
    picture(image.with_suffix(".bmp"))
    (line,) = cases(import_data(yolo, tmp_path / "out"), "several images")
    assert image.name in line
    assert image.with_suffix(".bmp").name in line


def test_lists_of_voc_in_another_encoding_are_named(voc: Path, tmp_path: Path) -> None:
    (voc / "ImageSets/Main/train.txt").write_bytes("a\nKäse\n".encode("latin-1"))
    with pytest.raises(ValueError, match=r"Main/train\.txt is not text in UTF-8: save it in that encoding"):
        import_data(voc, tmp_path / "out")


def test_the_working_directory_is_not_replaced(yolo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    for out in (".", str(tmp_path / "here")):
        with pytest.raises(FileExistsError, match="already exists: name another folder with --out"):
            import_data(yolo, Path(out))


def test_lists_of_voc_may_name_image_files(voc: Path, tmp_path: Path) -> None:
    lists = [file for file in voc.rglob("ImageSets/Main/*.txt") if file.name in ("train.txt", "val.txt")]
    before = {split: len(images) for split, images in import_data(voc, tmp_path / "out").splits.items()}
    for file in lists:
        text(file, "".join(f"{line}.jpg\n" for line in file.read_text().split()))
    dataset = import_data(voc, tmp_path / "out2")
    assert {split: len(images) for split, images in dataset.splits.items()} == before
    for file in lists:
        text(file, "nowhere\n")
    assert len(cases(import_data(voc, tmp_path / "out3"), "entries of ImageSets/Main")) == len(lists) > 0


def test_equal_classes_of_voc_are_said(voc: Path, tmp_path: Path) -> None:
    first = next(file for file in sorted(voc.rglob("*.xml")) if "<name>cat<" in file.read_text())
    text(first, first.read_text().replace("<name>cat<", "<name>Cat<"))
    assert cases(import_data(voc, tmp_path / "out"), "differ only in case") == ["Cat, cat"]
