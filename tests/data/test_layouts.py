import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ranksort import engine
from ranksort.checkpoints import read_checkpoint
from ranksort.cli import main
from ranksort.data.check import check_data
from ranksort.data.coco import CocoDataset
from ranksort.data.coco_columns import Category, require_known
from ranksort.data.coco_file import read_coco_file
from ranksort.data.fingerprint import fingerprint
from ranksort.data.layouts import Split, find_split
from ranksort.data.splits import part_of, split_of
from ranksort.recipes import Recipe
from ranksort.recipes.build import build_dataset

CLASSES = [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]


def content(names: list[str], classes: list[list[int]] | None = None, **sections: Any) -> dict[str, Any]:
    """An annotation file: by image the category ids of its objects; by default one cat and one dog."""
    classes = classes or [[1, 2]] * len(names)
    objects = [(image, category) for image, of_image in enumerate(classes) for category in of_image]
    return {
        "images": [{"id": n, "file_name": name, "width": 64, "height": 48} for n, name in enumerate(names)],
        "categories": CLASSES,
        "annotations": [
            {
                "id": n,
                "image_id": image,
                "category_id": category,
                "bbox": [4 + n % 9, 5, 20, 20],
                "area": 400,
                "iscrowd": 0,
            }
            for n, (image, category) in enumerate(objects)
        ],
    } | sections


def write(root: Path, file: str, folder: str, names: list[str], **sections: Any) -> Path:
    """An annotation file, and its images in a folder."""
    for name in names:
        path = root / folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (64, 48), "grey").save(path)
    (root / file).parent.mkdir(parents=True, exist_ok=True)
    (root / file).write_text(json.dumps(content(names, **sections)))
    return root / file


def names_of(dataset: CocoDataset) -> list[str]:
    return [dataset.file_name(n) for n in range(len(dataset))]


@pytest.mark.parametrize("folder", ["train2017", "images/train2017", "images/train", "train", "images"])
@pytest.mark.parametrize("file", ["instances_train2017.json", "instances_train.json"])
def test_layout_of_coco(tmp_path: Path, folder: str, file: str) -> None:
    (tmp_path / "annotations").mkdir()
    annotations = tmp_path / "annotations" / file
    annotations.write_text(json.dumps({"images": [{"file_name": 'sub/ä "1".jpg'}]}))
    (tmp_path / "train2017").mkdir()  # empty: not chosen unless the image is in it
    with pytest.raises(FileNotFoundError, match=r"is in none of .*train2017.*--data\.train-images"):
        find_split(tmp_path, "train")
    assert find_split(tmp_path, "train", images=tmp_path, divide=False) == (tmp_path, annotations, None)
    (tmp_path / folder / "sub").mkdir(parents=True)
    (tmp_path / folder / "sub" / 'ä "1".jpg').touch()
    assert find_split(tmp_path, "train") == (tmp_path / folder, annotations, "train")
    assert find_split(tmp_path, "val") == (tmp_path / folder, annotations, "val")
    with pytest.raises(
        FileNotFoundError, match=r"no annotations for val in .*instances_val2017.*--data\.val-annotations"
    ):
        find_split(tmp_path, "val", divide=False)


def test_a_file_that_is_no_json(tmp_path: Path) -> None:
    (tmp_path / "annotations").mkdir()
    file = tmp_path / "annotations" / "instances_val.json"
    file.write_text('{"images": [{"id": 1, "file_name": "images\\quay.jpg"}]}')
    with pytest.raises(ValueError, match=f"The annotation file {re.escape(str(file))} is not complete JSON"):
        find_split(tmp_path, "val")


def test_layout_of_roboflow(tmp_path: Path) -> None:
    for folder in ("train", "valid", "test"):
        write(tmp_path, f"{folder}/_annotations.coco.json", folder, ["a.jpg", "b.jpg"])
    assert find_split(tmp_path, "train") == (tmp_path / "train", tmp_path / "train/_annotations.coco.json", None)
    assert find_split(tmp_path, "val") == (tmp_path / "valid", tmp_path / "valid/_annotations.coco.json", None)
    shutil.rmtree(tmp_path / "valid")  # the test split of an export of two
    assert find_split(tmp_path, "val") == (tmp_path / "test", tmp_path / "test/_annotations.coco.json", None)
    assert find_split(tmp_path, "train").part is None
    shutil.rmtree(tmp_path / "test")
    assert find_split(tmp_path, "val") == (tmp_path / "train", tmp_path / "train/_annotations.coco.json", "val")
    assert find_split(tmp_path, "train").part == "train"


