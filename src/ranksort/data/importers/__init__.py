"""Data sets in other formats, written as COCO's: one file a format, which finds and reads it, and one that writes it."""

from collections.abc import Callable
from pathlib import Path

from ..layouts import coco_files
from ..near import beside
from . import voc, yolo
from .dataset import ImportedDataset, write

_FORMATS = {"YOLO": yolo, "VOC": voc}


def recognize(folder: Path) -> str:
    """Name the format that a folder looks like, "YOLO" or "VOC"; "" for none."""
    return next((name for name, module in _FORMATS.items() if module.find(folder)), "")


def import_data(
    folder: Path,
    out: Path,
    *,
    copy_images: bool = False,
    read: Callable[[Path], ImportedDataset] | None = None,
) -> ImportedDataset:
    """Write the annotations of a data set in another format as COCO JSON.

    Args:
        folder: a folder in YOLO's or VOC's layout, or the YAML file of the former.
        out: the new folder. It gets `annotations/instances_{train,val,test}.json` and `images`, which is a link to the folder that the
            images lie in.
        copy_images: make `images` a folder with copies.
        read: reads a folder in your own format; None: the folder is in YOLO's or VOC's.

    Returns:
        What was read and what was left out; its `str` is a report.

    Raises:
        FileNotFoundError: there is no such folder.
        FileExistsError: there is something at `out`.
        ValueError: it is in no known format, or nothing of it can be used.
    """
    if not folder.exists():
        raise FileNotFoundError(f"The folder {folder} does not exist{beside(folder)}.")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise FileExistsError(f"{out} is there already and is not written over: name another folder with --out.")
    if read is None:
        read = _FORMATS[_require_known(folder)].read
    dataset = read(folder)
    write(dataset, out, copy_images)
    return dataset


def _require_known(folder: Path) -> str:
    """Name the format of a folder as `recognize` does, or raise ValueError."""
    name = recognize(folder)
    if not name and coco_files(folder):
        raise ValueError(f"{folder} has annotations in COCO's format: it is not imported but named with --data.root.")
    if not name:
        raise ValueError(
            f"{folder} is neither in YOLO's format (a .yaml file with names and train, or classes.txt with images/ and labels/) nor in "
            "VOC's (XML files of annotations with their images)."
        )
    return name
