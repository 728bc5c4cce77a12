"""Ground truth and detections as columns: reads COCO or LVIS JSON, refuses what could not be evaluated truthfully."""

import errno
import functools
import itertools
import json
import mmap
import operator
import re
import reprlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
import numpy as np
from numpy.typing import ArrayLike
from pycocotools import mask as mask_utils

from ..data.annotations import rle_areas
from .chunks import existing_file, json_chunks, to_json

Id = int | str
Box = tuple[float, float, float, float]  # x, y, width, height in pixels
Pixels = Annotated[int, msgspec.Meta(ge=1, le=1_000_000)]
MAX_COORDINATE = 1e9  # whatever is beyond is a mistake
MAX_AREA = 1e10  # pixels; COCO leaves out what is beyond


class Rle(msgspec.Struct, gc=False):
    """A mask by the lengths of its runs, down the columns, of background and object in turn."""

    size: tuple[Pixels, Pixels]  # height, width
    counts: str | list[int]  # a string holds them compressed


PLACE = [("image_id", Id), ("category_id", Id)]
BOX = ("bbox", Box)
MASK = ("segmentation", Rle | list[list[float]])
SIDES = [("height", Pixels), ("width", Pixels)]
LVIS_LISTS = ("neg_category_ids", "not_exhaustive_category_ids")


@dataclass
class Instances:
    """N objects or detections in columns; `image` and `category` are positions among the ids in rising order."""

    image: np.ndarray  # (N,) int32
    category: np.ndarray  # (N,) int32
    areas: np.ndarray  # (N,) pixels
    boxes: np.ndarray | None  # (N, 4) x, y, width, height in pixels; like the masks, always in the order of the file
    mask_areas: np.ndarray | None  # (N,) pixels
    masks: list[str | bytes] | None  # compressed runs of masks as large as the image


@dataclass
class GroundTruth(Instances):
    """The objects, and the images and categories in the order of their ids."""

    images: list[Any]  # rows with `id`, for "segm" `height` and `width`
    categories: list[Any]  # rows with `id`, `name`, for LVIS `frequency`
    crowd: np.ndarray  # (N,) bool
    absent: list[list[int]]  # LVIS: positions of the categories that were verified to be absent, per image
    incomplete: list[list[int]]  # LVIS: positions of the categories not exhaustively annotated, per image


@dataclass
class Detections(Instances):
    """The detections in the order of the results."""

    scores: np.ndarray  # (N,) in 0..1

    def select(self, indices: np.ndarray) -> "Detections":
        """The detections at `indices`, in that order, except that the boxes and masks of all stay where they are."""
        names = ("image", "category", "areas", "scores")
        return replace(self, **{name: getattr(self, name)[indices] for name in names})


def read_ground_truth(source: str | Path | dict[str, Any], iou_type: str, style: str) -> GroundTruth:
    """Read annotations in COCO's or LVIS' format.

    Absent `iscrowd` means 0, absent `area` the area of the box (iou_type "bbox") or mask ("segm").

    Args:
        source: path of the JSON, or its content.
        iou_type: "bbox" or "segm".
        style: "coco" or "lvis"; LVIS' additional keys are required by the latter and not used by the former.

    Raises:
        FileNotFoundError: `source` is no file.
        ValueError: one sentence about what is wrong and where.
    """
    content, origin = _content(source, "ground truth")
    try:
        sections = msgspec.json.decode(content, type=dict[str, msgspec.Raw])
    except (msgspec.DecodeError, RecursionError):
        parsed = _parse(content, origin)
        sections = {}
        if isinstance(parsed, dict):
            sections = {key: msgspec.Raw(json.dumps(rows).encode()) for key, rows in parsed.items()}
    if not {"images", "categories", "annotations"} <= sections.keys():
        raise ValueError("The ground truth must be a JSON object with 'images', 'categories' and 'annotations'.")
    with_boxes, lvis = iou_type == "bbox", style == "lvis"
    fields: list[Any] = [*PLACE, BOX if with_boxes else MASK, ("id", Id | None, None)]
    fields += [("area", float | None, None), ("iscrowd", bool | int, 0)]
    annotations = _rows(sections["annotations"], fields, "annotations", origin)
    crowd = np.array([bool(row.iscrowd) for row in annotations], dtype=bool)
    if crowd.all():
        raise ValueError("The ground truth has no annotations other than crowds: there is nothing to be found.")
    fields = [("id", Id), *([] if with_boxes else SIDES), *((key, list[Id]) for key in LVIS_LISTS if lvis)]
    images = _sorted_by_id(_rows(sections["images"], fields, "images", origin), "images")
    fields = [("id", Id), *([("frequency", Literal["r", "c", "f"])] if lvis else []), ("name", Id | None, None)]
    categories = _sorted_by_id(_rows(sections["categories"], fields, "categories", origin), "categories")
    del content, sections  # what follows allocates less where a large block has been freed
    owners = Owners(images, categories, any_ids=True)
    instances = _instances(annotations, owners, "annotations", with_boxes, not with_boxes)
    for n, row in enumerate(annotations):
        if row.area is not None:
            instances.areas[n] = row.area
    sensible = (instances.areas >= 0) & (instances.areas <= MAX_AREA)
    _refuse(annotations, "annotations", ~sensible, f"have an area that is not from 0 to {MAX_AREA:g}")
    position = {category.id: c for c, category in enumerate(categories)}
    absent, incomplete = (
        [[position[id_] for id_ in getattr(image, key, ()) if id_ in position] for image in images]
        for key in LVIS_LISTS
    )
    return GroundTruth(
        **vars(instances), images=images, categories=categories, crowd=crowd, absent=absent, incomplete=incomplete
    )