@pytest.mark.parametrize(
    ("file", "folder", "name", "images"),
    [
        ("annotations.json", "images", "a.jpg", "images"),
        ("coco.json", "", "a.jpg", ""),
        ("result.json", "images", "images/a.jpg", ""),  # Label Studio
        ("annotations/instances_default.json", "images", "a.jpg", "images"),  # CVAT
        ("annotations/instances_default.json", "images/default", "a.jpg", "images/default"),
        ("labels.json", "data", "a.jpg", "data"),  # FiftyOne
        ("export/labels.json", "export/data", "a.jpg", "export/data"),
        ("annotations.json", "images", "C:\\export\\a.jpg", "images"),
    ],
)
def test_layouts_of_a_single_file(tmp_path: Path, file: str, folder: str, name: str, images: str) -> None:
    written = write(tmp_path, file, folder, ["a.jpg"])
    written.write_text(written.read_text().replace('"a.jpg"', json.dumps(name)))
    (tmp_path / "notes.json").write_text('{"classes": []}')
    for split in ("train", "val"):
        assert find_split(tmp_path, split) == (tmp_path / images, written, split)


@pytest.mark.parametrize("files", [("train.json", "val.json"), ("data/training.json", "data/validation.json")])
def test_other_names_of_the_splits(tmp_path: Path, files: tuple[str, str]) -> None:
    for file in files:
        write(tmp_path, file, "images", ["a.jpg"])
    assert find_split(tmp_path, "train") == (tmp_path / "images", tmp_path / files[0], None)
    assert find_split(tmp_path, "val") == (tmp_path / "images", tmp_path / files[1], None)


def test_words_of_a_path() -> None:
    assert split_of(Path("instances_train2017.json")) == "train"
    assert split_of(Path("Valid/_annotations.coco.json")) == "val"
    assert split_of(Path("testing/labels.json")) == "test"
    assert split_of(Path("trains/contest.json")) == split_of(Path("train/val.json")) == ""


