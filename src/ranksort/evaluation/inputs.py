"""Ground truth and detections as columns: reads COCO or LVIS JSON, refuses what could not be evaluated truthfully."""

import errno
import itertools
import json
import mmap
import operator
import re
import reprlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import msgspec
import numpy as np
from numpy.typing import ArrayLike
from pycocotools import mask as mask_utils

from ..data.coco_columns import CocoFile, Federated
from ..data.coco_file import read_coco_file
from ..data.ids import sort_key
from ..data.segmentations import encode_segmentations, rle_areas

Id = int | str
Box = tuple[float, float, float, float]  # x, y, width, height in pixels
Pixels = Annotated[int, msgspec.Meta(ge=1, le=1_000_000)]
MAX_COORDINATE = 1e9  # whatever is beyond is a mistake


class Rle(msgspec.Struct, gc=False):
    """A mask by the lengths of its runs, down the columns, of background and object in turn."""

    size: tuple[Pixels, Pixels]  # height, width
    counts: str | list[int]  # a string holds them compressed


PLACE = [("image_id", Id), ("category_id", Id)]
BOX = ("bbox", Box)
MASK = ("segmentation", Rle | list[list[float]])


class ImageInfo(NamedTuple):
    """An image: its id and its sides in pixels, 0 where they are not known."""

    id: Id
    height: int
    width: int


class CategoryInfo(NamedTuple):
    """A category: its id and name, and LVIS' "r", "c" or "f" or None."""

    id: Id
    name: str
    frequency: str | None


@dataclass
class Instances:
    """N objects or detections in columns; `image` and `category` are positions among the ids in rising order."""

    image: np.ndarray  # (N,) int
    category: np.ndarray  # (N,) int
    areas: np.ndarray  # (N,) pixels
    boxes: np.ndarray | None  # (N, 4) x, y, width, height in pixels
    mask_areas: np.ndarray | None  # (N,) pixels
    masks: list[str | bytes] | None  # compressed runs of masks as large as the image, always in the order of the file


@dataclass
class GroundTruth(Instances):
    """The objects, and the images and categories in the order of their ids."""

    images: list[ImageInfo]
    categories: list[CategoryInfo]
    crowd: np.ndarray  # (N,) bool
    absent: list[list[int]]  # LVIS: positions of the categories that were verified to be absent, per image
    incomplete: list[list[int]]  # LVIS: positions of the categories not exhaustively annotated, per image


@dataclass
class Detections(Instances):
    """The detections in the order of the results."""

    scores: np.ndarray  # (N,) in 0..1

    def select(self, indices: np.ndarray) -> "Detections":
        """The detections at `indices`, in that order, except that all of the masks stay where they are."""
        columns: dict[str, Any] = {
            name: column[indices] if isinstance(column, np.ndarray) else column for name, column in vars(self).items()
        }
        return Detections(**columns)


def read_ground_truth(source: "str | Path | dict[str, Any] | CocoFile", iou_type: str, style: str) -> GroundTruth:
    """Read annotations in COCO's or LVIS' format.

    Absent `iscrowd` means 0; where there is no sensible `area`, it is that of the box (iou_type "bbox") or mask ("segm").

    Args:
        source: path of the JSON, its content, or what `read_coco_file` made of it, with segmentations for "segm".
        iou_type: "bbox" or "segm".
        style: "coco" or "lvis"; LVIS' additional keys are required by the latter and not used by the former.

    Raises:
        FileNotFoundError: `source` is no file.
        ValueError: one sentence about what is wrong and where.
    """
    with_masks = iou_type == "segm"
    file = (
        source
        if isinstance(source, CocoFile)
        else read_coco_file(source, segmentations=with_masks, what="ground truth")
    )
    if with_masks and any(fault.kind == "no segmentation" for fault in file.faults):
        raise ValueError(f"{file.source} has objects without masks: compare boxes, by --iou-type bbox.")
    file.require("mask_evaluation" if with_masks else "evaluation")
    if style == "lvis" and (file.images.federated is None or not {"r", "c", "f"}.issuperset(file.frequencies)):
        raise ValueError(
            f'{file.source} is no LVIS file: its images need "neg_category_ids" and "not_exhaustive_category_ids", its '
            'categories a "frequency" of r, c or f. Other files are evaluated by --style coco.'
        )
    images, objects = file.images, file.annotations
    order = sorted(range(len(images)), key=lambda n: sort_key(images.ids[n]))
    rank = np.empty(len(order), dtype=np.int64)
    rank[order] = np.arange(len(order))
    masks = mask_areas = None
    areas = objects.boxes[:, 2] * objects.boxes[:, 3]
    if with_masks:
        assert objects.segmentations is not None
        masks, mask_areas = encode_segmentations(
            objects.segmentations, images.heights[objects.image], images.widths[objects.image]
        )
        areas = mask_areas.astype(np.float64)
    federated = images.federated if style == "lvis" and images.federated else [Federated([], [])] * len(images)
    return GroundTruth(
        image=rank[objects.image],
        category=objects.category,
        areas=np.where(objects.has_area(), objects.areas, areas),
        boxes=None if with_masks else objects.boxes,
        mask_areas=mask_areas,
        masks=masks,  # type: ignore[arg-type]
        images=[ImageInfo(images.ids[n], int(images.heights[n]), int(images.widths[n])) for n in order],
        categories=[CategoryInfo(c.id, c.name, f) for c, f in zip(file.categories, file.frequencies, strict=True)],
        crowd=objects.crowd,
        absent=[federated[n].absent for n in order],
        incomplete=[federated[n].incomplete for n in order],
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
    shapes = [MASK, ("bbox", Box | None, None)] if with_masks else [BOX]
    content, origin = _content(source, "detections")
    rows = _rows(content, [*PLACE, ("score", float), *shapes], "detections", origin)
    del content
    scores = np.fromiter([row.score for row in rows], np.float64, len(rows))
    _refuse(rows, "detections", ~((scores >= 0) & (scores <= 1)), "have a score outside 0..1")
    with_boxes = not with_masks or (len(rows) > 0 and rows[0].bbox is not None)
    instances = _instances(rows, ground_truth.images, ground_truth.categories, "detections", with_boxes, with_masks)
    return Detections(**vars(instances), scores=scores)


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
        path = Path(source)
        if not path.is_file():
            raise FileNotFoundError(f"There is no {what} file {path}.")
        with path.open("rb") as file:  # an empty one cannot be mapped
            content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if path.stat().st_size else b""
        return content, f"{what} file {path}"

    def plain(value: Any) -> Any:
        if isinstance(value, bytes):
            return value.decode("ascii")
        if isinstance(value, np.ndarray | np.generic):
            return value.tolist()
        raise ValueError(f"objects of type {type(value).__name__}")

    try:
        return json.dumps(source, default=plain).encode(), what
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"The {what} hold something that has no place in JSON: {error}.") from None


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


