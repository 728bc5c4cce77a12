"""Rows of a COCO file (images, categories, annotations), and the usable parts of malformed ones."""

import math
import reprlib
from collections.abc import Callable
from typing import Any

import msgspec

from .json_source import text_of

MAX_SIDE = 1_000_000  # pixels, of an image
MAX_COORDINATE = 1e9  # pixels, of a box; larger values are mistakes
_MAX_NUMBER = 1e300  # JSON may have integers too large for floats

AnyId = int | float | str | None
Number = int | float


class CategoryRow(msgspec.Struct, gc=False):
    """A category; `name` is None if it is malformed."""

    id: AnyId = None
    name: str | None = None
    supercategory: str | None = None
    frequency: str | None = None


class ImageRow(msgspec.Struct, gc=False):
    """An image; with its lists of category ids in LVIS. Malformed fields are None."""

    id: AnyId = None
    file_name: str | None = None
    width: Number | None = None
    height: Number | None = None
    coco_url: str | None = None
    neg_category_ids: list[AnyId] | None = None
    not_exhaustive_category_ids: list[AnyId] | None = None


class AnnotationRow(msgspec.Struct, gc=False):
    """An annotation without its segmentation. Malformed fields are None; a malformed `area` is infinite."""

    id: AnyId = None
    image_id: AnyId = None
    category_id: AnyId = None
    bbox: tuple[float, float, float, float] | None = None
    area: float | None = None
    iscrowd: bool | int | float | str | None = 0


class MaskedAnnotationRow(AnnotationRow, gc=False):
    """An annotation with its segmentation, as JSON."""

    segmentation: msgspec.Raw = msgspec.Raw(b"null")


class Repair:
    """Convert malformed rows to valid ones, and record the values that had to be dropped.

    Attributes:
        found: (number of the row in the list, from 1, and field) -> the value as shown in messages.
        number: number of the next row.
    """

    def __init__(self) -> None:
        self.found: dict[tuple[int, str], str] = {}
        self.number = 1

    def shown(self, number: int, name: str) -> str:
        """A value for messages: "not 'x'", or "which is missing"."""
        value = self.found.get((number, name))
        return "which is missing" if value is None else f"not {value}"

    def rows(self, kind: type[msgspec.Struct], **converters: Callable[[Any], Any]) -> Callable[[Any], Any]:
        """The function that converts a JSON value to a row of this kind; `converters` are for its own fields."""
        fields = {name: converters.get(name) or _FIELDS[name] for name in kind.__struct_fields__}

        def repaired(entry: Any) -> Any:
            number, self.number = self.number, self.number + 1
            if not isinstance(entry, dict):
                self.found[number, "row"] = reprlib.repr(entry)
                return kind()
            row = kind()
            for name, convert in fields.items():
                if entry.get(name) is not None:
                    value = convert(entry[name])
                    setattr(row, name, value)
                    if value is None or (name == "area" and math.isinf(value)):
                        self.found[number, name] = reprlib.repr(entry[name])
            return row

        return repaired


def is_number(value: Any, limit: float = math.inf) -> bool:
    """Whether a JSON value is a number of valid size; excludes NaN, infinity and booleans."""
    return type(value) in (int, float) and -limit < value < limit


class _NoScalar:
    """A list, an object or a boolean in place of a number or a string; hashable, unlike the value."""

    def __init__(self, value: Any) -> None:
        self.shown = reprlib.repr(value)

    def __repr__(self) -> str:
        return self.shown

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _NoScalar) and other.shown == self.shown

    def __hash__(self) -> int:
        return hash(self.shown)


def _scalar(value: Any) -> Any:
    return _NoScalar(value) if isinstance(value, list | dict) else value


def _id(value: Any) -> Any:
    return _NoScalar(value) if isinstance(value, list | dict | bool) else value  # in Python, True equals 1


def _string(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def _number(value: Any) -> Number | None:
    return value if is_number(value, _MAX_NUMBER) else None


def _box(value: Any) -> tuple[float, ...] | None:
    good = isinstance(value, list) and len(value) == 4 and all(is_number(v, MAX_COORDINATE) for v in value)
    return tuple(map(float, value)) if good else None


def _area(value: Any) -> float:
    return float(value) if is_number(value, _MAX_NUMBER) else math.inf


def _list(value: Any) -> list[Any]:
    return list(map(_id, value)) if isinstance(value, list) else [None]


_FIELDS: dict[str, Callable[[Any], Any]] = {
    "id": _id,
    "image_id": _id,
    "category_id": _id,
    "iscrowd": _scalar,
    "name": _string,
    "supercategory": _string,
    "frequency": _string,
    "file_name": _string,
    "coco_url": _string,
    "width": _number,
    "height": _number,
    "neg_category_ids": _list,
    "not_exhaustive_category_ids": _list,
    "bbox": _box,
    "score": _number,
    "area": _area,
    "segmentation": text_of,
}
