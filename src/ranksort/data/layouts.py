"""Where the annotations and images of a data set are, by the layouts of COCO, Roboflow and the other tools that write COCO's format."""

import json
import re
from pathlib import Path
from typing import NamedTuple

from .images import find_folder
from .json_source import JsonSource
from .splits import Part, split_of

_SECTIONS = re.compile(rb'"(images|annotations|categories)"\s*:\s*\[\s*\{')  # none of them empty


class Split(NamedTuple):
    """Where the images of a split are, its annotation file, and which part of that file it is; None: all of it."""

    images: Path
    annotations: Path
    part: Part | None = None


def find_split(
    root: Path,
    split: Part,
    annotations: Path | None = None,
    images: Path | None = None,
    *,
    style: str = "coco",
    divide: bool = True,
) -> Split:
    """Find a split under a folder.

    Args:
        root: holds annotation files in COCO's format, `annotations/instances_<split>2017.json` or `annotations/instances_<split>.json`.
            Else those in it or in the folders in it whose path names the split, as in `valid/_annotations.coco.json`; for `val`, those of
            `test` if there is none. A single file without a split in its path, or one for `train` alone, is divided into both.
            Images are in `<split>2017/`, `images/<split>2017/`, `images/<split>/`, `<split>/`, `images/`, the root, beside the annotation
            file, or where else the tools put them. For LVIS the root holds `annotations/lvis_v1_<split>.json`, and the images in
            `train2017/` and `val2017/`.
        split: `train` or `val`.
        annotations: the annotation file, where it is another one.
        images: the images folder, likewise.
        style: `coco`, or `lvis`.
        divide: whether a file may be divided: not where one of the two is named.

    Returns:
        The images folder, the first of these that holds the first image of the annotation file; that file; and the part of it.

    Raises:
        FileNotFoundError: one of the two is missing; the message names what was looked for.
        ValueError: several files could be meant, or the annotation file names no image.
    """
    part = None
    if annotations is None:
        annotations, is_divided = _find_annotations(root, split, style, divide)
        part = split if is_divided else None
    return Split(images or _find_images(root, "train" if part else split, annotations, style), annotations, part)


def _find_annotations(root: Path, split: Part, style: str, divide: bool) -> tuple[Path, bool]:
    """The annotation file of a split, and whether it is to be divided."""
    if root.is_file():
        raise FileNotFoundError(
            f"{root} is a file: name its folder with --data.root, or it with --data.{split}-annotations."
        )
    if not root.is_dir():
        raise FileNotFoundError(f"The folder {root} does not exist: name that of the data with --data.root.")
    names = ("instances_{}2017.json", "instances_{}.json") if style == "coco" else ("lvis_v1_{}.json",)
    standard = {s: [root / "annotations" / name.format(s) for name in names] for s in ("train", "val")}
    usual = {s: next((file for file in files if file.is_file()), None) for s, files in standard.items()}
    if (file := usual[split]) and (usual["val"] or not divide or style == "lvis"):
        return file, False
    if style == "lvis":
        raise FileNotFoundError(f"There is no {standard[split][0]}; name the file with --data.{split}-annotations.")
    found: dict[str, list[Path]] = {"train": [], "val": [], "test": [], "": []}
    for file in coco_files(root):
        found[split_of(file.relative_to(root))].append(file)
    train = [usual["train"]] if usual["train"] else found["train"]
    if split == "train" and train:
        return _only(train, split), divide and not found["val"] and not found["test"]
    if split == "val" and (found["val"] or found["test"]):
        return _only(found["val"] or found["test"], split), False
    if divide and (train or list(filter(None, found.values())) == [found[""]]):
        return _only(train or found[""], split), True
    raise FileNotFoundError(_missing(root, split, [file for files in found.values() for file in files]))


def coco_files(root: Path) -> list[Path]:
    """The annotation files in a folder and in the folders in it."""
    files = [*root.glob("*.json"), *root.glob("*/*.json")]
    return sorted(file for file in files if not file.name.startswith(".") and _is_coco(file))


def _is_coco(file: Path) -> bool:
    """Whether a file has something in all three sections of COCO's, which are searched for and not parsed."""
    try:
        content = JsonSource.open(file, "annotation file").content
    except (OSError, ValueError):
        return False
    return len({match[1] for match in _SECTIONS.finditer(content)}) == 3


def _only(files: list[Path], split: str) -> Path:
    if len(files) > 1:
        raise ValueError(
            f"The annotations for {split} could be {' or '.join(map(str, files[:5]))}: name one with --data.{split}-annotations."
        )
    return files[0]


def _missing(root: Path, split: str, files: list[Path]) -> str:
    """What to say where there are no annotations for a split."""
    from .importers import recognize

    if not files and (name := recognize(root)):
        return (
            f"{root} is a data set in {name} format: write COCO's of it by `ranksort import-data {root} --out DIR`, "
            "and name DIR with --data.root."
        )
    others = f" (there are {', '.join(map(str, files[:5]))})" if files else ""
    return (
        f"There are no annotations for {split} in {root}{others}, neither annotations/instances_{split}2017.json nor "
        f"annotations/instances_{split}.json, nor {'valid' if split == 'val' else split}/_annotations.coco.json, nor a single COCO "
        f"JSON for both; name the file with --data.{split}-annotations."
    )


def _find_images(root: Path, split: str, annotations: Path, style: str) -> Path:
    """The first folder that holds the first image of an annotation file."""
    source = JsonSource.open(annotations, "annotation file")
    # Searched for and not parsed, which is the data set's business.
    key = "coco_url" if style == "lvis" else "file_name"
    match = re.search(rb'"%s"\s*:\s*("(?:[^"\\]|\\.)*")' % key.encode(), source.content)
    if match is None:
        raise ValueError(f'{annotations} names no image (no "{key}").')
    try:
        file_name = json.loads(match[1])
    except ValueError:
        source.parse()  # for its clear error
        raise
    words = [split, *(word for word in re.findall("[A-Za-z]+", annotations.stem) if split_of(Path(word)))]
    names = [name for s in dict.fromkeys(words) for name in (f"{s}2017", f"images/{s}2017", f"images/{s}", s)]
    folders = [root / name for name in (*names, "images", "", "data", "images/default")]
    if annotations.parent not in (root, root / "annotations"):
        beside = [annotations.parent / name for name in ("", "images", "data")]
        folders = [*beside, *folders] if root in annotations.parents else [*folders, *beside]
    if style == "lvis":
        file_name, folders = "/".join(file_name.split("/")[-2:]), [root, root / "images"]
    images = find_folder([folder for folder in folders if folder.is_dir()], file_name)
    if images is None:
        raise FileNotFoundError(
            f"The image {file_name} of {annotations} is in none of {', '.join(map(str, folders))}; "
            f"name the folder with --data.{split}-images."
        )
    return images
