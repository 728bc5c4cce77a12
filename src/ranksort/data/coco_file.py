"""The reader of COCO and LVIS annotation files.

Training, evaluation and `check-data` all read files here. A file becomes columns (`coco_columns.py`) and a list of everything that is
wrong with it (`coco_checks.py`). A fault may matter for one use of a file and not for another (`faults.py`).
"""

import operator
import re
from collections.abc import Callable, Mapping
from itertools import chain, islice
from pathlib import Path
from reprlib import repr as shown
from typing import Any

import msgspec
import numpy as np

from .coco_checks import check
from .coco_columns import Annotations, Category, CocoFile, Federated, Images, join_annotations
from .coco_rows import (
    MAX_COORDINATE,
    MAX_SIDE,
    AnnotationRow,
    CategoryRow,
    ImageRow,
    MaskedAnnotationRow,
    Repair,
    is_number,
)
from .ids import Id, IdIndex, canonical, sort_key
from .json_source import JsonSource, decode_rows, in_memory, no_garbage_collection
from .lvis import file_name
from .segmentations import Packed

_SECTIONS = ("categories", "images", "annotations")
_ANNOTATIONS = re.compile(rb'"annotations"\s*:\s*\[')
_PLACEHOLDER = b'["annotations"]'


def read_coco_file(
    source: str | Path | Mapping[str, Any],
    *,
    segmentations: bool,
    pixels: bool | None = None,
    keep_crowds: bool = False,
    what: str = "annotation file",
) -> CocoFile:
    """Read and check an annotation file. Bad contents become faults, not exceptions.

    Args:
        source: path of the JSON, or its parsed contents.
        segmentations: keep and check them.
        pixels: also look for masks without a pixel, for which polygons have to be drawn; None: unless that would take long because
            there are many, in which case empty masks are found only when decoded.
        keep_crowds: treat annotations marked as crowd as objects, because some exporters mark every mask as crowd.
        what: its name in messages.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it does not fit into memory, or parsed contents are not valid JSON values.

    Examples:
        >>> from ranksort.data.coco_file import read_coco_file
        >>> truth = {"images": [{"id": 1, "file_name": "a.jpg", "width": 64, "height": 64}], "categories": [{"id": 1, "name": "cat"}]}
        >>> truth["annotations"] = [{"id": 5, "image_id": 1, "category_id": 1, "bbox": [4, 4, 0, 8], "area": 0, "iscrowd": 0}]
        >>> file = read_coco_file(truth, segmentations=False)
        >>> file.annotations.boxes.tolist(), [(fault.kind, *fault.lines) for fault in file.faults][:1]
        ([[4.0, 4.0, 0.0, 8.0]], [('box without area', 'annotation 5 has no area (bbox [4.0, 4.0, 0.0, 8.0], area 0)')])
    """
    opened = JsonSource.open(source, what)
    with in_memory(source, what, "use fewer images"), no_garbage_collection():
        for find in (_usual_sections, _sections):  # the second also explains what is wrong
            file = CocoFile(f"The {opened.name}")
            sections = find(file, opened)
            if not sections or file.faults:
                continue
            try:
                _Reader(file, segmentations, opened.release).read(sections)
                break
            except ValueError as error:
                file.add("not JSON", [f"it cannot be read: {error}"])
        if not any(fault.kind in ("not JSON", "missing section") for fault in file.faults):
            check(file, pixels, keep_crowds)
    return file