def read_detections(source: str | Path | list[dict[str, Any]], ground_truth: GroundTruth, iou_type: str) -> Detections:
    """Read detections in COCO's results format.

    The area of a detection is that of its box if the first detection has one, also for "segm", as pycocotools does it.

    Args:
        source: path of the JSON, or its content: a list of objects with `image_id`, `category_id`, `score` and `bbox`
            ([x, y, width, height] in pixels) or, for "segm", `segmentation` (RLE). An empty list is valid.
        ground_truth: the objects which the detections will be compared with.
        iou_type: "bbox" or "segm".

    Raises:
        FileNotFoundError: `source` is no file.
        ValueError: one sentence about what is wrong and where.
    """
    with_masks = iou_type == "segm"
    try:
        return _read_in_chunks(source, Owners(ground_truth.images, ground_truth.categories), with_masks)
    except (msgspec.DecodeError, ValueError, OverflowError, RecursionError):
        pass  # a complaint counts in all rows
    content, origin = _content(source, "detections")
    shapes = [MASK, ("bbox", Box | None, None)] if with_masks else [BOX]
    rows = _rows(content, [*PLACE, ("score", float), *shapes], "detections", origin)
    del content
    owners = Owners(ground_truth.images, ground_truth.categories, any_ids=True)
    return _detections(rows, owners, _have_boxes(rows, with_masks), with_masks)


def _read_in_chunks(source: Any, owners: "Owners", with_masks: bool) -> Detections:
    """`read_detections`, without the memory for all rows at once; where anything is wrong, the error does not say what."""
    ids = [("image_id", owners.images.kind), ("category_id", owners.categories.kind)]
    shapes: list[Any] = [MASK, ("score", float), ("bbox", Box | None, None)] if with_masks else [BOX, ("score", float)]
    kind = msgspec.defstruct("Row", [*ids, *shapes], gc=False)
    decoder = msgspec.json.Decoder(list[kind])  # type: ignore[valid-type]
    parts: list[Detections] = []
    with_boxes = not with_masks
    for chunk in json_chunks(source, "detections"):
        rows = decoder.decode(chunk)
        if not parts:
            with_boxes = _have_boxes(rows, with_masks)
        parts.append(_detections(rows, owners, with_boxes, with_masks))
    columns = {name: [vars(part).pop(name) for part in parts] for name in list(vars(parts[0]))}
    joined = {name: _join(columns.pop(name)) for name in list(columns)}  # a column's parts are freed when it is joined
    return Detections(**joined)


def _join(parts: list[Any]) -> Any:
    if parts[0] is None:
        return None
    return np.concatenate(parts) if isinstance(parts[0], np.ndarray) else list(itertools.chain.from_iterable(parts))


def _have_boxes(rows: Sequence[Any], with_masks: bool) -> bool:
    return not with_masks or (len(rows) > 0 and rows[0].bbox is not None)


def _detections(rows: Sequence[Any], owners: "Owners", with_boxes: bool, with_masks: bool) -> Detections:
    scores = np.fromiter([row.score for row in rows], np.float64, len(rows))
    _refuse(rows, "detections", ~((scores >= 0) & (scores <= 1)), "have a score outside 0..1")
    return Detections(**vars(_instances(rows, owners, "detections", with_boxes, with_masks)), scores=scores)


@contextmanager
def in_memory(source: Any, what: str, mend: str) -> Iterator[None]:
    """Says in a sentence what does not fit into the memory, and the mend."""
    try:
        yield
    except (MemoryError, OSError) as error:
        if isinstance(error, OSError) and error.errno != errno.ENOMEM:
            raise
        file = f" file {source} ({Path(source).stat().st_size / 1e9:.3g} GB)" if isinstance(source, str | Path) else ""
        raise ValueError(f"This machine has too little memory for the {what}{file}: {mend}.") from None


