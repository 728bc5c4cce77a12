"""YOLO format: a text file for each image, with a line for each object, in fractions of the image's width and height.

    class  x_center y_center width height        a box
    class  x1 y1 x2 y2 x3 y3 ...                 a polygon

Classes and splits are in a YAML file (Ultralytics, Roboflow), in `obj.data` and `obj.names` (Darknet, CVAT), or only the classes in
`classes.txt` (labelImg, Label Studio). Images and labels are found as in Ultralytics: the label file of `images/train/a.jpg` is
`labels/train/a.txt`; an image outside any `images` folder has it beside it.
"""

import math
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from ...words import counted
from ..coco_columns import Category
from ..images import IMAGE_SUFFIXES, stated_sizes
from ..near import Near
from ..splits import split_of
from .dataset import (
    ImportedDataset,
    ImportedImage,
    ImportedObject,
    NotUtf8,
    UnknownClass,
    new_object,
    text_of,
    walk,
)

_YAML, _YAML_STEMS = (".yaml", ".yml"), ("data", "dataset")
_CLASS_LISTS = ("classes.txt", "obj.names", "labels/classes.txt", "data/classes.txt")
_TOLERANCE = 0.01  # how far beyond 0..1 a coordinate may be, as in Ultralytics


@dataclass
class _Layout:
    """The parsed YAML file.

    Its path, the classes, the images of each split and of none, what is listed but missing, and how many keypoint numbers follow a box.
    """

    source: Path
    names: list[str]
    splits: dict[str, list[Path]] = field(default_factory=dict)
    outside: list[Path] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    keypoints: int = 0


def find(folder: Path) -> Path | None:
    """The file with the class names of a folder in this format; `folder` may also be its YAML file.

    Raises:
        ValueError: the YAML file of a data set has a syntax error or is not in UTF-8.
    """
    if folder.is_file():
        return folder if folder.suffix.lower() in _YAML and _has_classes(folder) else None
    files = [file for file in folder.iterdir() if file.suffix.lower() in _YAML and _has_classes(file)]
    # There may be others, such as the settings of a run or a model, with a number of classes.
    files.sort(
        key=lambda file: (not {"names", "train"} <= _load_yaml(file).keys(), file.stem not in _YAML_STEMS, file.name)
    )
    files += sorted(file for file in folder.glob("*.data") if {"names", "train"} <= _darknet(file).keys())
    lists = [folder / name for name in _CLASS_LISTS if (folder / name).is_file()]
    if lists and _has_labels(folder):
        files += lists
    if not files:
        for file in folder.iterdir():
            if file.stem in _YAML_STEMS and file.suffix.lower() in _YAML:
                _check_syntax(file)
    return files[0] if files else None


