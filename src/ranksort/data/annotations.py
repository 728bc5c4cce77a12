"""The COCO annotation file: what it must hold, and every way in which it can fail to."""

import json
import reprlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pycocotools import mask as coco_mask

from . import lvis

MIN_IMAGE_SIDE = 32
"""Training leaves out images with a shorter side, in pixels, as the published code does."""


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
    consequence: Literal["fatal", "dropped", "kept"]


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
        file.faults.append(Fault("not JSON", "it", f"is not valid JSON, perhaps truncated ({error})", "fatal"))
        return file

    sections: dict[str, list[Any]] = {}
    for name in ("categories", "images", "annotations"):
        entries = content.get(name) if isinstance(content, dict) else None
        if isinstance(entries, list) and (entries or name == "annotations"):
            sections[name] = entries
        else:
            file.faults.append(Fault("missing section", f'"{name}"', "is missing, empty or not a list", "fatal"))
    if file.faults:
        return file

    categories = _well_formed("category", sections["categories"], _category_problem, file.faults)
    file.categories = [Category(id, categories[id]["name"]) for id in sorted(categories)]
    file.images = _well_formed("image", sections["images"], _image_problem, file.faults)
    for image in file.images.values():
        image["file_name"] = lvis.file_name(image)
        if problem := lvis.image_problem(image, categories.keys()):
            file.faults.append(Fault("malformed image", f"image {image['id']}", problem, "fatal"))
        if min(image["width"], image["height"]) < MIN_IMAGE_SIDE:
            message = f"has a side under {MIN_IMAGE_SIDE} px ({image['width']}x{image['height']})"
            file.faults.append(Fault("small image", f"image {image['id']}", message, "dropped"))

    for annotation in _well_formed("annotation", sections["annotations"], _annotation_problem, file.faults).values():
        where = f"annotation {annotation['id']}"
        known = True
        for name, known_ids in (("image", file.images.keys()), ("category", categories.keys())):
            if annotation[f"{name}_id"] not in known_ids:
                message = f"names the unknown {name} {annotation[f'{name}_id']}"
                file.faults.append(Fault(f"unknown {name}", where, message, "fatal"))
                known = False
        if known:
            file.annotations.append(annotation)
    if masks is None:
        masks = any(annotation.get("segmentation") for annotation in objects(file.annotations))
    for annotation in file.annotations:
        file.faults.extend(_annotation_faults(annotation, file.images[annotation["image_id"]], masks))
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
        rle = coco_mask.merge(coco_mask.frPyObjects(polygons, height, width))
    elif isinstance(segmentation["counts"], list):
        rle = coco_mask.frPyObjects(segmentation, height, width)
    else:
        rle = segmentation
    return coco_mask.decode(rle)


def _well_formed(
    name: str, entries: list[Any], problem_of: Callable[[dict[str, Any]], str | None], faults: list[Fault]
) -> dict[int, dict[str, Any]]:
    """The entries of a section by id; those without the necessary fields, or with an id used before, become faults."""
    kept: dict[int, dict[str, Any]] = {}
    for position, entry in enumerate(entries):
        if not isinstance(entry, dict) or type(entry.get("id")) is not int:
            message = 'is not an object with an integer "id"'
            faults.append(Fault(f"malformed {name}", f"{name} number {position + 1} of the list", message, "fatal"))
        elif entry["id"] in kept:
            message = "has the same id as an earlier one"
            faults.append(Fault(f"duplicate {name} id", f"{name} {entry['id']}", message, "fatal"))
        elif problem := problem_of(entry):
            faults.append(Fault(f"malformed {name}", f"{name} {entry['id']}", problem, "fatal"))
        else:
            kept[entry["id"]] = entry
    return kept


def _category_problem(category: dict[str, Any]) -> str | None:
    return None if isinstance(category.get("name"), str) else 'has no "name"'


def _image_problem(image: dict[str, Any]) -> str | None:
    name = lvis.file_name(image)
    if not isinstance(name, str) or not name:
        return 'has no "file_name"'
    for side in ("width", "height"):
        if type(image.get(side)) is not int or not 0 < image[side] < 1e6:
            return f'"{side}" must be a positive integer under a million, not {reprlib.repr(image.get(side))}'
    return None


