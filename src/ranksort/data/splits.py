"""Training and validation: tell them apart by name, and split one file into both."""

import dataclasses
import hashlib
import re
from pathlib import PurePath
from typing import Literal

import numpy as np

from .coco_checks import MIN_IMAGE_SIDE
from .coco_columns import CocoFile

Part = Literal["train", "val"]
_WORDS = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "dev": "val",
    "eval": "val",
    "evaluation": "val",
    "test": "test",
    "testing": "test",
}
_HELD_OUT = 0.2  # fraction of the images
_VERSION = re.compile(r"\.rf\.\w+(?=\.\w+$)")  # suffix of Roboflow's images, which has several augmented ones per photo


def split_of(path: PurePath) -> str:
    """`train`, `val` or `test`, from a word in the path (`valid/a.xml`, `instances_train2017.json`); "" if there are none or several."""
    found = {_WORDS[word] for word in re.findall("[a-z]+", str(path).lower()) if word in _WORDS}
    return found.pop() if len(found) == 1 else ""


def part_of(file: CocoFile, part: Part) -> CocoFile:
    """One part of an annotation file for both, with the images and annotations of that part only.

    A fifth of the images is for validation. They are chosen by the smallest hashes of their names, so that the choice is reproducible,
    and class by class, the rarest first, so that a class in two or more images is in both parts if possible. Augmented versions of a
    photo, as in Roboflow's exports, and entries for the same file stay together.

    Raises:
        ValueError: it has too few images, or too few with objects, in training with objects to train on.
    """
    held_out = _held_out(file)
    if held_out.all() or not held_out.any():
        raise ValueError(
            f"{file.source} has too few images to split them into training and validation: name a file for each."
        )
    kept = held_out if part == "val" else ~held_out
    places, images, annotations = np.flatnonzero(kept), file.images, file.annotations
    number = np.cumsum(kept) - 1
    large = np.minimum(images.widths, images.heights)[annotations.image] >= MIN_IMAGE_SIDE
    for is_in, name, is_object in (
        (held_out, "validation", ~annotations.crowd),
        (~held_out, "training", file.trainable() & large),
    ):
        if not is_in[annotations.image[is_object]].any():
            raise ValueError(
                f"{file.source} has too few images with objects to split them into training and validation (none for {name}): name a "
                "file for each."
            )
    annotations = annotations.select(kept[annotations.image])
    return dataclasses.replace(
        file,
        images=dataclasses.replace(
            images,
            ids=[images.ids[n] for n in places.tolist()],
            file_names=images.file_names.select(places),
            widths=images.widths[places],
            heights=images.heights[places],
            federated=images.federated and [images.federated[n] for n in places.tolist()],
        ),
        annotations=dataclasses.replace(annotations, image=number[annotations.image]),
    )


def _held_out(file: CocoFile) -> np.ndarray:
    """Which images are for validation, bool [I]."""
    names = [file.images.file_name(n).replace("\\", "/") for n in range(len(file.images))]
    photos, photo = np.unique([_hash(_VERSION.sub("", name)) for name in names], return_inverse=True)
    shown = np.unique(np.stack((file.annotations.category, photo[file.annotations.image])), axis=1)
    groups = [shown[1, shown[0] == category] for category in np.unique(shown[0])]
    groups = [*sorted(groups, key=len), np.arange(len(photos))]  # by class; finally the photos without objects
    held_out, is_decided = np.zeros(len(photos), dtype=bool), np.zeros(len(photos), dtype=bool)
    for group in groups:
        wanted = max(round(_HELD_OUT * len(group)), int(len(group) > 1)) - int(held_out[group].sum())
        held_out[group[~is_decided[group]][: max(wanted, 0)]] = True
        is_decided[group] = True
    return held_out[photo]


def _hash(name: str) -> str:
    return hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()