def read(folder: Path) -> ImportedDataset:
    """Read a folder that `find` knows.

    Raises:
        ValueError: classes or images are not found, or the YAML file is malformed.
    """
    file = find(folder)
    assert file is not None
    readers = dict.fromkeys(_YAML, _from_yaml) | {".data": _from_darknet}
    suffix = file.suffix.lower()
    layout = readers[suffix](file) if suffix in readers else _by_folder(_Layout(file, _lines(file)), folder)
    dataset = ImportedDataset(
        f"YOLO data set {file}", {number: Category(number, name) for number, name in enumerate(layout.names)}
    )
    tasks = [(split, image) for split, images in layout.splits.items() for image in images]
    by_image = {image: _label_file(image) for _, image in tasks}
    labels = set(by_image.values())
    if labels == {None}:
        first = tasks[0][1]
        raise ValueError(
            f"None of {counted(len(tasks), 'image')} of {file} has a label file: that of {first} would be "
            f"{' or '.join(map(str, _label_files(first)))}."
        )
    dataset.read(tasks, lambda image: _read_image(image, layout))
    by_name: dict[str, list[int]] = {}
    for number, name in enumerate(layout.names):
        by_name.setdefault(name.strip().casefold(), []).append(number)
    dataset.remark(
        "classes with the same name, which a detector would have to tell apart: merge them, also in the label files",
        (f"{', '.join(map(str, same))}: {layout.names[same[0]]}" for same in by_name.values() if len(same) > 1),
    )
    dataset.remark("images outside the folders of the splits, left out", map(str, layout.outside))
    dataset.remark("listed but missing, left out", layout.missing)
    trained = set(layout.splits.get("train", []))
    shared = (
        image for split, images in layout.splits.items() if split != "train" for image in images if image in trained
    )
    dataset.remark(
        "images both for training and for evaluation, whose AP says nothing about other images", map(str, shared)
    )
    sharing: dict[Path, list[Path]] = {}
    for image, label in by_image.items():
        if label:
            sharing.setdefault(label, []).append(image)
    dataset.remark(
        "label files used for several images, because these differ only in the suffix",
        (
            f"{label}: {', '.join(image.name for image in images)}"
            for label, images in sharing.items()
            if len(images) > 1
        ),
    )
    folders = sorted({label.parent for label in labels if label})
    alone = (
        label
        for folder in folders
        for label in sorted(folder.iterdir())
        if label.suffix.lower() == ".txt" and label not in labels
    )
    dataset.remark("label files without an image, left out", map(str, filter(_is_label_file, alone)))
    return dataset


def _has_labels(folder: Path) -> bool:
    """Whether there are folders of label files, or images with label files beside them, as from labelImg."""
    if any((folder / "obj_train_data").glob("*")) or any(folder.glob("[Ll]abels")) or any(folder.glob("*/[Ll]abels")):
        return True
    images = (file for file in folder.iterdir() if file.suffix.lower() in IMAGE_SUFFIXES)
    return any(image.with_suffix(".txt").is_file() for image in images)


def _check_syntax(file: Path) -> None:
    """Raise ValueError if a YAML file exists but cannot be parsed."""
    try:
        yaml.safe_load(text_of(file))
    except NotUtf8:
        raise
    except yaml.MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise ValueError(f"{file}{line}: this is not YAML ({error.problem}).") from None
    except (OSError, ValueError, RecursionError, yaml.YAMLError):
        return


def _has_classes(file: Path) -> bool:
    return not {"names", "nc"}.isdisjoint(_load_yaml(file))


def _load_yaml(file: Path, loader: type[Any] = yaml.SafeLoader) -> dict[str, Any]:
    try:
        content = yaml.load(file.read_text(encoding="utf-8-sig"), Loader=loader)
    except (OSError, ValueError, RecursionError, yaml.YAMLError):
        return {}
    return content if isinstance(content, dict) else {}


def _from_yaml(file: Path) -> _Layout:
    content = _load_yaml(file)
    layout = _Layout(file, _names(file))
    shape = content.get("kpt_shape")
    if isinstance(shape, list) and all(isinstance(number, int) for number in shape):
        layout.keypoints = math.prod(shape)
    stated = content.get("path")
    roots = [file.parent, *([Path(os.path.normpath(file.parent / str(stated))), Path(str(stated))] if stated else [])]
    for split in ("train", "val", "test"):
        entries = content.get(split) or []
        images: dict[Path, None] = {}
        missing: list[ValueError] = []
        for entry in entries if isinstance(entries, list) else [entries]:
            try:
                path = _existing(str(entry), roots[::-1], f"{split} of {file}")
            except ValueError as error:
                missing.append(error)
                layout.missing.append(f"{entry}, which is {split} of {file}")
            else:
                images.update(dict.fromkeys(_images_of(path, roots, layout.missing)))
        if missing and not images and split != "test":  # Roboflow lists it even if it is not exported
            raise missing[0]
        if images:
            layout.splits[split] = list(images)
    return layout if layout.splits else _by_folder(layout, file.parent)


