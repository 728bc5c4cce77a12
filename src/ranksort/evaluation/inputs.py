"""Ground truth and detections as columns, for the evaluation; input that could not be evaluated correctly is refused."""

import itertools
import operator
import reprlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import msgspec
import numpy as np

from ..data.coco_columns import MAX_AREA, CocoFile, Federated
from ..data.coco_file import read_coco_file
from ..data.coco_rows import MAX_COORDINATE, Repair
from ..data.ids import Id, IdIndex, canonical, sort_key
from ..data.json_source import JsonSource, decode_rows, in_memory, no_garbage_collection
from ..data.segmentations import Packed, compress, encode_polygons, encode_segmentations, rle_areas
from ..words import listed

Box = tuple[float, float, float, float]  # x, y, width, height in pixels
Pixels = Annotated[int, msgspec.Meta(ge=1, le=1_000_000)]


class ImageInfo(NamedTuple):
    """An image: its id, and its sides in pixels, 0 if unknown."""

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
    """N objects or detections in columns; `image` and `category` are positions among the sorted ids."""

    image: np.ndarray  # (N,) int32
    category: np.ndarray  # (N,) int32
    areas: np.ndarray  # (N,) pixels
    boxes: np.ndarray | None  # (N, 4) x, y, width, height in pixels; always in the order of the file, like the masks
    mask_areas: np.ndarray | None  # (N,) pixels
    masks: Packed | None  # compressed runs of masks as large as the image


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
    left_out: dict[Any, int] = field(default_factory=dict)  # ids of categories that the truth lacks: how many had them
    calibrated: set[str] = field(default_factory=set)  # the marks `result_rows.CALIBRATED` in their rows

    def select(self, indices: np.ndarray) -> "Detections":
        """The detections at `indices`, in that order; boxes and masks stay in their places."""
        names = ("image", "category", "areas", "scores")
        return replace(self, **{name: getattr(self, name)[indices] for name in names})


def open_ground_truth(source: "str | Path | dict[str, Any] | CocoFile", iou_type: str) -> CocoFile:
    """Read the file for `read_ground_truth`, unless it has been read."""
    if isinstance(source, CocoFile):
        return source
    return read_coco_file(source, segmentations=iou_type == "segm", pixels=False, what="ground truth")


def read_ground_truth(source: "str | Path | dict[str, Any] | CocoFile", iou_type: str, style: str) -> GroundTruth:
    """Read annotations in COCO's or LVIS' format.

    Missing `iscrowd` means 0. If there is no valid `area`, that of the box (iou_type "bbox") or mask ("segm") is used, clipped to
    0..`MAX_AREA`, so that every object except crowds counts.

    Args:
        source: path of the JSON, its parsed contents, or the result of `read_coco_file`, with segmentations for "segm".
        iou_type: "bbox" or "segm".
        style: "coco" or "lvis"; the additional keys of LVIS are required for "lvis" and not used for "coco".

    Raises:
        FileNotFoundError: `source` is not a file.
        ValueError: the input is wrong; one sentence says what and where.
    """
    with_masks = iou_type == "segm"
    file = open_ground_truth(source, iou_type)
    if with_masks and any(fault.kind == "no segmentation" for fault in file.faults):
        raise ValueError(f"{file.source} has objects without masks: compare boxes with --iou-type bbox.")
    file.require("mask_evaluation" if with_masks else "evaluation")
    if style == "lvis" and (file.images.federated is None or not {"r", "c", "f"}.issuperset(file.frequencies)):
        raise ValueError(
            f'{file.source} is not an LVIS file: its images need "neg_category_ids" and "not_exhaustive_category_ids", its '
            'categories a "frequency" of r, c or f. Evaluate other files with --style coco.'
        )
    images, objects = file.images, file.annotations
    order = sorted(range(len(images)), key=lambda n: sort_key(images.ids[n]))
    rank = np.empty(len(order), dtype=np.int64)
    rank[order] = np.arange(len(order))
    masks = mask_areas = None
    areas = objects.boxes[:, 2] * objects.boxes[:, 3]
    if with_masks:
        if objects.segmentations is None or objects.mask_areas is None:
            raise ValueError(
                f"{file.source} was read without segmentations: to compare masks, read it with them, or pass its path."
            )
        masks, mask_areas = encode_segmentations(
            objects.segmentations, images.heights[objects.image], images.widths[objects.image], objects.mask_areas
        )
        areas = mask_areas.astype(np.float64)
    federated = images.federated if style == "lvis" and images.federated else [Federated([], [])] * len(images)
    return GroundTruth(
        image=rank[objects.image].astype(np.int32),
        category=objects.category.astype(np.int32),
        areas=np.where(objects.has_area(), objects.areas, areas.clip(0, MAX_AREA)),
        boxes=None if with_masks else objects.boxes,
        mask_areas=mask_areas,
        masks=masks,
        images=[ImageInfo(images.ids[n], int(images.heights[n]), int(images.widths[n])) for n in order],
        categories=[CategoryInfo(c.id, c.name, f) for c, f in zip(file.categories, file.frequencies, strict=True)],
        crowd=objects.crowd,
        absent=[federated[n].absent for n in order],
        incomplete=[federated[n].incomplete for n in order],
    )


