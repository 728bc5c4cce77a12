"""A COCO or LVIS annotation file as columns, which `coco_file.read_coco_file` fills."""

import dataclasses
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from ..words import counted
from .faults import USES, Fault, Use
from .ids import Id
from .segmentations import Packed

MAX_AREA = 1e10  # pixels; COCO's evaluation ignores larger ones


@dataclass(frozen=True)
class Category:
    """A class of the annotation file; its label is its position in the order of the ids."""

    id: Id
    name: str


class Federated(NamedTuple):
    """LVIS' lists for an image: positions of the classes known to be absent, and of those not exhaustively annotated."""

    absent: list[int]
    incomplete: list[int]


@dataclass
class Images:
    """I images, in the order of the file."""

    ids: list[Id]
    file_names: Packed  # UTF-8, relative to the images folder; empty if there is none
    widths: np.ndarray  # int64 [I] pixels, 0 where not known
    heights: np.ndarray  # int64 [I]
    federated: list[Federated] | None = None  # of LVIS, one for each image

    def __len__(self) -> int:
        return len(self.ids)

    def file_name(self, n: int) -> str:
        return self.file_names[n].decode("utf-8", "surrogatepass")

    def size(self, n: int) -> str:
        return f"{self.widths[n]}x{self.heights[n]}"


_COLUMNS = ("number", "image", "category", "boxes", "areas", "crowd")


@dataclass
class Annotations:
    """A annotations with known images and categories, in the order of the file."""

    ids: "np.ndarray | list[Any]"  # int64 [A], or a list if not all are integers; None for missing ids
    number: np.ndarray  # int64 [A], position in the list of the file, from 1
    image: np.ndarray  # int64 [A], position of the image
    category: np.ndarray  # int64 [A], position of the category
    boxes: np.ndarray  # float64 [A, 4], x, y, width, height in pixels; NaN if there is none
    areas: np.ndarray  # float64 [A], pixels, as stated; NaN if missing, infinite if not a number
    crowd: np.ndarray  # bool [A]
    segmentations: Packed | None = None  # JSON; None if not requested
    mask_areas: np.ndarray | None = None  # int64 [A] pixels, -1 if not counted; None if not checked

    def __len__(self) -> int:
        return len(self.image)

    def select(self, rows: np.ndarray) -> "Annotations":
        """The annotations at some positions, bool [A]."""
        if rows.all():
            return self
        places = np.flatnonzero(rows)
        return Annotations(
            ids=self.ids[places] if isinstance(self.ids, np.ndarray) else [self.ids[n] for n in places.tolist()],
            segmentations=self.segmentations and self.segmentations.select(places),
            mask_areas=None if self.mask_areas is None else self.mask_areas[places],
            **{name: getattr(self, name)[places] for name in _COLUMNS},
        )

    def name(self, n: int) -> str:
        return f"annotation number {self.number[n]} of the list" if self.ids[n] is None else f"annotation {self.ids[n]}"

    def has_area(self) -> np.ndarray:
        """bool [A]: whether a valid area is stated."""
        return (self.areas >= 0) & (self.areas <= MAX_AREA)