def test_layouts_that_are_unclear(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nowhere does not exist: .*--data\.root"):
        find_split(tmp_path / "nowhere", "train")
    with pytest.raises(
        FileNotFoundError, match=r"There are no annotations for train in .*train/_annotations\.coco\.json"
    ):
        find_split(tmp_path, "train")
    write(tmp_path, "one.json", "images", ["a.jpg"])
    write(tmp_path, "two.json", "images", ["a.jpg"])
    with pytest.raises(
        ValueError, match=r"could be .*one\.json or .*two\.json: name one with --data\.train-annotations"
    ):
        find_split(tmp_path, "train")
    (tmp_path / "two.json").rename(tmp_path / "val.json")
    with pytest.raises(FileNotFoundError, match=r"no annotations for train .*there are .*val\.json.*one\.json"):
        find_split(tmp_path, "train")
    assert find_split(tmp_path, "val").annotations == tmp_path / "val.json"


def test_a_file_is_divided_by_image(tmp_path: Path) -> None:
    names = [f"{n:02}.jpg" for n in range(20)]
    classes = [[1], [2], [1, 1], []] * 5
    write(tmp_path, "annotations.json", "images", names, classes=classes)
    split = find_split(tmp_path, "val")
    val = CocoDataset(*split, training=False)
    train = CocoDataset(
        *find_split(tmp_path, "train"), training=True, keep_empty_images=True, categories=val.categories
    )
    assert sorted(names_of(train) + names_of(val)) == names
    assert len(val) == 4
    assert val.file is not None
    assert val.file.images.ids == val.image_ids
    assert "one fifth of" in val.origin
    assert "four fifths of" in train.origin
    for dataset in (train, val):
        for n in range(len(dataset)):
            number = names.index(dataset.file_name(n))
            assert (dataset[n][1]["labels"] + 1).tolist() == classes[number]
    # The order of the file and what crowds are taken for make no difference.
    changed = content(names, classes)
    changed["images"].reverse()
    changed["annotations"][0]["iscrowd"] = 1
    (tmp_path / "annotations.json").write_text(json.dumps(changed))
    assert sorted(names_of(CocoDataset(*split, training=False))) == sorted(names_of(val))


def test_a_rare_class_is_in_both_parts(tmp_path: Path) -> None:
    classes = [[1]] * 98 + [[1, 2]] * 2
    path = tmp_path / "a.json"
    for seed in range(5):
        path.write_text(json.dumps(content([f"{seed}-{n}.jpg" for n in range(100)], classes)))
        file = read_coco_file(path, segmentations=False)
        train, val = part_of(file, "train"), part_of(file, "val")
        assert (len(train.images), len(val.images)) == (80, 20)
        assert np.bincount(train.annotations.category).tolist() == [80, 1]
        assert np.bincount(val.annotations.category).tolist() == [20, 1]


def test_versions_of_a_photo_stay_together(tmp_path: Path) -> None:
    names = [f"{photo}_jpg.rf.{version}{photo}f0.jpg" for photo in range(20) for version in "abc"]
    path = tmp_path / "a.json"
    path.write_text(json.dumps(content(names + names[:3])))  # three entries are of the same files
    val = part_of(read_coco_file(path, segmentations=False), "val")
    photos = [val.images.file_name(n).split("_")[0] for n in range(len(val.images))]
    assert len(set(photos)) == 4
    assert all(photos.count(photo) == (6 if photo == "0" else 3) for photo in photos)


def test_too_few_images_to_divide(tmp_path: Path) -> None:
    write(tmp_path, "annotations.json", "images", ["a.jpg"])
    with pytest.raises(ValueError, match="too few images to split them into training and validation"):
        CocoDataset(*find_split(tmp_path, "train"), training=True)


@pytest.mark.parametrize(("crowds", "lacking"), [(0, "validation"), (5, "training")])
def test_too_few_images_with_objects_to_divide(tmp_path: Path, crowds: int, lacking: str) -> None:
    """Validation would have nothing to find, which it would only notice after an epoch."""
    names = [f"{n}.jpg" for n in range(10)]
    write(tmp_path, "annotations.json", "images", names)
    path = tmp_path / "annotations.json"
    file = json.loads(path.read_text())
    objects = file["annotations"]
    file["annotations"] = [objects[0], *({**entry, "iscrowd": 1} for entry in objects[1 : 1 + crowds])]
    path.write_text(json.dumps(file))
    with pytest.raises(ValueError, match=rf"too few images with objects to split them .* \(none for {lacking}\)"):
        CocoDataset(*find_split(tmp_path, "val"), training=False)


@pytest.mark.parametrize("change", [{"bbox": [4, 5, 20, 0]}, {"bbox": [99, 5, 20, 20]}, {"area": 0}])
def test_training_part_without_an_object_to_train_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], change: dict[str, Any]
) -> None:
    """`check-data` must not call usable what `train` cannot use."""
    path = write(tmp_path, "annotations.json", "images", ["a.jpg", "b.jpg"], classes=[[1], [1]])
    file = json.loads(path.read_text())
    (held_out,) = names_of(CocoDataset(*find_split(tmp_path, "val"), training=False))
    file["annotations"][held_out == "a.jpg"] |= change  # the one that is not held out
    path.write_text(json.dumps(file))
    sentence = r"too few images with objects to split them .* \(none for training\)"
    with pytest.raises(ValueError, match=sentence):
        CocoDataset(*find_split(tmp_path, "train"), training=True)
    with pytest.raises(SystemExit):
        main(["check-data", str(tmp_path)])
    assert re.search(sentence, capsys.readouterr().err)
    # Named for training, it leaves the other image.
    images = tmp_path / "images"
    assert names_of(CocoDataset(images, path, training=True)) == [held_out]
    with pytest.raises(ValueError, match=r"no image to train on \(left out: 4 small boxes, 2 images without objects\)"):
        CocoDataset(images, write(tmp_path, "c.json", "images", ["a.jpg", "b.jpg"]), training=True, min_box_size=30)


def test_recipe_divides_a_file_unless_one_is_named(tmp_path: Path, tiny_recipe: Recipe) -> None:
    file = write(tmp_path, "annotations.json", "images", [f"{n}.jpg" for n in range(10)])
    tiny_recipe.data.root = str(tmp_path)
    train, val = build_dataset(tiny_recipe, "train"), build_dataset(tiny_recipe, "val")
    assert (len(train), len(val)) == (8, 2)
    assert fingerprint(train) == fingerprint(build_dataset(Recipe.from_dict(tiny_recipe.as_dict()), "train"))
    tiny_recipe.data.train_annotations = str(file)
    assert len(build_dataset(tiny_recipe, "train")) == 10
    with pytest.raises(FileNotFoundError, match=r"--data\.val-annotations"):
        build_dataset(tiny_recipe, "val")


