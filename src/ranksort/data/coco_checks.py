"""Faults of well-formed annotation files, for all images, objects and classes at once."""

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from .coco_columns import Annotations, CocoFile
from .faults import Lines
from .segmentations import check_segmentations

MIN_IMAGE_SIDE = 32
"""Training leaves out images with a shorter side, in pixels, as the published code does."""
_DRAWN_AT_ONCE = 32_000_000  # bytes of segmentations that are searched for masks without a pixel before training


def check(file: CocoFile, pixels: bool | None, keep_crowds: bool) -> None:
    """Add to the faults of a file; see `coco_file.read_coco_file` for the arguments."""
    if keep_crowds:
        file.annotations.crowd = np.zeros_like(file.annotations.crowd)
    _check_images(file)
    _check_boxes(file)
    _check_areas(file)
    if file.annotations.segmentations is not None:
        _check_segmentations(file, pixels)
    _check_repeats(file)
    _check_crowds(file)
    _check_categories(file)


def _add(file: CocoFile, kind: str, rows: "Sequence[int] | np.ndarray", describe: Callable[[int], str]) -> None:
    """Add a kind of fault of some rows, whose descriptions are created when read."""
    file.add(kind, Lines(rows, describe))


def _check_images(file: CocoFile) -> None:
    images = file.images
    sides = np.minimum(images.widths, images.heights)
    _add(
        file,
        "small image",
        np.flatnonzero((sides > 0) & (sides < MIN_IMAGE_SIDE)),
        lambda n: f"image {images.ids[n]} has a side under {MIN_IMAGE_SIDE} px ({images.size(n)})",
    )
    first: dict[bytes, int] = {}
    again: dict[int, int] = {}
    for start, names in images.file_names.slices():
        for n, name in enumerate(names, start):
            if name and first.setdefault(name, n) != n:
                again[n] = first[name]
    _add(
        file,
        "same file in two images",
        list(again),
        lambda n: (
            f"image {images.ids[n]} has the same file as image {images.ids[again[n]]} ({images.file_name(n)}): "
            "objects annotated in one of them count as background in the other"
        ),
    )


def _check_boxes(file: CocoFile) -> None:
    annotations, images = file.annotations, file.images

    def described(n: int, what: str) -> str:
        return f"{annotations.name(n)} {what} (bbox {annotations.boxes[n].tolist()})"

    def size_of_image(n: int) -> str:
        return images.size(int(annotations.image[n]))

    def without_area(n: int) -> str:
        area = "not given" if np.isnan(annotations.areas[n]) else f"{annotations.areas[n]:g}"
        return f"{annotations.name(n)} has no area (bbox {annotations.boxes[n].tolist()}, area {area})"

    faults = file.box_faults()
    descriptions: dict[str, Callable[[int], str]] = {
        "box without area": without_area,
        "box outside the image": lambda n: described(n, f"lies outside its {size_of_image(n)} image"),
        "small box": lambda n: described(n, "is smaller than 1 px"),
    }
    for kind, is_faulty in faults.items():
        _add(file, kind, np.flatnonzero(is_faulty), descriptions[kind])

    x, y, width, height = annotations.boxes.T
    columns, rows = images.widths[annotations.image], images.heights[annotations.image]
    # Sub-pixel overshoots come from rounding and are everywhere, in COCO too.
    reaches_out = (np.minimum(x, y) < -1) | (x + width > columns + 1) | (y + height > rows + 1)
    reaches_out &= (columns > 0) & (rows > 0)
    are_corners = (width > x) & (height > y) & (width <= columns + 1) & (height <= rows + 1)
    if 2 * reaches_out.sum() > len(x) and are_corners.sum() >= 0.9 * len(x):
        line = f"{reaches_out.sum()} of {len(x)} boxes extend beyond their images, but would fit as corners: are they "
        file.add("boxes extend beyond their images", [f"{line}[x1, y1, x2, y2]? COCO's are [x, y, width, height]"])
        return
    _add(
        file,
        "box partly outside the image",
        np.flatnonzero(reaches_out & ~np.logical_or.reduce(list(faults.values()))),
        lambda n: described(n, f"extends beyond its {size_of_image(n)} image and is clipped"),
    )


def _check_areas(file: CocoFile) -> None:
    annotations = file.annotations
    _add(
        file,
        "wrong area",
        np.flatnonzero(np.isfinite(annotations.areas) & ~annotations.has_area()),
        lambda n: (
            f"{annotations.name(n)} has the invalid area {annotations.areas[n]:g}: evaluation uses "
            "that of its box or mask"
        ),
    )
    missing = np.flatnonzero(np.isnan(annotations.areas))
    if len(missing) > 20:
        line = f'{len(missing)} of {len(annotations)} annotations have no "area": that of the box or mask is used'
        file.add("no area given", [line])
        return
    taken = "that of its box or mask is used"
    _add(file, "no area given", missing, lambda n: f'{annotations.name(n)} has no "area": {taken}')


def _check_segmentations(file: CocoFile, pixels: bool | None) -> None:
    annotations, images = file.annotations, file.images
    assert annotations.segmentations is not None
    if pixels is None:
        pixels = annotations.segmentations.size < _DRAWN_AT_ONCE
    sizes = images.heights[annotations.image], images.widths[annotations.image]
    checked = check_segmentations(annotations.segmentations, *sizes, pixels=pixels)
    crowd = annotations.crowd
    missing = checked.missing & ~crowd
    if missing.any() and (missing | crowd).all():
        file.add("no segmentation", ["no object has a segmentation, which masks need"])
    else:
        _add(
            file,
            "no segmentation",
            np.flatnonzero(missing),
            lambda n: f"{annotations.name(n)} has only a box and no segmentation, which masks need",
        )

    def problem(n: int) -> str:
        return f"{annotations.name(n)} {checked.problems.get(n, 'has no segmentation')}"

    bad_crowds = [n for n in [*checked.problems, *np.flatnonzero(checked.missing).tolist()] if crowd[n]]
    _add(file, "bad segmentation", [n for n in checked.problems if not crowd[n]], problem)
    _add(file, "bad segmentation of a crowd", bad_crowds, problem)
    _add(
        file,
        "mask without a pixel",
        np.flatnonzero((checked.areas == 0) & ~crowd),
        lambda n: f"{annotations.name(n)} has a segmentation that covers no pixel of its image",
    )
    annotations.mask_areas = checked.areas