class _Rle(msgspec.Struct, gc=False):
    """A mask as run lengths, down the columns, alternating between background and object."""

    size: tuple[Pixels, Pixels]  # height, width
    counts: str | list[int]  # a string: compressed


class _Row(msgspec.Struct, gc=False):
    """A well-formed detection, which is decoded fast. `Repair` converts others; missing and malformed fields become None."""

    image_id: int = None  # type: ignore[assignment]
    category_id: int = None  # type: ignore[assignment]
    score: float = None  # type: ignore[assignment]
    bbox: Box = None  # type: ignore[assignment]
    calibrated: Any = None


class _MaskRow(_Row, gc=False):
    segmentation: _Rle | list[list[float]] = None  # type: ignore[assignment]


def read_detections(source: str | Path | list[dict[str, Any]], ground_truth: GroundTruth, iou_type: str) -> Detections:
    """Read detections in COCO's results format.

    The area of a detection is that of its box if the first detection has one, also for "segm", as in pycocotools. Detections of
    categories that are not in the ground truth are left out, and their number is recorded.

    Args:
        source: path of the JSON, or its parsed contents: a list of objects with `image_id`, `category_id`, `score` and `bbox`
            ([x, y, width, height] in pixels) or, for "segm", `segmentation` (RLE). An empty list is valid.
        ground_truth: the objects that the detections will be compared with.
        iou_type: "bbox" or "segm".

    Raises:
        FileNotFoundError: `source` is not a file.
        ValueError: the input is wrong; one sentence says what and where.
    """
    with in_memory(source, "detections", "keep fewer per image, for example the 100 best"), no_garbage_collection():
        return _Reader(ground_truth, iou_type == "segm").read(source)