def test_placeholder_of_roboflow_is_no_class(tmp_path: Path) -> None:
    categories = [{"id": 0, "name": "pets", "supercategory": "none"}] + [c | {"supercategory": "pets"} for c in CLASSES]
    for folder in ("train", "valid"):
        file = write(tmp_path, f"{folder}/_annotations.coco.json", folder, ["a.jpg"], categories=categories)
    train = CocoDataset(*find_split(tmp_path, "train"), training=True)
    assert [category.id for category in train.categories] == [1, 2]
    assert train[0][1]["labels"].tolist() == [0, 1]
    assert "1 class 'pets', which has no object and only names the group of the others" in str(train)
    val = CocoDataset(*find_split(tmp_path, "val"), training=False, categories=train.categories)
    assert val.file is not None
    assert [category.id for category in val.file.categories] == [1, 2]
    assert val[0][1]["labels"].tolist() == [0, 1]
    assert "category 0 (pets) has no object and is the supercategory of others" in str(check_data(file.parent, file))
    require_known(read_coco_file(file, segmentations=False), train.categories)
    # A model that was trained with it keeps it, and one with objects is a class.
    older = (Category(0, "pets"), *train.categories)
    assert CocoDataset(*find_split(tmp_path, "val"), training=False, categories=older)[0][1]["labels"].tolist() == [
        1,
        2,
    ]
    file.write_text(file.read_text().replace('"category_id": 2', '"category_id": 0'))
    with pytest.raises(ValueError, match=r"1 class that the model does not know, such as 'pets' with id 0"):
        CocoDataset(*find_split(tmp_path, "val"), training=False, categories=train.categories)


def test_lists_of_lvis_without_a_placeholder(tmp_path: Path) -> None:
    """They are positions among the classes, which move when a class before them is removed."""
    categories = [{"id": 0, "name": "pets", "supercategory": "none"}] + [c | {"supercategory": "pets"} for c in CLASSES]
    file = write(tmp_path, "annotations.json", "images", ["a.jpg", "b.jpg"], categories=categories)
    content = json.loads(file.read_text())
    content["images"][0] |= {"neg_category_ids": [0, 2], "not_exhaustive_category_ids": [1]}
    file.write_text(json.dumps(content))
    dataset = CocoDataset(tmp_path / "images", file, training=False)
    assert dataset.file is not None
    assert dataset.file.images.federated == [([1], [0]), ([], [])]


def test_split_unpacks_into_a_data_set(tiny_data: Path) -> None:
    assert isinstance(find_split(tiny_data, "train"), Split)
    assert len(CocoDataset(*find_split(tiny_data, "train"), training=True)) == 10


def test_a_file_is_no_root(tmp_path: Path) -> None:
    file = write(tmp_path, "annotations.json", "images", ["a.jpg", "b.jpg"])
    with pytest.raises(FileNotFoundError, match=r"annotations\.json is a file: name its folder with --data\.root"):
        find_split(file, "train")