def _content(source: Any, what: str) -> tuple[bytes | mmap.mmap, str]:
    """The JSON of a file, or of what is in memory, where pycocotools' bytes and numpy's numbers are welcome; its name."""
    if isinstance(source, str | Path):
        path = existing_file(source, what)
        with path.open("rb") as file:  # an empty one cannot be mapped
            content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if path.stat().st_size else b""
        return content, f"{what} file {path}"
    return to_json(source, what), what


def _parse(content: bytes | mmap.mmap | msgspec.Raw, origin: str) -> Any:
    try:
        return json.loads(bytes(content))
    except RecursionError:
        raise ValueError(f"The {origin} is no COCO JSON: its brackets are nested too deeply.") from None
    except ValueError as error:
        raise ValueError(f"The {origin} is not complete JSON, perhaps cut off while being written: {error}.") from None


def _rows(content: bytes | mmap.mmap | msgspec.Raw, fields: list[Any], what: str, origin: str) -> list[Any]:
    """A JSON list as rows with fields, each a name, a type and perhaps a default. A complaint counts what does not fit."""
    kind = msgspec.defstruct("Row", sorted(fields, key=len), gc=False)
    try:
        return msgspec.json.decode(content, type=list[kind])  # type: ignore[valid-type]
    except (msgspec.DecodeError, RecursionError):
        parsed = _parse(content, origin)  # slower, but takes NaN, which is complained about more clearly later
    if not isinstance(parsed, list):
        raise ValueError(f"The {what} must be a JSON list of objects, as COCO's are.")
    rows: list[Any] = []
    problems: dict[str, list[int]] = {}
    for n, row in enumerate(parsed):
        try:
            rows.append(msgspec.convert(row, kind))
        except (msgspec.ValidationError, OverflowError, UnicodeError) as error:
            message, _, place = str(error).replace("`", "'").partition(" - at '$")
            place = re.sub(r"\[.*?\]", "", place).strip(".'")
            field = message.removeprefix("Object missing required field ")
            if field != message:
                problem = f"have no {field}" + (f" in their {place}" if place else "")
            else:
                problem = f"have a wrong {place or 'form'}: {message[0].lower()}{message[1:]}"
            problems.setdefault(problem, []).append(n)
    for problem, positions in problems.items():  # the first one is raised
        _refuse(parsed, what, np.isin(np.arange(len(parsed)), positions), problem)
    return rows


def _refuse(rows: Sequence[Any], what: str, wrong: ArrayLike, problem: str) -> None:
    """Raise ValueError if any row is marked `wrong` (one bool a row), saying how many and the first few."""
    positions = np.flatnonzero(wrong)
    if len(positions) == 0:
        return
    first = [rows[i] for i in positions[:5]]
    ids = [row.get("id") if isinstance(row, dict) else getattr(row, "id", None) for row in first]
    kind, names = ("position", positions[:5].tolist()) if None in ids else ("id", ids)
    more = ", ..." if len(positions) > 5 else ""
    raise ValueError(
        f"{len(positions)} of {len(rows)} {what} {problem} ({kind} {', '.join(map(reprlib.repr, names))}{more})."
    )


def _sorted_by_id(rows: list[Any], what: str) -> list[Any]:
    """Images or categories in the order of their ids, which must differ."""
    ids = [row.id for row in rows]
    wrong = [type(id_) is not type(ids[0]) for id_ in ids]
    _refuse(rows, what, wrong, "have a number as id where the first one has a string, or the reverse")
    first = dict(zip(reversed(ids), reversed(range(len(ids))), strict=True))
    _refuse(rows, what, [first[id_] != i for i, id_ in enumerate(ids)], "have an id that another one has, too")
    return sorted(rows, key=lambda row: row.id)


class Index:
    """Where the images or categories with some ids are among all of them."""

    MAX_GAPS = 10_000_000

    def __init__(self, rows: Sequence[Any], any_ids: bool) -> None:
        self.position = {row.id: i for i, row in enumerate(rows)}
        self.first: Any = min(self.position, default=0)
        self.last: Any = max(self.position, default=0)
        self.table: np.ndarray | None = None  # of the ids from `first` on, then -1
        self.kind: Any = Id
        if not any_ids and all(type(id_) is int for id_ in self.position) and self.last - self.first < self.MAX_GAPS:
            self.kind = int
            self.table = np.full(self.last - self.first + 2, -1, dtype=np.int32)
            self.table[np.array(list(self.position), dtype=np.int64) - self.first] = np.arange(len(rows))

    def find(self, ids: Sequence[Any]) -> np.ndarray:
        """(N,) int32 positions of N ids of type `kind`, -1 of those which nothing has."""
        if self.table is None:
            return np.fromiter(map(self.position.get, ids, itertools.repeat(-1)), np.int32, len(ids))
        numbers = np.fromiter(ids, np.int64, len(ids))
        return self.table[np.minimum(np.maximum(numbers, self.first - 1), self.last + 1) - self.first]