class _Reader:
    """Convert detections to columns, part by part, and count what is wrong with them."""

    def __init__(self, ground_truth: GroundTruth, with_masks: bool) -> None:
        self.with_masks, self.with_boxes = with_masks, not with_masks
        self.ids = [image.id for image in ground_truth.images]
        self.images = IdIndex(self.ids)
        self.categories = IdIndex([category.id for category in ground_truth.categories])
        self.sizes = [(image.height, image.width) for image in ground_truth.images]
        self.pixels = np.array(self.sizes, dtype=np.int64).reshape(-1, 2).prod(axis=1)
        self.repair = Repair()
        self.wrong: dict[str, list[int]] = {}  # positions by problem
        self.unknown: list[Any] = []  # image ids
        self.left_out: dict[Any, int] = {}
        self.calibrated: set[str] = set()
        self.highest = 0.0  # score

    def read(self, source: Any) -> Detections:
        opened = JsonSource.open(source, "list of detections")
        kind: type[Any] = _MaskRow if self.with_masks else _Row
        convert = self.repair.rows(kind, segmentation=_segmentation, calibrated=str)
        is_list = bytes(opened.content[:1000]).lstrip()[:1] == b"["
        content = opened.content if is_list else opened.parse()
        if not is_list and not isinstance(content, list):
            raise ValueError(f"The {opened.name} must be a JSON list of objects, as COCO's results are.")
        parts: list[Detections] = []
        first = 0
        try:
            for rows in decode_rows(content, kind, convert, release=opened.release):
                if first == 0 and self.with_masks and rows:
                    # As for pycocotools, [] is no box.
                    self.with_boxes = rows[0].bbox is not None or self.repair.found.get((1, "bbox"), "[]") != "[]"
                parts.append(self.columns(rows, first))
                first += len(rows)
                self.repair.number = first + 1
        except ValueError as error:
            opened.parse()  # for its clear error message
            raise ValueError(f"The {opened.name} cannot be read: {error}.") from None
        self.refuse(first)
        columns = {name: [vars(part).pop(name) for part in parts] for name in list(vars(parts[0]))}
        columns |= {"left_out": [self.left_out], "calibrated": [self.calibrated]}
        return Detections(**{name: _join(columns.pop(name)) for name in list(columns)})  # whose parts are then freed

    def columns(self, rows: Sequence[Any], first: int) -> Detections:
        """The columns of some rows, the first of which is at this position. They are not used if something is wrong."""
        get = {
            name: list(map(operator.attrgetter(name), rows)) for name in ("image_id", "category_id", "score", "bbox")
        }
        self.calibrated |= {str(row.calibrated) for row in rows if row.calibrated is not None}
        image, category = self.images.find(get["image_id"]), self.categories.find(get["category_id"])
        scores = _floats(get["score"], len(rows))
        bad_scores = ~((scores >= 0) & (scores <= 1))
        if bad_scores.any():
            self.note(np.isnan(scores), first, "score")
            self.note(bad_scores & ~np.isnan(scores), first, "have a score outside 0..1")
            self.highest = max(self.highest, float(np.nanmax(scores, initial=0)))
        for n in np.flatnonzero(image < 0).tolist():
            id = get["image_id"][n]
            self.unknown += [] if id is None else [id]
            self.note([True], first + n, "have no 'image_id'" if id is None else "unknown")
        if (category < 0).any():
            for n in np.flatnonzero(category < 0).tolist():
                id = get["category_id"][n]
                if id is None:
                    self.note([True], first + n, "have no 'category_id'")
                elif canonical(id) is None:
                    self.note([True], first + n, f"have a category_id that is not an integer or string, but {id}")
                else:
                    self.left_out[id] = self.left_out.get(id, 0) + 1
            kept = np.flatnonzero(category >= 0)
            rows = [rows[n] for n in kept.tolist()]
            get["bbox"] = [get["bbox"][n] for n in kept.tolist()]
            image, category, scores = image[kept], category[kept], scores[kept]
        else:
            kept = np.arange(len(rows))
        boxes = mask_areas = masks = None
        areas = np.zeros(0)
        if self.with_masks:
            masks, mask_areas = self.masks(rows, image, first + kept)
            areas = mask_areas.astype(np.float64)
        if self.with_boxes:
            boxes = self.boxes(get["bbox"], first + kept)
            areas = boxes[:, 2] * boxes[:, 3]
        return Detections(image.astype(np.int32), category.astype(np.int32), areas, boxes, mask_areas, masks, scores)

    def boxes(self, values: list[Any], places: np.ndarray) -> np.ndarray:
        try:
            boxes = np.fromiter(itertools.chain.from_iterable(values), np.float64, 4 * len(values)).reshape(-1, 4)
        except TypeError:
            self.note([value is None for value in values], places, "bbox")
            return self.boxes([(0.0,) * 4 if value is None else value for value in values], places)
        sensible, negative = abs(boxes) < MAX_COORDINATE, boxes[:, 2:] < 0
        if not sensible.all() or negative.any():  # finding the rows takes longer
            self.note(~sensible.all(axis=1), places, "have a bbox that is not four finite numbers")
            self.note(negative.any(axis=1), places, "have a bbox of negative width or height")
        return boxes

    def masks(self, rows: Sequence[Any], image: np.ndarray, places: np.ndarray) -> tuple[Packed, np.ndarray]:
        """`segmentation` of all rows as compressed runs, and their areas; `image` (N,) holds the positions of their images."""
        rles = [row.segmentation for row in rows]
        for n in _others(rles, _Rle):
            rles[n] = self.rle(rles[n], self.sizes[image[n]], places[n : n + 1])
        counts: list[Any] = list(map(operator.attrgetter("counts"), rles))
        sizes = list(map(operator.attrgetter("size"), rles))
        expected = list(map(self.sizes.__getitem__, image.tolist()))
        wrong = np.zeros(len(rles), dtype=bool)
        if sizes != expected:  # finding the rows takes longer
            wrong[:] = list(map(operator.ne, sizes, expected))
            self.note(wrong, places, "have a mask whose size is not the height and width of their image")
        # pycocotools never returns for some RLEs whose runs do not fill the image.
        areas = rle_areas(counts, self.pixels[image])
        self.note((areas < 0) & ~wrong, places, "have a broken RLE: its runs do not fill the image")
        for n in _others(counts, str):
            rle = {"size": rles[n].size, "counts": counts[n]}
            counts[n] = compress(rle)["counts"].decode() if areas[n] >= 0 else ""
        return Packed.of(counts), areas

    def rle(self, mask: Any, size: tuple[int, int], place: np.ndarray) -> "_Rle":
        """An RLE in place of polygons or of no segmentation."""
        if mask is None or not any(mask):
            self.note([True], place, "segmentation")
        elif rle := encode_polygons(mask, *size):
            return _Rle(size, rle["counts"].decode())
        else:
            self.note([True], place, "have a polygon that is not at least three points x, y")
        return _Rle(size, [size[0] * size[1]])

    def note(self, wrong: Any, first: "int | np.ndarray", problem: str) -> None:
        """Record the rows marked `wrong`; `first` is the position of the first row, or the positions of all rows."""
        places = np.flatnonzero(wrong)
        if len(places):
            positions = first[places] if isinstance(first, np.ndarray) else first + places
            self.wrong.setdefault(problem, []).extend(positions.tolist())

    def refuse(self, count: int) -> None:
        """Raise ValueError about what is wrong with the `count` rows, with the number and the first few positions."""
        for problem, positions in self.wrong.items():  # the first one is raised
            found, number, hint = self.repair.found, positions[0] + 1, ""
            if (number, "row") in found:
                problem = f"are not objects but values such as {found[number, 'row']}"
            elif problem in ("score", "bbox", "segmentation"):
                needed = {"score": "a number", "bbox": "[x, y, width, height]", "segmentation": "an RLE"}[problem]
                value = found.get((number, problem))
                problem = (
                    f"have no '{problem}'" if value is None else f"have a {problem} that is not {needed}, but {value}"
                )
                if problem == "have no 'bbox'" and len(positions) == count:
                    problem += ": masks are compared with --iou-type segm"
                elif "segmentation" in problem:
                    problem += ": boxes are compared with --iou-type bbox"
            elif problem == "unknown":
                ids = list(dict.fromkeys(self.unknown))
                problem = f"have an unknown image_id: {listed(ids, shown=reprlib.repr)}"
                known = listed(self.ids, 3, shown=reprlib.repr)
                hint = f"; the ground truth has {known}, which `ranksort predict --annotations TRUTH.json` writes in results"
            elif problem == "have a score outside 0..1" and 2 < self.highest <= 100:
                problem += " and look like percentages: divide them by 100"
            raise ValueError(f"{len(positions)} of {count} detections {problem} (position {listed(positions)}){hint}.")


def _floats(values: list[Any], count: int) -> np.ndarray:
    """float64 [count], NaN for None."""
    try:
        return np.fromiter(values, np.float64, count)
    except TypeError:
        return np.array(values, dtype=np.float64)


def _others(values: list[Any], kind: type[Any]) -> list[int]:
    """The positions of values that are not of a type; usually there are none."""
    return [n for n, value in enumerate(values) if type(value) is not kind] if set(map(type, values)) - {kind} else []


def _segmentation(value: Any) -> Any:
    """A decoded segmentation in the form of a row; None if it is neither an RLE nor polygons."""
    try:
        return msgspec.convert(value, _Rle | list[list[float]])
    except (msgspec.ValidationError, OverflowError):
        return None


def _join(parts: list[Any]) -> Any:
    if isinstance(parts[0], np.ndarray):
        return np.concatenate(parts)
    return Packed.joined(parts) if isinstance(parts[0], Packed) else parts[0]
