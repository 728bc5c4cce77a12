"""Find everything that is wrong with a data set before training does."""

import contextlib
import os
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from rich.console import Console
from rich.progress import track

from ..words import counted, listed
from .coco_columns import CocoFile
from .coco_file import read_coco_file
from .faults import USES, VALIDATION, Fault, Use
from .ids import Id
from .images import ImageFolder, darkness, orientation, read_image, require_folder, upright
from .white import find_white


class ClassCount(NamedTuple):
    """How often a class occurs: its objects without crowds, and the images that have one."""

    id: Id
    name: str
    objects: int
    images: int


@dataclass(frozen=True)
class DataCheck:
    """The contents of a data set, not counting malformed entries, and all of its faults."""

    images_path: Path
    annotations_path: Path
    images: int
    annotations: int  # crowds included
    crowds: int
    images_without_objects: int  # without annotations other than crowds
    sizes: dict[str, int]  # objects small, medium and large by COCO's limits, 32^2 and 96^2 square pixels
    classes: list[ClassCount]  # in the order of the labels
    untrained: dict[tuple[str, str], list[Id]]
    """ids of entries that are not faulty but not trained on either, by noun and description"""
    has_masks: bool  # whether any object has a segmentation
    white: float
    """value of white in images of more than 8 bits, as given or derived; 0: there are none, or it is unclear"""
    file: CocoFile

    @property
    def faults(self) -> list[Fault]:
        return self.file.faults

    @property
    def is_usable(self) -> bool:
        """Whether training a box detector accepts the data."""
        return not self.file.refusals("boxes")

    def verdicts(self) -> dict[Use, str]:
        """For each use, whether the data is accepted, in words."""
        result: dict[Use, str] = {}
        for use in USES:
            refusals = self.file.refusals(use)
            if refusals and use in ("masks", "mask_evaluation") and not self.has_masks:
                result[use] = "no, there are no masks"
            elif refusals:
                result[use] = f"refused for {_counted(refusals)}"
            elif "evaluation" in use and (refusals := self.file.refusals(use, also=VALIDATION)):
                result[use] = f"yes, but `test` and the validation of `train` refuse it for {_counted(refusals)}"
            else:
                result[use] = "yes"
        return result

    def __str__(self) -> str:
        return self.text(faults_per_kind=20)

    def text(self, faults_per_kind: int | None = None) -> str:
        """The report, listing up to `faults_per_kind` faults of each kind; None: all of them."""
        sizes = ", ".join(f"{count} {size}" for size, count in self.sizes.items())
        name_width = max([len(entry.name) for entry in self.classes] + [5])
        lines = [
            f"{self.annotations_path}, images in {self.images_path}",
            f"{counted(self.images, 'image')}, {self.images_without_objects} of them without objects",
            f"{counted(self.annotations, 'annotation')}: {counted(self.crowds, 'crowd region')}; objects: {sizes}",
            "",
            f"{'class':{name_width}} {'id':>7} {'objects':>8} {'images':>8}",
            *(f"{c.name:{name_width}} {c.id:>7} {c.objects:>8} {c.images:>8}" for c in self.classes),
            "",
        ]
        for (noun, description), ids in self.untrained.items():
            shown = listed(ids, faults_per_kind)
            lines += [f"training leaves out {counted(len(ids), noun)}{description}: {shown}"] if ids else []
        for fault in self.faults:
            shown_lines = fault.lines[:faults_per_kind]
            lines.append(f"{fault.kind} ({len(fault.lines)}; {_in_words(fault)})")
            lines += [f"  {line}" for line in shown_lines]
            lines += (
                [f"  and {len(fault.lines) - len(shown_lines)} more"] if len(fault.lines) > len(shown_lines) else []
            )
        lines += [""] if self.faults else []
        verdicts = self.verdicts()
        width = max(map(len, USES.values()))
        return "\n".join([*lines, "usable for", *(f"  {USES[use]:{width}}  {text}" for use, text in verdicts.items())])


def _counted(faults: list[Fault]) -> str:
    count = sum(len(fault.lines) for fault in faults)
    return f"{counted(count, 'fault')} ({', '.join(dict.fromkeys(fault.kind for fault in faults))})"


_FROM = {"refused": "for", "left out": "of", "kept": "in"}


def _in_words(fault: Fault) -> str:
    """What a kind of fault means for the uses of a file, such as "refused for training on masks"."""
    consequences = fault.consequences
    if len(set(consequences)) == 1:
        return consequences[0]
    of: dict[str, list[str]] = defaultdict(list)
    for use, consequence in zip(USES, consequences, strict=True):
        of[consequence].append(USES[use])
    return "; ".join(
        f"{consequence} {_FROM[consequence]} {', '.join(uses)}"
        for consequence, uses in of.items()
        if consequence != "kept"
    )


