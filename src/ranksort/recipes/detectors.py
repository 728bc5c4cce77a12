"""Detectors by name: a table of the built-in ones, and detectors in users' own files. Nothing is imported before it is needed.

Checkpoints and run folders name their detector, too. If that were a file, loading someone else's checkpoint would run their code. Names
read from disk are therefore marked by `recorded`, and `get_detector` refuses them until the user names the file.
"""

import importlib
import runpy
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from ..models import Detector

DETECTORS = {  # name in recipes and on the command line -> module of `ranksort.models`, class
    "atss": ("atss", "ATSS"),
    "paa": ("paa", "PAA"),
    "faster_rcnn": ("faster_rcnn", "FasterRCNN"),
    "cascade_rcnn": ("cascade_rcnn", "CascadeRCNN"),
    "mask_rcnn": ("mask_rcnn", "MaskRCNN"),
    "yolact": ("yolact", "YOLACT"),
    "solov2": ("solov2", "SOLOv2"),
    "solov2_light": ("solov2", "SOLOv2Light"),
}
_OF_DISK = " (to be named again)"

if TYPE_CHECKING:
    DetectorName = str
else:
    DetectorName = Literal[tuple(DETECTORS)] | str  # so that the help of the command line lists them


def get_detector(name: "str | type[Detector]") -> "type[Detector]":
    """The class with this name in `DETECTORS`, or from "path/to/file.py:Class", which is executed; a class is returned as it is.

    Raises:
        ValueError: there is no such detector, it is not a subclass of `ranksort.models.Detector`, or it is in a file that only a file
            on disk has named.
        FileNotFoundError: there is no such file.
    """
    if not isinstance(name, str):
        detector: Any = name
    elif name in DETECTORS:
        module, attribute = DETECTORS[name]
        return getattr(importlib.import_module(f"..models.{module}", __package__), attribute)
    elif is_file(given := as_named(name)):
        if given != name:
            raise ValueError(
                f"the detector of this model is {given}, and files named by a checkpoint or run are not executed automatically: "
                f"if you trust the file, name it with --model.detector {given}, or in Python with detector={given!r}"
            )
        detector = from_file(name, "detector")
    else:
        raise ValueError(
            f"there is no detector {given!r}: choose one of {', '.join(DETECTORS)}, or file.py:Class for your own"
        )
    from ..models import Detector

    if not (isinstance(detector, type) and issubclass(detector, Detector)):
        raise ValueError(f"the detector {name} must be a subclass of ranksort.models.Detector")
    return detector


def is_file(name: str) -> bool:
    """Whether a name refers to a Python file, "path/to/file.py:name"."""
    return Path(name.rpartition(":")[0]).suffix == ".py"


def from_file(name: str, what: str) -> Any:
    """Execute the file of "path/to/file.py:name", and return its object of that name; `what` describes it in messages.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it has no such object, or the name is not of this form.
    """
    kind = "class" if what == "detector" else "function"
    if not is_file(name):
        raise ValueError(f"name the {what} as file.py:{kind}, not {name}")
    file, _, attribute = name.rpartition(":")
    path = Path(file)
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {file} with the {what} {attribute}")
    content = _run(path.resolve(), path.stat().st_mtime_ns)
    if not callable(content.get(attribute)):
        raise ValueError(f"{file} has no {kind} {attribute}")
    return content[attribute]


@lru_cache
def _run(path: Path, _changed: int) -> dict[str, Any]:
    """The definitions of a Python file. Executed once per version of the file, so that a class is always the same object."""
    return runpy.run_path(str(path))


def recorded(name: str) -> str:
    """The name of a detector in a file on disk, marked if it is not built in."""
    return name if name in DETECTORS else as_named(name) + _OF_DISK


def as_named(name: str) -> str:
    """A detector's name without the mark of `recorded`."""
    return name.removesuffix(_OF_DISK)
