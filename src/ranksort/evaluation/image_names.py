"""Check whether detections and ground truth mean the same images by their ids."""

import json
import unicodedata
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from ..data.coco_columns import CocoFile
from ..data.ids import IdIndex, canonical
from ..words import counted
from .inputs import Detections, GroundTruth
from .metrics import percent
from .report import Report

_PREDICT = "`ranksort predict --annotations TRUTH.json` writes results with its ids"
_LITTLE = 0.01  # AP50


def doubts(source: Any, file: CocoFile, truth: GroundTruth, found: Detections, report: Report) -> list[str]:
    """Signs that the detections belong to other images than the ground truth, in sentences.

    Args:
        source: the source of the detections. `images.json` beside a file is read; there `predict` and `test` write the names of the
            images.
        file: the ground truth.
        truth: the ground truth as columns.
        found: the detections as columns.
        report: their report.
    """
    if not len(found.scores):
        return ["There are no detections."]
    named = _named_images(source)
    said, is_certain = _other_names(*named, file) if named else ("", False)
    doubts = [said] if said else []
    with_objects = np.unique(truth.image[~truth.crowd])
    covered = int(np.isin(with_objects, found.image).sum())
    if 2 * covered < len(with_objects):
        doubt = f"There are no detections in {len(with_objects) - covered} of {counted(len(with_objects), 'image')} with objects"
        hint = "" if is_certain else f": if their ids differ, {_PREDICT}"
        doubts.append(f"{doubt}{hint}.")
    if not doubts and not is_certain and report.summary["AP50"] < _LITTLE:
        doubts.append(
            f"Hardly any detection is a true positive (AP50 {percent(report.summary['AP50'])}). If that is unexpected: "
            "image ids and category ids must be those of the ground truth, and boxes [x, y, width, height] in pixels."
        )
    return doubts


def _named_images(source: Any) -> tuple[Path, list[tuple[Any, str]]] | None:
    """The file beside the detections with the names of their images, and the ids and names in it."""
    path = Path(source).parent / "images.json" if isinstance(source, str | Path) else None
    if path is None or not path.is_file():
        return None
    try:
        return path, [
            (canonical(image["id"]), str(image["file_name"])) for image in json.loads(path.read_bytes())["images"]
        ]
    except (ValueError, TypeError, KeyError, RecursionError):  # written by another program
        return None


def _other_names(path: Path, named: list[tuple[Any, str]], file: CocoFile) -> tuple[str, bool]:
    """A sentence about images with other names in the ground truth, or ""; and whether there are names and all of them agree."""
    places = IdIndex(file.images.ids).find([id for id, _ in named])
    pairs = [
        (id, name, file.images.file_name(n)) for (id, name), n in zip(named, places.tolist(), strict=True) if n >= 0
    ]
    others = [pair for pair in pairs if pair[2] and _stem(pair[1]) != _stem(pair[2])]
    if not others:
        return "", any(pair[2] for pair in pairs)
    id, name, expected = others[0]
    return (
        f"{len(others)} of {counted(len(pairs), 'image')} have different names in {path} and in the ground truth, such as image {id}: "
        f"{name} and {expected}. If they are not the same images, these numbers are meaningless: {_PREDICT}."
    ), False


def _stem(name: str) -> str:
    """The part of a name that identifies an image, regardless of folder, suffix and spelling."""
    return unicodedata.normalize("NFC", PurePosixPath(name.replace("\\", "/")).stem).casefold()
