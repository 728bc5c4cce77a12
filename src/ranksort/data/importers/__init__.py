"""Convert data sets in other formats to COCO: one file per format finds and reads it, and `dataset.py` writes COCO."""

from collections.abc import Callable
from pathlib import Path

from ..layouts import coco_files
from ..near import beside
from . import voc, yolo
from .dataset import ImportedDataset, check, write

_FORMATS = {"YOLO": yolo, "VOC": voc}


def recognize(folder: Path) -> str:
    """The format of a folder, "YOLO" or "VOC"; "" for none."""
    return next((name for name, module in _FORMATS.items() if module.find(folder)), "")


def import_data(
    folder: Path,
    out: Path,
    *,
    copy_images: bool = False,
    read: Callable[[Path], ImportedDataset] | None = None,
) -> ImportedDataset:
    """Convert a data set in another format to COCO JSON.

    Args:
        folder: a folder in the layout of YOLO or VOC, or YOLO's YAML file.
        out: the new folder. It gets `annotations/instances_{train,val,test}.json` and `images`, a link to the folder of the images.
        copy_images: make `images` a folder with copies.
        read: reads a folder in your own format; None: the format is YOLO or VOC.

    Returns:
        What was read and what was left out; its `str` is a report.

    Raises:
        FileNotFoundError: there is no such folder.
        FileExistsError: `out` exists.
        ValueError: the format is unknown, nothing can be used, or `read` returns something invalid.

    Examples:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from PIL import Image
        >>> from ranksort.data.importers import import_data
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     yolo = Path(folder) / "yolo"
        ...     for name in ("images", "labels"):
        ...         (yolo / name).mkdir(parents=True)
        ...     Image.new("RGB", (64, 48)).save(yolo / "images/a.jpg")
        ...     _ = (yolo / "labels/a.txt").write_text("0 0.5 0.5 0.25 0.5")  # class, centre, width and height
        ...     _ = (yolo / "classes.txt").write_text("cat")
        ...     dataset = import_data(yolo, Path(folder) / "coco")
        >>> dataset.splits["train"][0].objects[0].box
        (24.0, 12.0, 16.0, 24.0)
    """
    if not folder.exists():
        raise FileNotFoundError(f"The folder {folder} does not exist{beside(folder)}.")
    if out.exists() and (not out.is_dir() or any(out.iterdir()) or out.samefile(Path.cwd())):
        raise FileExistsError(f"{out} already exists: name another folder with --out.")
    dataset = (read or _FORMATS[_require_known(folder)].read)(folder)
    check(dataset)
    write(dataset, out, copy_images)
    return dataset


def _require_known(folder: Path) -> str:
    """The format of a folder as from `recognize`; raises ValueError if there is none."""
    name = recognize(folder)
    if not name and coco_files(folder):
        raise ValueError(
            f"{folder} has annotations in COCO's format: it need not be imported, name it with --data.root."
        )
    if not name:
        raise ValueError(
            f"{folder} is neither in YOLO's format (a .yaml file with names and train, or classes.txt with images/ and labels/) nor in "
            "VOC's (XML files of annotations with their images)."
        )
    return name
