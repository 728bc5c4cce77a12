"""The COCO annotation file: what it must hold, and every way in which it can fail to."""

import json
import reprlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pycocotools import mask as coco_mask

from . import lvis

MIN_IMAGE_SIDE = 32
"""Training leaves out images with a shorter side, in pixels, as the published code does."""

Consequence = Literal["fatal", "dropped", "kept"]


@dataclass(frozen=True)
class Category:
    """A class as the annotation file names it; its label is its position in the order of the ids."""

    id: int
    name: str


@dataclass(frozen=True)
class Fault:
    """One thing that is wrong with a data set.

    Attributes:
        kind: what is wrong, the same words for the same fault.
        where: the annotation, image, category or section that has it.
        message: the particulars.
        consequence: `fatal`: training refuses the data; `dropped`: training leaves out the object or the image;
            `kept`: training goes on with it as it is.
    """

    kind: str
    where: str
    message: str
    consequence: Consequence


@dataclass
class AnnotationFile:
    """The usable entries of an annotation file, and its faults.

    Attributes:
        path: the file.
        categories: in the order of their ids.
        images: well-formed images by id, in the order of the file.
        annotations: well-formed annotations of known images and categories, in the order of the file.
        faults: everything else.
    """

    path: Path
    categories: list[Category] = field(default_factory=list)
    images: dict[int, dict[str, Any]] = field(default_factory=dict)
    annotations: list[dict[str, Any]] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)

    def fault(self, kind: str, where: str, message: str, consequence: Consequence = "fatal") -> None:
        """Adds a fault."""
        self.faults.append(Fault(kind, where, message, consequence))

    def require_usable(self) -> None:
        """Raises ValueError that names the first fatal faults, if there are any."""
        fatal = [fault for fault in self.faults if fault.consequence == "fatal"]
        if fatal:
            first = "; ".join(f"{fault.where} {fault.message}" for fault in fatal[:3])
            rest = f"; and {len(fatal) - 3} more faults, which `ranksort check-data` lists" if len(fatal) > 3 else ""
            raise ValueError(f"{self.path} cannot be used: {first}{rest}.")


def parse_annotations(path: Path, masks: bool | None = None) -> AnnotationFile:
    """Reads and checks a COCO annotation file; nothing in it makes this function raise.

    Args:
        path: the JSON file.
        masks: whether every object needs a good segmentation; None: if any object of the file has one.

    Raises:
        FileNotFoundError: there is no such file.
    """
    if not path.is_file():
        raise FileNotFoundError(f"The annotation file {path} does not exist.")
    file = AnnotationFile(path)
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        file.fault("not JSON", "it", f"is not valid JSON, perhaps truncated ({error})")
        return file
    content = content if isinstance(content, dict) else {}
    for name in ("categories", "images", "annotations"):
        if not isinstance(content.get(name), list) or not (content[name] or name == "annotations"):
            file.fault("missing section", f'"{name}"', "is missing, empty or not a list")
    if file.faults:
        return file

    categories = _well_formed("category", content["categories"], file)
    file.categories = [Category(id, categories[id]["name"]) for id in sorted(categories)]
    file.images = _well_formed("image", content["images"], file)
    for id, image in file.images.items():
        if problem := lvis.image_problem(image, categories.keys()):
            file.fault("malformed image", f"image {id}", problem)
        if min(image["width"], image["height"]) < MIN_IMAGE_SIDE:
            message = f"has a side under {MIN_IMAGE_SIDE} px ({_size(image)})"
            file.fault("small image", f"image {id}", message, "dropped")
    for id, annotation in _well_formed("annotation", content["annotations"], file).items():
        owners = {"image": file.images, "category": categories}
        unknown = {name: annotation[f"{name}_id"] for name in owners if annotation[f"{name}_id"] not in owners[name]}
        for name, owner in unknown.items():
            file.fault(f"unknown {name}", f"annotation {id}", f"names the unknown {name} {owner}")
        if not unknown:
            file.annotations.append(annotation)
    if masks is None:
        masks = any(annotation.get("segmentation") for annotation in objects(file.annotations))
    for annotation in file.annotations:
        _check_annotation(annotation, masks, file)
    return file