def _annotation_problem(annotation: dict[str, Any]) -> str | None:
    for key in ("image_id", "category_id"):
        if type(annotation.get(key)) is not int:
            return f'has no integer "{key}"'
    box = annotation.get("bbox")
    if not isinstance(box, list) or len(box) != 4 or not all(map(is_number, box)):
        return f'"bbox" must be four finite numbers [x, y, width, height], not {reprlib.repr(box)}'
    if "area" in annotation and not is_number(annotation["area"]):
        return f'"area" must be a finite number, not {reprlib.repr(annotation["area"])}'
    return None


def _annotation_faults(annotation: dict[str, Any], image: dict[str, Any], masks: bool) -> list[Fault]:
    """The faults of a well-formed annotation."""
    where, crowd = f"annotation {annotation['id']}", bool(annotation.get("iscrowd"))
    faults = []
    x, y, width, height = annotation["bbox"]
    problem = None if crowd else box_problem(annotation, image)
    if problem:
        kind, message = problem
        faults.append(Fault(kind, where, message, "dropped"))
    # Sub-pixel overshoots come from rounding and are everywhere, in COCO too.
    elif min(x, y) < -1 or x + width > image["width"] + 1 or y + height > image["height"] + 1:
        message = f"reaches out of its {_size(image)} image and is clipped (bbox {annotation['bbox']})"
        faults.append(Fault("box partly outside the image", where, message, "kept"))
    if "area" not in annotation:
        message = 'has no "area", which evaluation by object size needs'
        faults.append(Fault("no area given", where, message, "kept"))
    bad_mask = _segmentation_problem(annotation.get("segmentation"), image) if masks else None
    if bad_mask:
        # Crowd regions are not trained on.
        faults.append(Fault("bad segmentation", where, bad_mask, "kept" if crowd else "fatal"))
    return faults


def _segmentation_problem(segmentation: Any, image: dict[str, Any]) -> str | None:
    if not segmentation:
        return "has a box only and no segmentation, which masks need"
    if isinstance(segmentation, list):
        if not all(map(_is_polygon, segmentation)):
            return "has a polygon that is no list of finite x, y pairs"
        if not any(len(polygon) >= 6 for polygon in segmentation):
            return "has no polygon with three points"
        return None
    if not isinstance(segmentation, dict) or segmentation.get("size") != [image["height"], image["width"]]:
        return f"is neither polygons nor an RLE of the size of its {_size(image)} image"
    # pycocotools fills what too short an RLE leaves over with whatever is in memory.
    runs = run_lengths(segmentation.get("counts"))
    if runs is None or (runs < 0).any() or runs.sum() != image["height"] * image["width"]:
        return f"has a broken RLE, whose runs do not fill its {_size(image)} image"
    return None


def run_lengths(counts: Any) -> np.ndarray | None:
    """The runs of an RLE, float64 [R]; None: `counts` is no RLE.

    In COCO's compressed form a run is a number in base 32, lowest digit first, a character a digit (48 + digit); bit 5
    of a digit says that more follow, bit 4 of the last one is the sign. From the fourth on, a run is given as the
    difference to the run before the last.
    """
    if isinstance(counts, list):
        return np.array(counts, dtype=float) if all(type(run) is int and 0 <= run < 2**32 for run in counts) else None
    if isinstance(counts, bytes):
        counts = counts.decode("ascii", "replace")
    if not isinstance(counts, str) or not counts.isascii() or not counts:
        return None
    digits = np.frombuffer(counts.encode(), dtype=np.uint8).astype(np.int64) - 48
    is_last = (digits & 32) == 0
    if digits.min() < 0 or digits.max() > 63 or not is_last[-1]:
        return None
    ends = np.flatnonzero(is_last) + 1
    starts = np.concatenate(([0], ends[:-1]))
    exponents = np.arange(len(digits)) - np.repeat(starts, ends - starts)
    if exponents.max() > 6:
        return None
    runs = np.add.reduceat((digits & 31) * 32.0**exponents, starts)
    runs -= np.where(digits[ends - 1] & 16, 32.0 ** (ends - starts), 0.0)
    runs[1::2] = runs[1::2].cumsum()
    runs[2::2] = runs[2::2].cumsum()
    return runs


def _is_polygon(polygon: Any) -> bool:
    # pycocotools needs memory in proportion to the coordinates.
    return isinstance(polygon, list) and len(polygon) % 2 == 0 and all(is_number(v, 1e6) for v in polygon)


def is_number(value: Any, limit: float = 1e12) -> bool:
    """Whether a value of the JSON is a number of sensible size; rules out NaN, infinity and booleans."""
    return type(value) in (int, float) and -limit < value < limit


def _size(image: dict[str, Any]) -> str:
    return f"{image['width']}x{image['height']}"