def _names(file: Path) -> list[str]:
    """The classes, from a list or a dictionary by number; Ultralytics' default names if only the number of classes is given."""
    content = _load_yaml(file, yaml.BaseLoader)  # as written: YAML reads on, off, yes and no as true and false
    names, count = content.get("names"), content.get("nc")
    if not names and isinstance(count, str) and count.isdecimal():
        names = [f"class_{number}" for number in range(int(count))]
    if isinstance(names, dict) and names.keys() == set(map(str, range(len(names)))):
        names = [names[str(number)] for number in range(len(names))]
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        raise ValueError(f"The names of {file} must be a list of the classes, or numbered from 0 without gaps.")
    for number, name in enumerate(names):
        if not name.strip():
            raise ValueError(f"Class {number} of {file} has no name: give it one.")
    return names


def _existing(path: str, roots: list[Path], what: str, names: Near | None = None) -> Path:
    """A path below one of several folders, also without its first folders: Roboflow writes `../train/images`, others absolute paths.

    `names` lists each folder once if many paths are missing.
    """
    parts = Path(path.replace("\\", "/")).parts
    for start in range(len(parts)):
        if start and parts[start:] == ("images",):
            break  # of all splits
        for root in roots:
            candidate = Path(os.path.normpath(root.joinpath(*parts[start:])))
            if candidate.exists():
                return candidate
    ends = [parts[start:] for start in range(len(parts)) if parts[start:] != ("images",)]
    names = names or Near()
    near = next((root / found for end in ends for root in roots if (found := names.find(root, end))), None)
    hint = f"; there is {near}: use that name" if near else ""
    raise ValueError(
        f"There is no {path}, which is {what}; it was searched for in {' and '.join(map(str, roots))}{hint}."
    )


def _images_of(path: Path, roots: list[Path], missing: list[str]) -> list[Path]:
    """The images of a folder, found recursively, or those listed in a text file; listed but missing ones are added to `missing`.

    Raises:
        ValueError: none of the listed images exists.
    """
    if path.is_dir():
        return _images_in(path)
    if path.suffix != ".txt":
        return [path]
    images, errors, names = [], [], Near()
    for line in filter(None, map(str.strip, text_of(path).splitlines())):
        try:
            images.append(_existing(line, [path.parent, *roots], f"listed in {path}", names))
        except ValueError as error:
            errors.append(error)
            missing.append(f"{line}, which {path} lists")
    if errors and not images:
        raise errors[0]
    return images


def _images_in(folder: Path) -> list[Path]:
    return [
        where / name for where, names in walk(folder) for name in names if Path(name).suffix.lower() in IMAGE_SUFFIXES
    ]


def _darknet(file: Path) -> dict[str, str]:
    lines = (line.partition("=") for line in file.read_text(encoding="utf-8-sig", errors="replace").splitlines())
    return {key.strip(): value.strip() for key, sign, value in lines if sign}


def _from_darknet(file: Path) -> _Layout:
    content, roots = _darknet(file), [file.parent, file.parent.parent]
    layout = _Layout(file, _lines(_existing(content["names"], roots, f"names of {file}")))
    for key, split in (("train", "train"), ("valid", "val"), ("val", "val"), ("test", "test")):
        if content.get(key):
            path = _existing(content[key], roots, f"{key} of {file}")
            layout.splits[split] = list(dict.fromkeys(_images_of(path, roots, layout.missing)))
    return layout


def _by_folder(layout: _Layout, folder: Path) -> _Layout:
    """All images in a folder, by the split in the names of their folders; those without are for training if no others are."""
    for image in _images_in(folder):
        layout.splits.setdefault(split_of(image.parent.relative_to(folder)), []).append(image)
    outside = layout.splits.pop("", [])
    if "train" not in layout.splits and outside:
        layout.splits["train"] = outside
    else:
        layout.outside = outside
    return layout


def _lines(file: Path) -> list[str]:
    names = [line.strip() for line in text_of(file).splitlines() if line.strip()]
    if not names:
        raise ValueError(f"{file} has no classes.")
    return names