def _instances(
    rows: Sequence[Any], images: list[Any], categories: list[Any], what: str, with_boxes: bool, with_masks: bool
) -> Instances:
    """Columns of annotations or detections; boxes and areas are those of `bbox` if `with_boxes`, or of the masks."""

    def positions(key: str, owners: Sequence[Any]) -> np.ndarray:
        position = {owner.id: i for i, owner in enumerate(owners)}
        values = list(map(operator.attrgetter(key), rows))
        found = np.fromiter(map(position.get, values, itertools.repeat(-1)), np.int64, len(rows))
        unknown = list(dict.fromkeys(values[i] for i in np.flatnonzero(found < 0)))
        names = ", ".join(map(reprlib.repr, unknown[:5])) + (", ..." if len(unknown) > 5 else "")
        _refuse(rows, what, found < 0, f"have an unknown {key}: {names}")
        return found

    image, category = positions("image_id", images), positions("category_id", categories)
    boxes = mask_areas = masks = None
    if with_masks:
        masks, mask_areas = _masks(rows, what, image, [(owner.height, owner.width) for owner in images])
        areas = mask_areas.astype(np.float64)
    if with_boxes:
        values = [row.bbox for row in rows]
        _refuse(rows, what, [value is None for value in values], "have no 'bbox'")
        boxes = np.fromiter(itertools.chain.from_iterable(values), np.float64, 4 * len(rows)).reshape(-1, 4)
        _refuse(rows, what, ~(abs(boxes) < MAX_COORDINATE).all(axis=1), "have a bbox that is not four sensible numbers")
        _refuse(rows, what, (boxes[:, 2:] < 0).any(axis=1), "have a bbox of negative width or height")
        areas = boxes[:, 2] * boxes[:, 3]
    return Instances(image, category, areas, boxes, mask_areas, masks)


def _masks(
    rows: Sequence[Any], what: str, image: np.ndarray, image_sizes: list[tuple[int, int]]
) -> tuple[list[str | bytes], np.ndarray]:
    """`segmentation` of all rows as compressed runs, and their areas; `image_sizes` are (height, width)."""
    masks: list[Any] = []
    wrong, uncompressed, polygonal = np.zeros(len(rows), dtype=bool), [], []
    for n, (row, i) in enumerate(zip(rows, image.tolist(), strict=True)):  # once, as the rows lie all over the memory
        mask = row.segmentation
        if type(mask) is Rle:
            masks.append(mask.counts)
            if mask.size != image_sizes[i]:
                wrong[n] = True
            if type(mask.counts) is list:
                uncompressed.append(n)
        else:
            masks.append(None)
            polygonal.append(n)
    _refuse(rows, what, wrong, "have a mask of another size than their image's height and width")
    # pycocotools never returns from some RLE whose runs do not fill the image.
    areas = rle_areas(masks, np.array(image_sizes).reshape(-1, 2).prod(axis=1)[image])
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