def test_a_run_and_its_test_evaluate_the_same_images(
    tmp_path: Path, tiny_recipe: Recipe, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """From wherever they are run."""
    names = [f"{n}.jpg" for n in range(10)]
    file = write(tmp_path, "annotations.json", "images", names)
    tiny_recipe.data.root, tiny_recipe.training.epochs = ".", 1
    monkeypatch.chdir(tmp_path)
    trained = engine.train(tiny_recipe, tmp_path / "run")
    monkeypatch.chdir("/")
    assert f"evaluation on 2 images: one fifth of {file}" in capsys.readouterr().out
    checkpoint = read_checkpoint(tmp_path / "run")
    tested = engine.test(checkpoint, tmp_path / "report")
    assert trained is not None
    assert tested is not None
    assert tested.as_dict() == pytest.approx(trained.as_dict(), nan_ok=True)
    assert "some of these may be among them" not in capsys.readouterr().out
    write(tmp_path, "annotations.json", "images", [*names, "more.jpg"])
    engine.test(checkpoint, tmp_path / "report2")
    assert "some of these may be among them" in capsys.readouterr().out


def test_nearly_the_right_name_is_named(tmp_path: Path) -> None:
    """Case, suffix and encoding of accents, of images and their folder: never guessed."""
    nfc, nfd = "caf\u00e9.jpg", "cafe\u0301.jpg"
    for n, (listed, there) in enumerate(
        [("a.jpg", "A.JPG"), ("a.jpg", "a.png"), (nfc, nfd), ("sub/a.jpg", "Sub/a.jpg")]
    ):
        root = tmp_path / str(n)
        write(root, "annotations/instances_train.json", "images", [listed])
        (root / "images" / listed).unlink()
        (root / "images" / there).parent.mkdir(exist_ok=True)
        (root / "images" / there).touch()
        if listed == "sub/a.jpg":
            (root / "images" / "sub").rmdir()
        with pytest.raises(
            FileNotFoundError, match=f"in none of .*; there is {root}/images/{there}.*: rename it"
        ) as error:
            find_split(root, "train")
        assert ("only looks the same" in str(error.value)) == (listed == nfc)
        with pytest.raises(FileNotFoundError, match=f"; there is {there}"):
            CocoDataset(root / "images", root / "annotations" / "instances_train.json", training=True)
    (root := tmp_path / "folder").mkdir()
    write(root, "annotations/instances_train.json", "Images", ["a.jpg"])
    with pytest.raises(FileNotFoundError, match=f"; it is in {root}/Images: rename that folder to images; name"):
        find_split(root, "train")
    file = root / "annotations" / "instances_train.json"
    with pytest.raises(FileNotFoundError, match=rf"images folder .* does not exist \(there is {root}/Images\)"):
        CocoDataset(root / "images", file, training=True)
    with pytest.raises(FileNotFoundError, match=rf"does not exist \(there is {file}\)"):
        read_coco_file(file.with_suffix(".JSON"), segmentations=False)
    with pytest.raises(FileNotFoundError, match=rf"does not exist \(there is {root}\)"):
        find_split(tmp_path / "Folder", "train")


def test_the_first_image_may_be_missing(tmp_path: Path) -> None:
    file = write(tmp_path, "annotations/instances_train.json", "images", ["a.jpg", "b.jpg", "c.jpg"])
    (tmp_path / "images" / "a.jpg").unlink()
    split = find_split(tmp_path, "train")
    assert split == (tmp_path / "images", file, "train")
    with pytest.raises(FileNotFoundError, match=r"The image a\.jpg is not in .*/images\."):
        CocoDataset(split.images, split.annotations, training=True)


def test_a_file_without_annotations_is_said_to_have_none(tmp_path: Path) -> None:
    write(tmp_path, "result.json", "images", ["a.jpg"], annotations=[])
    with pytest.raises(
        FileNotFoundError, match=r"no annotations for train in .* \(.*/result\.json has images, but no annotations\)"
    ):
        find_split(tmp_path, "train")


def test_a_link_back_is_no_second_file(tmp_path: Path) -> None:
    file = write(tmp_path, "result.json", "images", ["a.jpg"])
    (tmp_path / "again").symlink_to(tmp_path)
    assert find_split(tmp_path, "train").annotations == file


def test_dev_is_for_validation_and_what_is_not_used_is_said(tmp_path: Path) -> None:
    for name in ("train", "dev"):
        write(tmp_path, f"annotations/instances_{name}.json", "images", ["a.jpg", "b.jpg", "c.jpg"])
    assert find_split(tmp_path, "val").annotations.name == "instances_dev.json"
    (tmp_path / "annotations" / "instances_dev.json").rename(tmp_path / "annotations" / "more.json")
    recipe = Recipe()
    recipe.data.root = str(tmp_path)
    for split in ("train", "val"):
        assert build_dataset(recipe, split).origin.endswith(f" (not used: {tmp_path}/annotations/more.json)")  # type: ignore[arg-type]


def test_check_data_takes_what_train_takes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A folder alone: both splits and whether they fit together, a file that is divided, YOLO; each as `train` says it."""

    def code(root: Path) -> int:
        with pytest.raises(SystemExit) as stopped:
            main(["check-data", str(root)])
        return int(stopped.value.code or 0)

    names = ["a.jpg", "b.jpg", "c.jpg"]
    train = write(tmp_path / "one", "result.json", "images", names)
    main(["check-data", str(tmp_path / "one")])
    said = capsys.readouterr().out
    assert said.startswith(f"{train}, images in {tmp_path}/one/images\n")
    assert said.endswith("\n`train` splits the images of this file into training and validation.\n")
    root = tmp_path / "two"
    for split in ("train", "valid"):
        write(root, f"{split}/_annotations.coco.json", split, names)
    main(["check-data", str(root)])
    assert capsys.readouterr().out.count("usable for\n  training on boxes    yes") == 2
    write(
        root,
        "valid/_annotations.coco.json",
        "valid",
        names,
        categories=[{"id": 1, "name": "cat"}, {"id": 2, "name": "cow"}],
    )
    assert code(root) == 2
    assert "has 1 class that the model does not know, such as 'cow'" in capsys.readouterr().err
    (root / "train" / "a.jpg").unlink()
    assert code(root) == 1
    (yolo := tmp_path / "yolo").mkdir()
    (yolo / "data.yaml").write_text("train: images\nnames: [cat]\n")
    assert code(yolo) == 2
    assert (
        f"is a data set in YOLO format: convert it with `ranksort import-data {yolo} --out" in capsys.readouterr().err
    )
    assert code(train) == 2
    assert "result.json is a file: name the folder of its images before it" in capsys.readouterr().err
    assert code(tmp_path / "none") == 2