def _label_files(image: Path) -> list[Path]:
    """Possible paths of the label file of an image."""
    beside, parts = image.with_suffix(".txt"), image.parts
    places = [n for n, part in enumerate(parts[:-1]) if part.lower() == "images"]
    if not places:
        return [beside]
    *before, folder = parts[: places[-1] + 1]
    after = parts[places[-1] + 1 :]
    names = ["labels"] if folder == "images" else ["Labels", "labels"]
    return [*(Path(*before, name, *after).with_suffix(".txt") for name in names), beside]


def _label_file(image: Path) -> Path | None:
    files = _label_files(image)
    return next((file for file in (*files, *(file.with_suffix(".TXT") for file in files)) if file.is_file()), None)


def _is_label_file(file: Path) -> bool:
    """Whether a text file starts like a label file, unlike lists of classes or images."""
    words = file.read_text(encoding="utf-8-sig", errors="replace").split(maxsplit=5)[:5]
    try:
        return len([float(word) for word in words]) == 5
    except ValueError:
        return False


def _read_image(path: Path, layout: _Layout) -> ImportedImage:
    (width, height), _ = stated_sizes(path)
    image, labels = ImportedImage(path, width, height), _label_file(path)
    if labels is None:
        image.remarks.append(("images without a label file, used as images without objects", str(path)))
        return image
    for number, line in enumerate(text_of(labels).splitlines(), 1):
        if not line.strip():
            continue
        where = f"{labels}, line {number}"
        try:
            label, values = _numbers(line.split(), layout)
        except ValueError as error:
            raise type(error)(f"{where}: {error}") from None
        if layout.keypoints and len(values) == 4 + layout.keypoints:
            values = values[:4]
            image.remarks.append(("objects whose keypoints were left out: their boxes are used", where))
        found = _object(label, values, width, height)
        if found is None:
            image.remarks.append(("objects without area, left out", f"{where}: {line.strip()[:80]}"))
        else:
            image.objects.append(found)
    return image


def _numbers(words: list[str], layout: _Layout) -> tuple[int, list[float]]:
    """Parse and check the class and the other numbers of a line."""
    try:
        first, *values = map(float, words)
    except ValueError:
        raise ValueError(f"{' '.join(words)[:80]!r} are not all numbers") from None
    if not all(map(math.isfinite, (first, *values))):
        raise ValueError("there is a number that is not finite")
    if not first.is_integer() or not 0 <= first < len(layout.names):
        raise UnknownClass(
            f"the class is {words[0]}, but the {len(layout.names)} classes of {layout.source} are 0 to {len(layout.names) - 1}; correct "
            "the names (if the classes are counted from 1, insert one in front)"
        )
    if not (len(values) == 4 or (len(values) >= 6 and len(values) % 2 == 0)) and len(values) != 4 + layout.keypoints:
        hint = " (is the last one a score, as in detections?)" if len(values) == 5 else ""
        hint = " (keypoints need kpt_shape in the YAML file)" if len(values) > 6 else hint
        raise ValueError(
            f"there are {len(words)} numbers; a class and a box need 5, a class and a polygon 7 or a larger odd number{hint}"
        )
    coordinates = values[: 4 if len(values) == 4 + layout.keypoints else None]
    outside = [value for value in coordinates if not -_TOLERANCE <= value <= 1 + _TOLERANCE]
    if outside:
        raise ValueError(
            f"the coordinate {outside[0]:g} is not within 0..1: coordinates must be fractions of the image's width and height"
        )
    return int(first), values


def _object(label: int, values: list[float], width: int, height: int) -> ImportedObject | None:
    if len(values) == 4:
        x, y, w, h = values[0] * width, values[1] * height, values[2] * width, values[3] * height
        return new_object(label, (x - w / 2, y - h / 2, x + w / 2, y + h / 2))
    xs, ys = [x * width for x in values[::2]], [y * height for y in values[1::2]]
    polygon = [value for point in zip(xs, ys, strict=True) for value in point]
    return new_object(label, (min(xs), min(ys), max(xs), max(ys)), polygon)
