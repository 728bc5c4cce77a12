"""What the arguments of several commands are."""

import os
from pathlib import Path
from typing import Annotated, Any

from tyro.conf import Positional, arg

RecipeName = Annotated[str, Positional, arg(metavar="RECIPE")]
CheckpointPath = Annotated[Path, Positional, arg(metavar="CHECKPOINT")]
JsonPath = Annotated[Path, Positional, arg(metavar="JSON")]


def default(said: str) -> Any:
    """What the help says of an option whose default is no value to be typed."""
    return arg(help_behavior_hint=f"(default: {said})")


TIME = "%Y-%m-%d_%H-%M-%S"  # names of folders


def check_folder(out: Path) -> None:
    """Raise ValueError, before there is anything to lose, unless `out` can be a folder to write to."""
    if out.exists() and not out.is_dir():
        raise ValueError(f"--out {out} is a file: name a folder")
    _check_writable(out, out)


def check_file(out: Path) -> None:
    """Raise ValueError unless `out` can be a file to write."""
    if out.is_dir():
        raise ValueError(f"--out {out} is a folder: name a file")
    _check_writable(out, out.parent)


def _check_writable(out: Path, folder: Path) -> None:
    place = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    if not place.is_dir():
        raise ValueError(f"--out {out} cannot be written: {place} is a file")
    if not os.access(place, os.W_OK | os.X_OK):
        raise ValueError(f"--out {out} cannot be written: {place} may not be written to")