class Owners:
    """The images and the categories which rows belong to; with `any_ids`, the ids of rows may be of another type."""

    def __init__(self, images: Sequence[Any], categories: Sequence[Any], any_ids: bool = False) -> None:
        self.images, self.categories, self._images = Index(images, any_ids), Index(categories, any_ids), images

    @functools.cached_property
    def sizes(self) -> list[tuple[int, int]]:
        """(height, width) of the images."""
        return [(image.height, image.width) for image in self._images]

    @functools.cached_property
    def pixels(self) -> np.ndarray:
        """(I,) height times width."""
        return np.array(self.sizes).reshape(-1, 2).prod(axis=1)


def _positions(rows: Sequence[Any], key: str, index: Index, what: str) -> np.ndarray:
    """(N,) int32: where the images or categories of rows are."""
    values = list(map(operator.attrgetter(key), rows))
    found = index.find(values)
    unknown = list(dict.fromkeys(values[i] for i in np.flatnonzero(found < 0)))
    names = ", ".join(map(reprlib.repr, unknown[:5])) + (", ..." if len(unknown) > 5 else "")
    _refuse(rows, what, found < 0, f"have an unknown {key}: {names}")
    return found


def _instances(rows: Sequence[Any], owners: Owners, what: str, with_boxes: bool, with_masks: bool) -> Instances:
    """Columns of annotations or detections; boxes and areas are those of `bbox` if `with_boxes`, or of the masks."""
    image = _positions(rows, "image_id", owners.images, what)
    category = _positions(rows, "category_id", owners.categories, what)
    boxes = mask_areas = masks = None
    if with_masks:
        masks, mask_areas = _masks(rows, what, image, owners)
        areas = mask_areas.astype(np.float64)
    if with_boxes:
        values = [row.bbox for row in rows]
        if with_masks:  # else each row has one
            _refuse(rows, what, [value is None for value in values], "have no 'bbox'")
        boxes = np.fromiter(itertools.chain.from_iterable(values), np.float64, 4 * len(rows)).reshape(-1, 4)
        sensible, negative = abs(boxes) < MAX_COORDINATE, boxes[:, 2:] < 0
        if not sensible.all() or negative.any():  # which rows have them takes longer
            _refuse(rows, what, ~sensible.all(axis=1), "have a bbox that is not four sensible numbers")
            _refuse(rows, what, negative.any(axis=1), "have a bbox of negative width or height")
        areas = boxes[:, 2] * boxes[:, 3]
    return Instances(image, category, areas, boxes, mask_areas, masks)


def _masks(rows: Sequence[Any], what: str, image: np.ndarray, owners: Owners) -> tuple[list[str | bytes], np.ndarray]:
    """`segmentation` of all rows as compressed runs, and their areas; `image` (N,) holds the positions of their images."""
    image_sizes = owners.sizes
    segmentations = [row.segmentation for row in rows]
    masks: list[Any] = [mask.counts if type(mask) is Rle else None for mask in segmentations]
    uncompressed = [n for n, counts in enumerate(masks) if type(counts) is list]
    polygonal = [n for n, counts in enumerate(masks) if counts is None]
    expected = map(image_sizes.__getitem__, image.tolist())
    pairs = zip(segmentations, expected, strict=True)
    wrong = np.array([type(mask) is Rle and mask.size != size for mask, size in pairs], dtype=bool)
    _refuse(rows, what, wrong, "have a mask of another size than their image's height and width")
    # pycocotools never returns from some RLE whose runs do not fill the image.
    areas = rle_areas(masks, owners.pixels[image])
    wrong = areas < 0
    wrong[polygonal] = False
    _refuse(rows, what, wrong, "have a broken RLE, whose runs do not fill their image")
    for n in uncompressed:
        size = image_sizes[image[n]]
        masks[n] = mask_utils.frPyObjects({"size": size, "counts": masks[n]}, *size)["counts"]
    for n in polygonal:
        polygons = [polygon for polygon in rows[n].segmentation if len(polygon) >= 6]  # others have no area
        # pycocotools needs memory in proportion to the coordinates.
        if polygons and not any(len(p) % 2 or not all(abs(v) < 1e6 for v in p) for p in polygons):
            rle = mask_utils.merge(mask_utils.frPyObjects(polygons, *image_sizes[image[n]]))
            masks[n], areas[n] = rle["counts"], mask_utils.area(rle)
    _refuse(rows, what, areas < 0, "have a polygon that is not at least three points x, y")
    return masks, areas