def objects(annotations: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """The annotations that are single objects, not crowd regions."""
    return [annotation for annotation in annotations if not annotation.get("iscrowd")]


def box_problem(annotation: dict[str, Any], image: dict[str, Any], min_size: float = 1.0) -> tuple[str, str] | None:
    """Why training drops an object, as the published code decides it on the unclipped box.

    Args:
        annotation: well-formed; `bbox` [x, y, width, height] in pixels.
        image: its image.
        min_size: the least width and height that are kept, in pixels.

    Returns:
        The kind of the fault and the particulars; None: training keeps the object.
    """
    x, y, width, height = annotation["bbox"]
    if width <= 0 or height <= 0 or annotation.get("area", 1) <= 0:
        area = annotation.get("area", "not given")
        return "box without area", f"has no area (bbox {annotation['bbox']}, area {area})"
    if min(x + width, image["width"]) <= max(x, 0) or min(y + height, image["height"]) <= max(y, 0):
        return "box outside the image", f"lies outside its {_size(image)} image (bbox {annotation['bbox']})"
    if width < min_size or height < min_size:
        return "small box", f"is smaller than {min_size:g} px (bbox {annotation['bbox']})"
    return None


def decode_mask(segmentation: Any, height: int, width: int) -> np.ndarray:
    """Decodes polygons, an uncompressed or a compressed RLE, checked by `parse_annotations`.

    Returns:
        uint8 [height, width], 1 inside the object; the same as pycocotools' `annToMask`.
    """
    if isinstance(segmentation, list):
        # A polygon of one or two points has no area, and pycocotools would read one of two points as a box.
        polygons = [polygon for polygon in segmentation if len(polygon) >= 6]
        segmentation = coco_mask.merge(coco_mask.frPyObjects(polygons, height, width))
    elif isinstance(segmentation["counts"], list):
        segmentation = coco_mask.frPyObjects(segmentation, height, width)
    return coco_mask.decode(segmentation)


def is_number(value: Any, limit: float = 1e12) -> bool:
    """Whether a value of the JSON is a number of sensible size; rules out NaN, infinity and booleans."""
    return type(value) in (int, float) and -limit < value < limit


_ID = (lambda value: type(value) is int, "an integer")
_SIDE = (lambda value: type(value) is int and 0 < value < 1e6, "a positive integer under a million")
_BOX = (
    lambda value: isinstance(value, list) and len(value) == 4 and all(map(is_number, value)),
    "four finite numbers [x, y, width, height]",
)
_FIELDS: dict[str, dict[str, tuple[Callable[[Any], bool], str]]] = {
    "category": {"name": (lambda value: isinstance(value, str), "a string")},
    "image": {
        "file_name": (lambda value: isinstance(value, str) and value != "", "a string"),
        "width": _SIDE,
        "height": _SIDE,
    },
    "annotation": {"image_id": _ID, "category_id": _ID, "bbox": _BOX, "area": (is_number, "a finite number")},
}
"""Without which an entry is of no use: how each field is tested, and what it must be."""


def _well_formed(name: str, entries: list[Any], file: AnnotationFile) -> dict[int, dict[str, Any]]:
    """The entries of a section by id; those without the necessary fields, or with an id used before, become faults."""
    kept: dict[int, dict[str, Any]] = {}
    for position, entry in enumerate(entries, 1):
        if not isinstance(entry, dict) or type(entry.get("id")) is not int:
            where = f"{name} number {position} of the list"
            file.fault(f"malformed {name}", where, 'is not an object with an integer "id"')
            continue
        where = f"{name} {entry['id']}"
        if name == "image":
            entry["file_name"] = lvis.file_name(entry)
        given = {"area": 0, **entry}  # without it, evaluation takes that of the box
        bad = [key for key, (is_good, _) in _FIELDS[name].items() if not is_good(given.get(key))]
        if entry["id"] in kept:
            file.fault(f"duplicate {name} id", where, "has the same id as an earlier one")
        elif bad:
            must = f'"{bad[0]}" must be {_FIELDS[name][bad[0]][1]}, not {reprlib.repr(entry.get(bad[0]))}'
            file.fault(f"malformed {name}", where, must)
        else:
            kept[entry["id"]] = entry
    return kept


def _check_annotation(annotation: dict[str, Any], masks: bool, file: AnnotationFile) -> None:
    """Adds the faults of a well-formed annotation."""
    where, crowd = f"annotation {annotation['id']}", bool(annotation.get("iscrowd"))
    image = file.images[annotation["image_id"]]
    x, y, width, height = annotation["bbox"]
    if problem := None if crowd else box_problem(annotation, image):
        file.fault(problem[0], where, problem[1], "dropped")
    # Sub-pixel overshoots come from rounding and are everywhere, in COCO too.
    elif min(x, y) < -1 or x + width > image["width"] + 1 or y + height > image["height"] + 1:
        message = f"reaches out of its {_size(image)} image and is clipped (bbox {annotation['bbox']})"
        file.fault("box partly outside the image", where, message, "kept")
    if "area" not in annotation:
        file.fault("no area given", where, 'has no "area", which evaluation by object size needs', "kept")
    if masks and (bad_mask := _segmentation_problem(annotation.get("segmentation"), image)):
        # Crowd regions are not trained on.
        file.fault("bad segmentation", where, bad_mask, "kept" if crowd else "fatal")


def _segmentation_problem(segmentation: Any, image: dict[str, Any]) -> str | None:
    if not segmentation:
        return "has a box only and no segmentation, which masks need"
    if isinstance(segmentation, list):
        # pycocotools needs memory in proportion to the coordinates.
        if not all(isinstance(p, list) and len(p) % 2 == 0 and all(is_number(v, 1e6) for v in p) for p in segmentation):
            return "has a polygon that is no list of finite x, y pairs"
        return None if any(len(p) >= 6 for p in segmentation) else "has no polygon with three points"
    if not isinstance(segmentation, dict) or segmentation.get("size") != [image["height"], image["width"]]:
        return f"is neither polygons nor an RLE of the size of its {_size(image)} image"
    if rle_areas([segmentation.get("counts")], np.array([image["height"] * image["width"]]))[0] < 0:
        return f"has a broken RLE, whose runs do not fill its {_size(image)} image"
    return None


def rle_areas(counts: Sequence[Any], pixels: np.ndarray) -> np.ndarray:
    """Areas of masks; -1 where the runs do not fill the image: pycocotools crashes on such RLEs, or never returns.

    In COCO's compressed form a run is a number in base 32, lowest digit first, a character a digit (48 + digit); bit 5
    of a digit says that more follow, bit 4 of the last one is the sign. From the fourth on, a run is given as the
    difference to the run before the last.

    Args:
        counts: N compressed RLEs, strings, or lists of the lengths of runs.
        pixels: [N] height times width of their images.

    Returns:
        int64 [N] pixels.
    """
    areas = np.full(len(counts), -1)
    for start in range(0, len(counts), 1000):  # as many as fit into the processor's cache
        chunk = slice(start, start + 1000)
        texts = [runs if type(runs) is str and runs and runs.isascii() else "~" for runs in counts[chunk]]
        areas[chunk] = _compressed_areas(texts, pixels[chunk])
    for n in np.flatnonzero(areas < 0).tolist():
        runs = counts[n]
        if type(runs) is list and all(type(run) is int and run >= 0 for run in runs) and sum(runs) == pixels[n]:
            areas[n] = sum(runs[1::2])
    return areas


def _compressed_areas(counts: list[str], pixels: np.ndarray) -> np.ndarray:
    """`rle_areas` of ASCII strings, all of them at the same time."""
    # A zero after each string makes its number of runs even where it was odd, and is left out elsewhere.
    digits = np.frombuffer(("0".join(counts) + "0").encode(), np.uint8) - np.uint8(48)  # wraps around below
    zeros = np.cumsum(np.fromiter(map(len, counts), np.int64, len(counts)) + 1) - 1
    begins = np.append(0, zeros[:-1] + 1)
    bad = (np.maximum.reduceat(digits, begins) > 63) | (digits[zeros - 1] > 31)
    digits[zeros - 1] &= 31
    is_end = digits < 32
    num_runs = np.add.reduceat(is_end.view(np.uint8), begins, dtype=np.int64) - 1
    values = _run_values(digits, is_end, zeros, bad)
    is_odd = num_runs % 2 == 1
    is_end[zeros] = is_odd
    pairs = values[is_end].reshape(-1, 2)  # of background and object
    num_pairs = (num_runs + 1) // 2
    starts = np.cumsum(num_pairs) - num_pairs
    first = pairs[starts, 0]
    pairs[starts, 0] = 0  # no other run is given as a difference to the first one
    background, areas = _sums_of_runs(pairs, starts, is_odd, bad)
    bad |= (first < 0) | (first + background + areas != pixels)
    return np.where(bad, -1, areas)


def _run_values(digits: np.ndarray, is_end: np.ndarray, zeros: np.ndarray, bad: np.ndarray) -> np.ndarray:
    """int32: at the last digit of each run what it says; marks in `bad` the strings with runs of too many digits."""
    low = digits & 31
    signed = (low ^ 16).view(np.int8) - np.int8(16)  # the highest digit has the sign
    follows = ~is_end[:-1]  # a digit of the same run
    values = signed.astype(np.int32)
    two = signed[1:].astype(np.int16)
    values[1:] += follows * (two * np.int16(31) + low[:-1])  # 32 times the second digit instead of once
    ends = np.flatnonzero(is_end[2:] & follows[1:] & follows[:-1]) + 2  # of runs of three digits or more
    for position in range(2, 6):
        values[ends] = values[ends] * 32 + low[ends - position]
        ends = ends[~is_end[ends - position - 1]]
    bad[np.searchsorted(zeros, ends)] = True
    return values


def _sums_of_runs(
    pairs: np.ndarray, starts: np.ndarray, is_odd: np.ndarray, bad: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Sums of the background and the object runs of N masks, int64 [N] each.

    Args:
        pairs: int32 [P, 2] differences between the runs, of background and object, less than 2^30.
        starts: [N] the first pairs of the masks.
        is_odd: [N] whether the last object run does not exist.
        bad: [N], marked where a run is negative.
    """
    num_pairs = np.diff(starts, append=len(pairs))
    lasts = starts + num_pairs - 1
    # Both runs in one number, the object's in its upper half: as long as none is negative, neither disturbs the other.
    runs = np.cumsum((pairs[:, 1].astype(np.int64) << 32) + pairs[:, 0])
    runs -= np.repeat(np.append(0, runs[lasts[:-1]]), num_pairs)
    background, objects = runs.astype("<i8", copy=False).view("<i4").reshape(-1, 2).T
    bad |= np.minimum.reduceat(np.minimum(background, objects), starts) < 0
    objects[lasts[is_odd]] = 0
    return np.add.reduceat(background, starts, dtype=np.int64), np.add.reduceat(objects, starts, dtype=np.int64)


def _size(image: dict[str, Any]) -> str:
    return f"{image['width']}x{image['height']}"
