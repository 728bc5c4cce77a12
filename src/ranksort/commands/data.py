"""`check-data` and `import-data`."""

import sys
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from .arguments import JsonPath, check_folder


def check_data(
    images: Annotated[Path, Positional, arg(metavar="FOLDER")],
    annotations: JsonPath,
    /,
    verbose: bool = False,
    crowd: Literal["drop", "keep"] = "drop",
) -> None:
    """Look for faults in a data set before training on it.

    Args:
        images: folder of the images.
        annotations: COCO annotation file.
        verbose: list all faults, however many.
        crowd: what to do with annotations marked as crowd, as by --data.crowd of `train`.
    """
    from ..data.check import check_data as run_check

    check = run_check(images, annotations, keep_crowds=crowd == "keep")
    print(check.text() if verbose else check)
    if not check.is_usable:
        sys.exit(1)


def import_data(
    folder: Annotated[Path, Positional, arg(metavar="FOLDER")], /, out: Path, copy_images: bool = False
) -> None:
    """Write COCO annotations of a data set in the format of YOLO or PASCAL VOC.

    Args:
        folder: the data set, or its YAML file.
        out: folder to write, which must not be there yet; it holds a link to the images.
        copy_images: copy the images instead.
    """
    from ..data.importers import import_data as run_import

    check_folder(out)
    print(run_import(folder, out, copy_images=copy_images))
    print(f"\nwrote {out}; next: ranksort train RECIPE --data.root {out}")
