"""Find the annotations and images of a data set in the layouts of COCO, Roboflow and other tools that write COCO's format."""

import itertools
import json
import re
import shlex
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from .images import find_folder
from .json_source import JsonSource
from .near import Near, beside, rename
from .splits import Part, split_of

_LOOKED_FOR = 100  # images used to find the folder of all
_SECTIONS = re.compile(rb'"(images|annotations|categories)"\s*:\s*\[\s*(\{)?')


class Split(NamedTuple):
    """The images folder of a split, its annotation file, and the part of that file (None: all of it)."""

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
            Otherwise those in it or its folders whose path names the split, as in `valid/_annotations.coco.json`; for `val`, those of
            `test` if there are none. A single file without a split in its path, or only one for `train`, is split into both. Images are
            in `<split>2017/`, `images/<split>2017/`, `images/<split>/`, `<split>/`, `images/`, the root, beside the annotation file, or
            where other tools put them. For LVIS, the root holds `annotations/lvis_v1_<split>.json`, and the images in `train2017/` and
            `val2017/`.
        split: `train` or `val`.
        annotations: the annotation file, if it is elsewhere.
        images: the images folder, likewise.
        style: `coco` or `lvis`.
        divide: whether a file may be split; it may not if one of the two files is named.

    Returns:
        The images folder (the first of these that has one of the first images of the annotation file), that file, and the part of it.

    Raises:
        FileNotFoundError: one of the two is missing; the message names what was searched for.
        ValueError: several files are possible, or the annotation file has no images.
    """
    part = None
    if annotations is None:
        annotations, is_divided = _find_annotations(root, split, style, divide)
        part = split if is_divided else None
    return Split(images or _find_images(root, "train" if part else split, annotations, style), annotations, part)


def _find_annotations(root: Path, split: Part, style: str, divide: bool) -> tuple[Path, bool]:
    """The annotation file of a split, and whether to split its images."""
    if root.is_file():
        raise FileNotFoundError(
            f"{root} is a file: name its folder with --data.root, or the file with --data.{split}-annotations."
        )
    if not root.is_dir():
        raise FileNotFoundError(
            f"The folder {root} does not exist{beside(root)}: name the folder of the data with --data.root."
        )
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
    files = sorted([*root.glob("*.json"), *root.glob("*/*.json")], key=lambda file: (len(file.parts), file))
    # A link may form a cycle.
    once = {file.resolve(): file for file in reversed(files) if not file.name.startswith(".")}
    return sorted(file for file in once.values() if len(_sections(file, filled=True)) == 3)


def _sections(file: Path, *, filled: bool) -> set[str]:
    """Which of COCO's three sections a file has, and which are not empty. The file is searched, not parsed."""
    try:
        content = JsonSource.open(file, "annotation file").content
    except (OSError, ValueError):
        return set()
    return {match[1].decode() for match in _SECTIONS.finditer(content) if match[2] or not filled}


def _only(files: list[Path], split: str) -> Path:
    if len(files) > 1:
        raise ValueError(
            f"The annotations for {split} could be {' or '.join(map(str, files[:5]))}: name one with --data.{split}-annotations."
        )
    return files[0]


def _missing(root: Path, split: str, files: list[Path]) -> str:
    """The message if there are no annotations for a split."""
    from .importers import recognize

    if not files and (name := recognize(root)):
        return (
            f"{root} is a data set in {name} format: convert it with `ranksort import-data {shlex.quote(str(root))} --out DIR`, "
            "and name DIR with --data.root."
        )
    others = f" (there are {', '.join(map(str, files[:5]))})" if files else ""
    for file in sorted([*root.glob("*.json"), *root.glob("*/*.json")]) if not files else ():
        has, filled = (_sections(file, filled=only) for only in (False, True))
        if len(has) >= 2 and "images" in filled and filled != {"images", "annotations", "categories"}:
            lacking = [name for name in ("annotations", "categories") if name not in filled]
            others = f" ({file} has images, but no {' and no '.join(lacking)})"
    return (
        f"There are no annotations for {split} in {root}{others}, neither annotations/instances_{split}2017.json nor "
        f"annotations/instances_{split}.json, nor {'valid' if split == 'val' else split}/_annotations.coco.json, nor a single COCO "
        f"JSON for both; name the file with --data.{split}-annotations."
    )


def _find_images(root: Path, split: str, annotations: Path, style: str) -> Path:
    """The first folder that holds the first image of an annotation file."""
    source = JsonSource.open(annotations, "annotation file")
    # Searched, not parsed; the data set parses it.
    key = "coco_url" if style == "lvis" else "file_name"
    matches = re.finditer(rb'"%s"\s*:\s*("(?:[^"\\]|\\.)*")' % key.encode(), source.content)
    try:
        file_names = [json.loads(match[1]) for match in itertools.islice(matches, _LOOKED_FOR)]
    except ValueError:
        source.parse()  # for its clear error message
        raise
    if not file_names:
        raise ValueError(f'{annotations} has no images (no "{key}").')
    words = [split, *(word for word in re.findall("[A-Za-z]+", annotations.stem) if split_of(Path(word)))]
    names = [name for s in dict.fromkeys(words) for name in (f"{s}2017", f"images/{s}2017", f"images/{s}", s)]
    folders = [root / name for name in (*names, "images", "", "data", "images/default")]
    if annotations.parent not in (root, root / "annotations"):
        beside = [annotations.parent / name for name in ("", "images", "data")]
        folders = [*beside, *folders] if root in annotations.parents else [*folders, *beside]
    if style == "lvis":
        file_names, folders = ["/".join(name.split("/")[-2:]) for name in file_names], [root, root / "images"]
    existing = [folder for folder in folders if folder.is_dir()]
    for file_name in file_names:  # some may be missing in the right folder
        if images := find_folder(existing, file_name):
            return images
    raise FileNotFoundError(
        f"The image {file_names[0]} of {annotations} is in none of {', '.join(map(str, folders))}"
        f"{_near(root, folders, file_names[0])}; name the folder with --data.{split}-images."
    )


def _near(root: Path, folders: list[Path], file_name: str) -> str:
    """Similar names of folders or of the image, as part of a sentence."""
    near, parts = Near(), PurePosixPath(file_name.replace("\\", "/")).parts
    for folder in folders:
        if folder.is_dir():
            found = next(filter(None, (near.find(folder, parts[n:]) for n in range(len(parts)))), "")
            if found:
                return rename(str(folder / found), parts[-1])
            continue
        other = near.find(root, folder.relative_to(root).parts) if folder.is_relative_to(root) else ""
        if other and (root / other).is_dir() and find_folder([root / other], file_name):
            return f"; it is in {root / other}: rename that folder to {folder.name}"
    return ""
