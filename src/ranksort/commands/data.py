"""`check-data` and `import-data`."""

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from tyro.conf import Positional, arg

from .arguments import check_folder, default

if TYPE_CHECKING:
    from ..data.check import DataCheck
    from ..data.layouts import Split


def check_data(
    images: Annotated[Path, Positional, arg(metavar="FOLDER")],
    annotations: Annotated[
        Path | None, Positional, arg(metavar="[JSON]", help_behavior_hint="(default: those of the data set)")
    ] = None,
    /,
    verbose: bool = False,
    crowd: Literal["drop", "keep"] = "drop",
    white: float = 0.0,
) -> None:
    """Check a data set for faults before training on it.

    Args:
        images: folder of the images; or, without JSON, a data set as for --data.root of `train`.
        annotations: COCO annotation file of the images.
        verbose: list all faults, however many.
        crowd: what to do with annotations marked as crowd, as for --data.crowd of `train`.
        white: value of white in greyscale images of more than 8 bits, as for --data.white of `train`; 0: derived from the images.
    """
    from ..data.check import check_data as run_check
    from ..data.coco_columns import require_known
    from ..data.faults import VALIDATION
    from ..data.layouts import Split
    from ..data.splits import part_of

    if not white >= 0:
        raise ValueError(f"--white must be 0 or more, got {white}")
    splits = {"": Split(images, annotations)} if annotations else _splits(images)
    checks: dict[str, DataCheck] = {}
    for name, split in splits.items():
        if name == "val":
            white = checks["train"].white  # as in a run
        checks[name] = check = run_check(split.images, split.annotations, keep_crowds=crowd == "keep", white=white)
        if len(checks) > 1:
            print()
        print(check.text() if verbose else check)
    if any(not check.is_usable for name, check in checks.items() if name != "val"):
        sys.exit(1)
    if "val" in checks:
        train, val = checks["train"].file, checks["val"].file
        val.require("evaluation", also=VALIDATION)
        require_known(val, [category for category in train.categories if category not in train.placeholders()])
    elif "train" in checks:
        part_of(checks["train"].file, "val")  # raises if it cannot be divided
        print("\n`train` splits the images of this file into training and validation.")


def _splits(root: Path) -> "dict[str, Split]":
    """The annotation files of a data set and their images, as `train` finds them: one for `train` and one for `val`, or one for both."""
    from ..data.layouts import find_split
    from ..data.near import beside

    if not root.exists():
        raise FileNotFoundError(f"The folder {root} does not exist{beside(root)}.")
    if root.is_file():
        raise ValueError(
            f"{root} is a file: name the folder of its images before it, or only the folder of the data set."
        )
    style = "lvis" if (root / "annotations" / "lvis_v1_train.json").is_file() else "coco"
    try:
        train = find_split(root, "train", style=style)
        return {"train": train} if train.part else {"train": train, "val": find_split(root, "val", style=style)}
    except (FileNotFoundError, ValueError) as error:
        hint = " For `check-data`, name it after the folder of its images." if "-annotations." in str(error) else ""
        raise type(error)(f"{error}{hint}") from None


def import_data(
    folder: Annotated[Path, Positional, arg(metavar="FOLDER")],
    /,
    out: Path,
    copy_images: bool = False,
    reader: Annotated[str | None, default("YOLO or VOC, as recognized")] = None,
) -> None:
    """Convert a data set from YOLO, PASCAL VOC or your own format to COCO annotations.

    Args:
        folder: the data set, or its YAML file.
        out: output folder, which must not exist yet; it links to the images.
        copy_images: copy the images instead of linking to them.
        reader: file.py:function that reads your own format.
    """
    from ..data.importers import import_data as run_import
    from ..recipes.detectors import from_file

    check_folder(out)
    read = from_file(reader, "reader") if reader else None
    dataset = run_import(folder, out, copy_images=copy_images, read=read)
    print(dataset)
    if lacking := dataset.lacking():
        print(f"\nwrote {out}; it cannot be trained on: {lacking}")
    else:
        print(f"\nwrote {out}; next: ranksort train RECIPE --data.root {shlex.quote(str(out))}")