def _usual_sections(file: CocoFile, source: JsonSource) -> dict[str, Any]:
    """`_sections` without parsing the annotations, whose end is searched for; empty if it is not at one of the usual places.

    The end may still be wrong. Then the annotations are not a list in JSON, and reading them raises ValueError.
    """
    content = source.content
    if not (found := _ANNOTATIONS.search(content)):
        return {}
    later = [key for key in (b'"categories"', b'"images"') if content.find(key, 0, found.start()) < 0]
    stop = min((content.rfind(key) for key in later), default=len(content) - 1)
    end = content.rfind(b"]", found.end(), max(stop, 0)) + 1
    if not end:
        return {}
    start = found.end() - 1
    try:
        rest = b"".join((content[:start], _PLACEHOLDER, content[end:]))
        sections: dict[str, Any] = msgspec.json.decode(rest, type=dict[str, msgspec.Raw])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return {}
    if rest.count(_PLACEHOLDER) > 1 or bytes(sections.get("annotations", b"")) != _PLACEHOLDER:
        return {}
    sections["annotations"] = memoryview(content)[start:end]
    _check_sections(file, sections)
    return sections


def _sections(file: CocoFile, source: JsonSource) -> dict[str, Any]:
    """The sections, as JSON or as lists; missing ones become faults."""
    sections: Any
    try:
        sections = msgspec.json.decode(source.content, type=dict[str, msgspec.Raw])
        source.release()
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        try:
            sections = source.parse()
        except ValueError as error:
            file.add("not JSON", ["it" + str(error).removeprefix(file.source).rstrip(".")])
            return {}
    sections = sections if isinstance(sections, dict) else {}
    _check_sections(file, sections)
    return sections


def _check_sections(file: CocoFile, sections: dict[str, Any]) -> None:
    """Add missing and empty sections to the faults."""
    starts = {name: _start(sections.get(name)) for name in _SECTIONS}
    missing = [name for name in _SECTIONS if starts[name][:1] != b"["]
    missing += [name for name in _SECTIONS[:2] if starts[name] == b"[]"]
    file.add("missing section", [f'"{name}" is missing, empty or not a list' for name in missing])


def _start(section: Any) -> bytes:
    """The first two characters of a value's JSON."""
    if isinstance(section, msgspec.Raw | memoryview):
        return b"".join(bytes(memoryview(section)[:200]).split())[:2]
    return (b"[.." if section else b"[]")[:2] if isinstance(section, list) else b""