def _check_repeats(file: CocoFile) -> None:
    annotations = file.annotations
    _add(
        file,
        "duplicate annotation id",
        _repeated(annotations.ids),
        lambda n: f"{annotations.name(n)} has the same id as an earlier one: some tools keep only one of them",
    )
    first = _equal_annotations(annotations)
    _add(
        file,
        "same annotation twice",
        sorted(first),
        lambda n: f"{annotations.name(n)} has the image, category and shape of {annotations.name(first[n])}",
    )


def _repeated(ids: "np.ndarray | list[Any]") -> list[int]:
    """The positions of ids that equal an earlier one; usually there are none."""
    if isinstance(ids, np.ndarray) and (np.diff(np.sort(ids)) > 0).all():
        return []
    seen: set[Any] = {None}
    again = []
    for n, id in enumerate(ids.tolist() if isinstance(ids, np.ndarray) else ids):
        if id in seen and id is not None:
            again.append(n)
        seen.add(id)
    return again


def _equal_annotations(annotations: Annotations) -> dict[int, int]:
    """Annotations that equal an earlier one except for the id, and the earlier one."""
    boxes = np.ascontiguousarray(annotations.boxes.T).view(np.int64)
    columns = [annotations.image, annotations.category, annotations.crowd.astype(np.int64), *boxes]
    key = np.zeros(len(annotations), dtype=np.uint64)
    for column in columns:
        key ^= column.view(np.uint64)
        key *= np.uint64(0x9E3779B97F4A7C15)
        key ^= key >> np.uint64(29)
    if (np.diff(np.sort(key)) > 0).all():
        return {}
    _, place, counts = np.unique(key, return_inverse=True, return_counts=True)
    first: dict[tuple[Any, ...], int] = {}
    again: dict[int, int] = {}
    for n in np.flatnonzero(counts[place] > 1).tolist():
        # Segmentations that were read beside something malformed have been written again, with other spaces.
        shape = annotations.segmentations and annotations.segmentations[n].translate(None, b" \t\r\n")
        content = (*(column[n] for column in columns), shape)
        if first.setdefault(content, n) != n:
            again[n] = first[content]
    return again


def _check_crowds(file: CocoFile) -> None:
    annotations = file.annotations
    count, crowds = len(annotations), int(annotations.crowd.sum())
    if 2 * crowds > count:
        file.add(
            "mostly crowd",
            [
                f"{crowds} of {count} annotations are marked as crowd, which training leaves out and evaluation ignores: "
                "some exporters mark every mask as crowd; --data.crowd keep treats them as objects"
            ],
        )
    if crowds == count and not file.refusals("evaluation"):  # missing entries may be among malformed ones
        what = "annotations other than crowds" if crowds else "annotations"
        file.add("nothing to evaluate", [f"there are no {what}: there is nothing to be found"])
    if file.refusals("boxes"):
        return
    sides = np.minimum(file.images.widths, file.images.heights)[annotations.image]
    trainable = file.trainable() & (sides >= MIN_IMAGE_SIDE)
    why = ", because all are marked as crowd: --data.crowd keep treats them as objects" if 0 < crowds == count else ""
    if not trainable.any():
        file.add("no object to train on", [f"there is no object to train on{why}"])
    elif annotations.mask_areas is not None and not (trainable & (annotations.mask_areas != 0)).any():
        file.add("no mask to train on", ["there is no mask with a pixel to train on"])


def _check_categories(file: CocoFile) -> None:
    by_name: dict[str, list[int]] = defaultdict(list)
    for c, category in enumerate(file.categories):
        by_name[category.name.strip().casefold()].append(c)
    objects = np.bincount(file.annotations.category, minlength=len(file.categories))
    supercategories = Counter(file.supercategories)
    placeholders, groups = [], dict.fromkeys(file.placeholders())
    file.add(
        "group as a category",
        [
            f"category {category.id} ({category.name}) has no object and is the supercategory of others, as in Roboflow's exports: "
            "it does not become a class of the model"
            for category in groups
        ],
    )
    for c, category in enumerate(file.categories):
        if category in groups:
            continue
        others = [file.categories[o] for o in by_name[category.name.strip().casefold()] if o != c]
        is_group = supercategories[category.name] > (file.supercategories[c] == category.name)  # of others
        if objects[c] == 0 and objects.any() and (others or is_group):
            why = f"category {others[0].id} has the same name" if others else "another names it as its supercategory"
            placeholders.append(
                f"category {category.id} ({category.name}) has no object, and {why}: perhaps an exporter's placeholder, "
                "for which a detector cannot learn anything; remove it"
            )
    file.add("category without objects", placeholders)
    repeated = [entries for entries in by_name.values() if len(entries) > 1]
    ids = [", ".join(str(file.categories[c].id) for c in entries) for entries in repeated]
    names = [file.categories[entries[0]].name for entries in repeated]
    lines = [f"the categories {i} are all called {name!r}" for i, name in zip(ids, names, strict=True)]
    file.add("same name in two categories", lines)