@dataclass
class CocoFile:
    """The contents of an annotation file, and its faults.

    Attributes:
        source: its name in messages, such as its path.
        categories: C classes in the order of their ids, which is that of the labels.
        frequencies: LVIS' "r", "c" or "f" of each class; None if it has none.
        supercategories: name of the group of each class, if stated.
        images: columns of well-formed images.
        annotations: columns of well-formed annotations.
        faults: everything that is wrong.
    """

    source: str
    categories: list[Category] = field(default_factory=list)
    frequencies: list[str | None] = field(default_factory=list)
    images: Images = field(default_factory=lambda: Images([], Packed.of([]), np.zeros(0, int), np.zeros(0, int)))
    annotations: Annotations = field(default_factory=lambda: join_annotations([]))
    faults: list[Fault] = field(default_factory=list)
    supercategories: list[str | None] = field(default_factory=list)

    def add(self, kind: str, lines: Sequence[str]) -> None:
        """Add a kind of fault, with a line for each case; without lines, nothing is added."""
        if len(lines):
            self.faults.append(Fault(kind, lines))

    def refusals(self, use: Use, also: Collection[str] = (), without: Collection[str] = ()) -> list[Fault]:
        """The faults for which a use refuses the file, with additional kinds (`also`) or without some (`without`)."""
        return [
            fault
            for fault in self.faults
            if (fault.consequence(use) == "refused" or fault.kind in also) and fault.kind not in without
        ]

    def require(self, use: Use, also: Collection[str] = (), without: Collection[str] = ()) -> None:
        """Raise ValueError with the first reasons if a use refuses the file; see `refusals`."""
        refusals = self.refusals(use, also, without)
        first = [line for fault in refusals for line in fault.lines[:3]][:3]
        more = sum(len(fault.lines) for fault in refusals) - len(first)
        if first:
            rest = f"; and {counted(more, 'more fault')}, which `ranksort check-data` lists" if more else ""
            raise ValueError(f"{self.source} cannot be used for {USES[use]}: {'; '.join(first)}{rest}.")

    def box_faults(self, min_size: float = 1.0) -> dict[str, np.ndarray]:
        """The objects that training leaves out, by kind of fault, decided on the unclipped box as in the published code.

        `min_size` is the minimum width and height, in pixels. Returns bool [A] each, without overlaps.
        """
        x, y, width, height = self.annotations.boxes.T
        single, image = ~self.annotations.crowd, self.annotations.image
        single = single & np.isfinite(x)  # missing boxes are another fault
        empty = single & ((width <= 0) | (height <= 0) | (self.annotations.areas <= 0))
        columns, rows = self.images.widths[image], self.images.heights[image]
        right, below = (
            np.minimum(x + width, columns) <= np.maximum(x, 0),
            np.minimum(y + height, rows) <= np.maximum(y, 0),
        )
        outside = single & ~empty & (right | below) & (columns > 0) & (rows > 0)
        small = single & ~empty & ~outside & ((width < min_size) | (height < min_size))
        return {"box without area": empty, "box outside the image": outside, "small box": small}

    def placeholders(self) -> list[Category]:
        """Categories for a group of others: without objects, with the supercategory "none", and the supercategory of others.

        Roboflow writes one in front of the classes.
        """
        objects = np.bincount(self.annotations.category, minlength=len(self.categories))
        names = set(self.supercategories)
        return [
            category
            for category, group, count in zip(self.categories, self.supercategories, objects.tolist(), strict=True)
            if count == 0 and group == "none" and category.name in names and category.name != group
        ]

    def without_categories(self, removed: Collection[Category]) -> "CocoFile":
        """A copy without some categories, which have no annotations."""
        kept = [n for n, category in enumerate(self.categories) if category not in removed]
        place = np.full(len(self.categories), -1)
        place[kept] = np.arange(len(kept))
        federated = self.images.federated and [
            Federated(*([int(place[n]) for n in places if place[n] >= 0] for places in lists))
            for lists in self.images.federated
        ]
        return dataclasses.replace(
            self,
            images=dataclasses.replace(self.images, federated=federated),
            categories=[self.categories[n] for n in kept],
            frequencies=[self.frequencies[n] for n in kept],
            supercategories=[self.supercategories[n] for n in kept],
            annotations=dataclasses.replace(self.annotations, category=place[self.annotations.category]),
        )

    def trainable(self, min_size: float = 1.0) -> np.ndarray:
        """bool [A]: the objects whose boxes training keeps; see `box_faults`."""
        return ~self.annotations.crowd & ~np.logical_or.reduce(list(self.box_faults(min_size).values()))


def join_annotations(parts: Sequence[Annotations]) -> Annotations:
    """Concatenate the annotations of several parts of a file."""
    if not parts:
        integers, numbers = np.zeros(0, dtype=np.int64), np.zeros((0, 4))
        return Annotations([], integers, integers, integers, numbers, numbers[:, 0], integers.astype(bool))
    ids, masks = [part.ids for part in parts], [part.segmentations for part in parts]
    are_integers = all(isinstance(x, np.ndarray) for x in ids)
    return Annotations(
        ids=np.concatenate(ids) if are_integers else [id for x in ids for id in x],
        segmentations=None if None in masks else Packed.joined(masks),  # type: ignore[arg-type]
        **{name: np.concatenate([getattr(part, name) for part in parts]) for name in _COLUMNS},
    )


def require_known(file: CocoFile, categories: Sequence[Category]) -> None:
    """Raise ValueError unless `categories` contain all categories of a file, by id and name, except for placeholders."""
    expected = {*categories, *file.placeholders()}
    unknown = [category for category in file.categories if category not in expected]
    if unknown:
        example = unknown[0]
        known = next((c for c in categories if example.id == c.id or example.name == c.name), categories[0])
        raise ValueError(
            f"{file.source} has {counted(len(unknown), 'class')} that the model does not know, such as {example.name!r} "
            f"with id {example.id!r}; the model knows {len(categories)}, such as {known.name!r} with id {known.id!r}. "
            "Names and ids must be the same."
        )