def check_data(images: Path, annotations: Path, *, keep_crowds: bool = False, white: float = 0) -> DataCheck:
    """Check an annotation file completely, and decode every image.

    Args:
        images: folder of the images.
        annotations: COCO annotation file.
        keep_crowds: treat annotations marked as crowd as objects.
        white: value of white in images of more than 8 bits; 0: derived from the images, as in training.

    Raises:
        FileNotFoundError: the folder or the file does not exist. Everything else that is wrong is reported as a fault.

    Examples:
        >>> import json, tempfile
        >>> from pathlib import Path
        >>> from ranksort.data.check import check_data
        >>> truth = {"images": [{"id": 1, "file_name": "a.jpg", "width": 64, "height": 64}], "categories": [{"id": 1, "name": "cat"}]}
        >>> truth["annotations"] = [{"id": 1, "image_id": 2, "category_id": 1, "bbox": [0, 0, 9, 9]}]
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = Path(folder) / "truth.json"
        ...     _ = file.write_text(json.dumps(truth))
        ...     check = check_data(Path(folder), file)
        >>> [fault.kind for fault in check.faults], check.is_usable
        (['unknown image', 'missing image'], False)
    """
    require_folder(images)
    file = read_coco_file(annotations, segmentations=True, pixels=True, keep_crowds=keep_crowds)
    white = _check_images(file, ImageFolder(images, file.images.file_names), white)

    objects = file.annotations
    single = ~objects.crowd
    areas = np.where(objects.has_area(), objects.areas, objects.boxes[:, 2] * objects.boxes[:, 3])[single]
    small, large = int((areas < 32**2).sum()), int((areas >= 96**2).sum())
    of_class = np.bincount(objects.category[single], minlength=len(file.categories))
    pairs = np.unique(np.stack([objects.category, objects.image])[:, single], axis=1)
    images_of_class = np.bincount(pairs[0], minlength=len(file.categories))

    def without(is_counted: np.ndarray) -> np.ndarray:
        return np.flatnonzero(np.bincount(objects.image[is_counted], minlength=len(file.images)) == 0)

    untrained = without(file.trainable())
    return DataCheck(
        images_path=images,
        annotations_path=annotations,
        images=len(file.images),
        annotations=len(objects),
        crowds=int(objects.crowd.sum()),
        images_without_objects=len(without(single)),
        sizes={"small": small, "medium": len(areas) - small - large, "large": large},
        classes=[
            ClassCount(c.id, c.name, *counts)
            for c, *counts in zip(file.categories, of_class.tolist(), images_of_class.tolist(), strict=True)
        ],
        untrained={
            ("crowd region", ", by annotation"): [objects.ids[n] for n in np.flatnonzero(~single).tolist()],
            ("image", " without an object to train on"): [file.images.ids[n] for n in untrained.tolist()],
        },
        has_masks=objects.segmentations is not None and any(map(_is_given, objects.segmentations)),
        white=white,
        file=file,
    )


def _is_given(segmentation: bytes) -> bool:
    return segmentation not in (b"[]", b"null")


def _check_images(file: CocoFile, folder: ImageFolder, white: float) -> float:
    """Decode all images, and add their faults to those of the annotation file; returns the value of white, 0 if it is unclear."""
    images = file.images
    faults: dict[str, list[str]] = defaultdict(list)
    renamed: list[tuple[str, Path]] = []
    numbers = np.flatnonzero(
        (images.widths > 0) & (images.heights > 0) & (np.diff(images.file_names.ends, prepend=0) > 0)
    )

    if not white:
        try:
            white = find_white(_existing(folder, numbers), skip_unreadable=True)
        except ValueError as error:
            faults["unclear white"].append(str(error))

    def check(n: int) -> tuple[Path | None, list[tuple[str, str]]]:
        try:
            path = folder.path(n)
        except FileNotFoundError as error:
            return None, [("missing image", f"is missing: {error}")]
        return path, _image_faults(path, int(images.widths[n]), int(images.heights[n]), white)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        console = Console(stderr=True)
        checked = track(
            pool.map(check, numbers.tolist()), "opening the images", len(numbers), console=console, transient=True
        )
        for n, (path, found) in zip(numbers.tolist(), checked, strict=True):
            for kind, message in found:
                faults[kind].append(f"image {images.ids[n]} {message}")
            if path is not None and path != folder.folder / images.file_name(n):
                renamed.append((images.file_name(n), path))
    if renamed:
        (name, path), count = renamed[0], len(renamed)
        line = f"{count} of {len(images)} images are not where the file says but were found elsewhere, such as {name} at {path}"
        faults["found in another folder"].append(line)
    for kind, lines in faults.items():
        file.add(kind, lines)
    return white


def _existing(folder: ImageFolder, numbers: np.ndarray) -> list[Path]:
    """The paths of those images that exist."""
    paths = []
    for n in numbers.tolist():
        with contextlib.suppress(FileNotFoundError):
            paths.append(folder.path(n))
    return paths


def _image_faults(path: Path, width: int, height: int, white: float) -> list[tuple[str, str]]:
    """The faults of an image file: kind and message."""
    kind = "unreadable image"
    try:
        picture = read_image(path)
        kind = "wrong image size"
        turned = upright(picture, width, height, path)
    except (ValueError, FileNotFoundError) as error:
        return [(kind, f"cannot be used: {error}")]
    faults = []
    turn = orientation(picture)
    if turn != 1 and turned is not picture and picture.size == (width, height):
        faults.append(
            (
                "rotated by EXIF",
                f"is rotated by its EXIF orientation {turn} without a change of size: annotations made on "
                f"the stored pixels do not fit ({path})",
            )
        )
    if problem := darkness(picture, white):
        faults.append(("nearly black", f"{problem} ({path})"))
    return faults