class _Reader:
    """Convert the rows of the sections to columns, and malformed ones to faults."""

    def __init__(self, file: CocoFile, segmentations: bool, release: Callable[[], None]) -> None:
        self.file, self.segmentations, self.release = file, segmentations, release
        self.problems: dict[str, list[str]] = {}
        self.malformed: dict[str, set[Any]] = {"image": set(), "category": set()}  # values that are not ids

    def read(self, sections: dict[str, Any]) -> None:
        self.categories(sections.pop("categories"))
        self.images(sections.pop("images"))
        self.annotations(sections.pop("annotations"))
        for kind, lines in self.problems.items():
            self.file.add(kind, lines)

    def problem(self, kind: str, line: str) -> None:
        self.problems.setdefault(kind, []).append(line)

    def rows(self, section: Any, name: str, kind: type[Any]) -> tuple[list[tuple[int, Id, Any]], Repair]:
        """The rows of images or categories with a unique id: number in the list from 1, id, row."""
        repair, rows = Repair(), list[Any]()
        for part in decode_rows(section, kind, repair.rows(kind), release=self.release):
            rows += part
            repair.number = len(rows) + 1
        known: dict[Id, tuple[int, Id, Any]] = {}
        for number, row in enumerate(rows, 1):
            id = canonical(row.id)
            if id is None:
                self.malformed[name].add(row.id)
                line = f'needs an integer or a string as "id", {"which is missing" if row.id is None else f"not {shown(row.id)}"}'
                if (number, "row") in repair.found:
                    line = f"is not an object but {repair.found[number, 'row']}"
                self.problem(f"malformed {name}", f"{name} number {number} of the list {line}")
            elif id in known:
                self.problem(f"duplicate {name} id", f"{name} {id} has the same id as an earlier one")
            else:
                known[id] = number, id, row
        return list(known.values()), repair

    def categories(self, section: Any) -> None:
        rows, repair = self.rows(section, "category", CategoryRow)
        rows.sort(key=lambda entry: sort_key(entry[1]))
        for number, id, row in rows:
            if row.name is None:
                line = f'category {id} needs a string as "name", {repair.shown(number, "name")}'
                self.problem("bad category name", line)
            self.file.categories.append(Category(id, str(id) if row.name is None else row.name))
        self.file.frequencies = [row.frequency for *_, row in rows]
        self.file.supercategories = [row.supercategory for *_, row in rows]

    def images(self, section: Any) -> None:
        rows, repair = self.rows(section, "image", ImageRow)
        names: list[bytes] = []
        for number, id, row in rows:
            name = file_name(row)
            if not name:
                line = f'image {id} needs a string as "file_name", {repair.shown(number, "file_name")}'
                self.problem("bad file name", line)
            names.append((name or "").encode("utf-8", "surrogatepass"))
        widths, heights = (self.sides(rows, key, repair) for key in ("width", "height"))
        ids = [id for _, id, _ in rows]
        self.file.images = Images(ids, Packed.of(names), widths, heights, self.federated(rows))

    def sides(self, rows: list[tuple[int, Id, Any]], key: str, repair: Repair) -> np.ndarray:
        """Widths or heights of images, int64, 0 for those that are malformed."""
        values = [getattr(row, key) for *_, row in rows]
        try:
            column = np.array(values, dtype=np.float64)  # None becomes NaN
        except OverflowError:  # JSON may have integers too large for floats
            column = np.array([value if is_number(value, MAX_SIDE) else np.nan for value in values])
        good = (column > 0) & (column < MAX_SIDE) & (column == np.floor(column))
        for n in np.flatnonzero(~good).tolist():
            number, id, _ = rows[n]
            given = repair.shown(number, key) if values[n] is None else f"not {shown(values[n])}"
            self.problem("bad image size", f'image {id} needs a positive integer under a million as "{key}", {given}')
        return np.where(good, column, 0).astype(np.int64)

    def federated(self, rows: list[tuple[int, Id, Any]]) -> list[Federated] | None:
        """LVIS' lists of classes, as positions; None if no image has them."""
        if all(row.neg_category_ids is None and row.not_exhaustive_category_ids is None for *_, row in rows):
            return None
        index = IdIndex([category.id for category in self.file.categories])

        def places(lists: list[list[Any]]) -> list[list[int]]:
            found = iter(index.find(list(chain.from_iterable(lists))).tolist())
            return [list(islice(found, len(ids))) for ids in lists]

        absent = places([row.neg_category_ids or [] for *_, row in rows])
        incomplete = places([row.not_exhaustive_category_ids or [] for *_, row in rows])
        for (_, id, _), *lists in zip(rows, absent, incomplete, strict=True):
            if any(-1 in known for known in lists):
                for known in lists:
                    known[:] = [place for place in known if place >= 0]
                self.problem("bad list of categories", f"image {id} lists a category that the file does not have")
        return list(map(Federated, absent, incomplete))

    def annotations(self, section: Any) -> None:
        kind = MaskedAnnotationRow if self.segmentations else AnnotationRow
        images, categories = (
            IdIndex(ids) for ids in (self.file.images.ids, [category.id for category in self.file.categories])
        )
        repair, first, parts = Repair(), 1, list[Annotations]()
        for rows in decode_rows(section, kind, repair.rows(kind), release=self.release):
            parts.append(self.columns(rows, first, repair, images, categories))
            first += len(rows)
            repair.number = first
        self.file.annotations = join_annotations(parts)

    def columns(self, rows: list[Any], first: int, repair: Repair, images: IdIndex, categories: IdIndex) -> Annotations:
        """The columns of some annotations, the first of which has this number, without those with unknown references."""
        get = {name: list(map(operator.attrgetter(name), rows)) for name in AnnotationRow.__struct_fields__}
        boxes, bad_boxes = _boxes(get["bbox"])
        crowd, bad_crowds = _crowds(get["iscrowd"])
        part = Annotations(
            ids=_ids(get["id"]),
            number=np.arange(first, first + len(rows)),
            image=images.find(get["image_id"]),
            category=categories.find(get["category_id"]),
            boxes=boxes,
            areas=np.array(get["area"], dtype=np.float64),  # None becomes NaN
            crowd=crowd,
            segmentations=Packed.of([row.segmentation for row in rows]) if self.segmentations else None,
        )
        refused = set(np.flatnonzero((part.image < 0) | (part.category < 0)).tolist())
        for n in refused:
            self.refer(part, n, {name: get[f"{name}_id"][n] for name in ("image", "category")}, repair)
        for n in set(bad_crowds) - refused:
            line = f'{part.name(n)} needs 0 or 1 as "iscrowd", not {shown(get["iscrowd"][n])}'
            self.problem("malformed annotation", line)
        for n in set(bad_boxes) - refused:
            value = get["bbox"][n]
            given = repair.shown(first + n, "bbox") if value is None else f"not {list(value)}"
            need = "four finite numbers [x, y, width, height]"
            self.problem("bad box", f'{part.name(n)} needs {need} as "bbox", {given}')
        for n in range(len(rows)) if repair.found else ():
            if (first + n, "area") in repair.found:
                line = f"{part.name(n)} has the invalid area {repair.found[first + n, 'area']}"
                self.problem("wrong area", f"{line}: that of its box or mask is used")
        is_kept = np.ones(len(rows), dtype=bool)
        is_kept[[*refused, *bad_crowds]] = False
        return part.select(is_kept)

    def refer(self, part: Annotations, n: int, values: dict[str, Any], repair: Repair) -> None:
        """Add the fault of an annotation with an unknown image or category, unless that is caused by another fault."""
        where, number = part.name(n), int(part.number[n])
        if (number, "row") in repair.found:
            self.problem("malformed annotation", f"{where} is not an object but {repair.found[number, 'row']}")
            return
        for name, places in (("image", part.image), ("category", part.category)):
            value = values[name]
            if places[n] >= 0 or value in self.malformed[name]:
                continue
            if canonical(value) is None:
                given = "which is missing" if value is None else f"not {shown(value)}"
                line = f'{where} needs an integer or a string as "{name}_id", {given}'
                self.problem("malformed annotation", line)
            else:
                self.problem(f"unknown {name}", f"{where} names the unknown {name} {shown(value)}")
            return


