"""Detectors by name: the one table of ours, and those in files of a user's own. Nothing is loaded before one is asked for.

A checkpoint or run folder names its detector, too. Were that a file, loading somebody's checkpoint would run somebody's code. So what was
read from disk is marked by `recorded`, and refused by `get_detector` until the user has named the file.
"""

import importlib
import runpy
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from ..models import Detector

DETECTORS = {  # name in recipes and on the command line -> module of `ranksort.models` and class
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
    DetectorName = Literal[tuple(DETECTORS)] | str  # so that the command line's help lists them


def get_detector(name: "str | type[Detector]") -> "type[Detector]":
    """Return the class of that name in `DETECTORS`, or "path/to/file.py:Class" from a file of one's own, which is run; or a class itself.

    Raises:
        ValueError: where there is no such detector, or it is no subclass of `ranksort.models.Detector`, or from a file which only something
            on disk has named.
        FileNotFoundError: where there is no such file.
    """
    if not isinstance(name, str):
        detector: Any = name
    elif name in DETECTORS:
        module, attribute = DETECTORS[name]
        return getattr(importlib.import_module(f"..models.{module}", __package__), attribute)
    elif is_file(given := as_named(name)):
        if given != name:
            raise ValueError(
                f"the detector of this model is {given}, and a file that a checkpoint or run names is not run by itself: "
                f"if you trust the file, name it by --model.detector {given}, or from Python by detector={given!r}"
            )
        detector = from_file(name, "detector")
    else:
        raise ValueError(
            f"there is no detector {given!r}: choose one of {', '.join(DETECTORS)}, or file.py:Class for one of your own"
        )
    from ..models import Detector

    if not (isinstance(detector, type) and issubclass(detector, Detector)):
        raise ValueError(f"the detector {name} must be a subclass of ranksort.models.Detector")
    return detector


def is_file(name: str) -> bool:
    """Whether a name is that of something in a Python file, "path/to/file.py:name"."""
    return Path(name.rpartition(":")[0]).suffix == ".py"


def from_file(name: str, what: str) -> Any:
    """Run the file of "path/to/file.py:name", and return what it has by that name; `what` this should be, for messages.

    Raises:
        FileNotFoundError, ValueError: where there is no such file, or no such thing in it.
    """
    file, _, attribute = name.rpartition(":")
    path = Path(file)
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {file} to take the {what} {attribute} from")
    content = _run(path.resolve(), path.stat().st_mtime_ns)
    if not callable(content.get(attribute)):
        kind = "class" if what == "detector" else "function"
        raise ValueError(f"{file} has no {kind} {attribute}")
    return content[attribute]


@lru_cache
def _run(path: Path, _changed: int) -> dict[str, Any]:
    """What a Python file defines. Once for each state of the file, so that a class is the same one wherever it is asked for."""
    return runpy.run_path(str(path))


def recorded(name: str) -> str:
    """What a file on disk calls its detector, marked where this is none of ours."""
    return name if name in DETECTORS else as_named(name) + _OF_DISK


def as_named(name: str) -> str:
    """A detector's name without the mark of `recorded`."""
    return name.removesuffix(_OF_DISK)