def _boxes(values: list[Any]) -> tuple[np.ndarray, list[int]]:
    """Boxes, float64 [N, 4], NaN if missing; and the positions of missing ones."""
    without = [n for n, box in enumerate(values) if box is None] if None in values else []
    if without:
        values = [(np.nan,) * 4 if box is None else box for box in values]
    boxes = np.fromiter(chain.from_iterable(values), np.float64, 4 * len(values)).reshape(-1, 4)
    huge = (np.abs(boxes) >= MAX_COORDINATE).any(axis=1)
    boxes[huge] = np.nan
    return boxes, sorted([*without, *np.flatnonzero(huge).tolist()])


def _crowds(values: list[Any]) -> tuple[np.ndarray, list[int]]:
    """Which annotations are marked as crowd, bool [N]; and the positions of marks that are neither 0 nor 1."""
    column = np.array(values)
    if column.dtype.kind not in "bif":
        marks = {None: 0, False: 0, "0": 0, "0.0": 0, True: 1, "1": 1, "1.0": 1}
        column = np.array([marks.get(value, -1) if value.__hash__ else -1 for value in values])
    return column == 1, np.flatnonzero((column != 0) & (column != 1)).tolist()


def _ids(values: list[Any]) -> "np.ndarray | list[Any]":
    column = np.array(values) if values and type(values[0]) is int else None
    return column if column is not None and column.dtype.kind == "i" else [canonical(value) for value in values]
