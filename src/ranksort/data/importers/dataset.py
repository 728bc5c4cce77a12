"""The result of an importer, and how to write it as COCO JSON."""

import math
import os
import shutil
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, SupportsFloat

from rich.console import Console
from rich.progress import track

from ...json_list import to_json
from ...words import counted
from ..coco_columns import Category

_SHOWN = 5  # lines per kind in a report
_SPLITS = ("train", "val", "test")


class UnknownClass(ValueError):
    """The classes do not fit the annotations, so that none can be relied on."""


class NotUtf8(ValueError):
    """A text file in another encoding."""


class ImportedObject(NamedTuple):
    """An object: key of its class, box [x, y, width, height] and, if there is one, polygon [x1, y1, x2, y2, ...] in pixels."""

    label: int | str
    box: tuple[float, float, float, float]
    polygon: list[float] | None = None
    crowd: bool = False


@dataclass
class ImportedImage:
    """An image, its size in pixels and its objects; `remarks` are (kind, line) as for `ImportedDataset`."""

    path: Path
    width: int
    height: int
    objects: list[ImportedObject] = field(default_factory=list)
    remarks: list[tuple[str, str]] = field(default_factory=list)


@dataclass
class ImportedDataset:
    """What an importer has read.

    Attributes:
        source: what it was read from, in words.
        categories: the classes, by number or name.
        splits: the images of `train`, `val` and `test`.
        remarks: kind -> a line for each case, of what was left out or interpreted.
    """

    source: str
    categories: dict[int | str, Category] = field(default_factory=dict)
    splits: dict[str, list[ImportedImage]] = field(default_factory=dict)
    remarks: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))

    def remark(self, kind: str, lines: Iterable[str]) -> None:
        """Add cases of a kind; without lines, nothing is added."""
        if lines := list(lines):
            self.remarks[kind] += lines

    def read(self, tasks: Sequence[tuple[str, Path]], read: Callable[[Path], ImportedImage]) -> None:
        """Read images with `read`, with their splits. It raises ValueError if an image has to be left out.

        Raises:
            UnknownClass: raised by `read`.
        """

        def attempt(task: tuple[str, Path]) -> ImportedImage | ValueError:
            try:
                return read(task[1])
            except UnknownClass:
                raise
            except ValueError as error:
                return error

        with ThreadPoolExecutor() as pool:
            try:
                console = Console(stderr=True)
                results = track(pool.map(attempt, tasks), "reading", len(tasks), console=console, transient=True)
                for (split, _), result in zip(tasks, results, strict=True):
                    if isinstance(result, ValueError):
                        self.remark("images left out because they or their annotations cannot be read", [str(result)])
                        continue
                    self.splits.setdefault(split, []).append(result)
                    for kind, line in result.remarks:
                        self.remark(kind, [line])
            finally:
                pool.shutdown(cancel_futures=True)

    def leave_out_unlabelled(self) -> None:
        """Leave out splits for validation and testing without objects, on which nothing could be evaluated."""
        for split in ("val", "test"):
            if (images := self.splits.get(split)) and not any(image.objects for image in images):
                del self.splits[split]
                self.remark(
                    "splits without an object, left out: nothing can be evaluated on them; are their label files missing?",
                    [f"{split}, {counted(len(images), 'image')} such as {images[0].path}"],
                )

    def lacking(self) -> str:
        """Why it cannot be used for training, in words; "" if it can."""
        images = self.splits.get("train", [])
        if any(image.objects for image in images):
            return ""
        return (
            f"none of {counted(len(images), 'image')} for training has an object"
            if images
            else "no image is for training"
        )

    def __str__(self) -> str:
        """The contents of each split, and the remarks."""
        splits = [split for split in _SPLITS if split in self.splits]
        counts = {s: Counter(o.label for image in self.splits[s] for o in image.objects) for s in splits}
        rows: list[tuple[Any, ...]] = [
            ("images", *(len(self.splits[split]) for split in splits)),
            ("without objects", *(sum(not image.objects for image in self.splits[split]) for split in splits)),
            ("objects", *(sum(counts[split].values()) for split in splits)),
            *((c.name, *(counts[split][label] for split in splits)) for label, c in self.categories.items()),
        ]
        width = max(len(row[0]) for row in rows)
        lines = [self.source, " ".join([" " * width, *(f"{split:>8}" for split in splits)])]
        lines += [" ".join([f"{name:{width}}", *(f"{count:>8}" for count in numbers)]) for name, *numbers in rows]
        for kind, cases in self.remarks.items():
            lines += [f"{kind} ({len(cases)})", *(f"  {line}" for line in cases[:_SHOWN])]
            lines += [f"  and {len(cases) - _SHOWN} more"] if len(cases) > _SHOWN else []
        return "\n".join(lines)


def walk(folder: Path) -> Iterator[tuple[Path, list[str]]]:
    """Walk a folder recursively, sorted, following links: each folder once, with the names of its files, without hidden ones."""
    seen = set()
    for where, folders, names in os.walk(folder, followlinks=True):
        folders[:] = [] if (real := os.path.realpath(where)) in seen else sorted(f for f in folders if f[0] != ".")
        if real not in seen:
            seen.add(real)
            yield Path(where), sorted(name for name in names if name[0] != ".")


def text_of(file: Path) -> str:
    """The contents of a text file.

    Raises:
        NotUtf8: it is in another encoding.
    """
    try:
        return file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise NotUtf8(f"{file} is not text in UTF-8: save it in that encoding.") from None


def new_object(
    label: int | str, box: Sequence[float], polygon: list[float] | None = None, crowd: bool = False
) -> ImportedObject | None:
    """An object with the corners `box` [x1, y1, x2, y2], or None if it has no area."""
    x1, y1, x2, y2 = box
    is_flat = x2 <= x1 or y2 <= y1 or (polygon is not None and _rounded(_area(polygon)) == 0)
    return None if is_flat else ImportedObject(label, (x1, y1, x2 - x1, y2 - y1), polygon, crowd)


def check(dataset: ImportedDataset) -> None:
    """Raise ValueError if a user's own reader has not returned what `write` needs, or what no image can have."""
    if not isinstance(dataset, ImportedDataset):
        raise ValueError(f"the reader must return an ImportedDataset, not a {type(dataset).__name__}")
    _check_categories(dataset.categories)
    for split, images in dataset.splits.items():
        if split not in _SPLITS:
            raise ValueError(f"the reader returns the split {split}: splits are train, val and test")
        if not isinstance(images, Sequence):
            raise ValueError(f"the reader returns the split {split} as a {type(images).__name__}: make it a list")
        for image in images:
            if not isinstance(image, ImportedImage) or not isinstance(image.path, Path):
                raise ValueError(
                    f"the reader returns {str(image)[:80]} in the split {split}: it must be an ImportedImage with a pathlib.Path"
                )
            if not image.path.is_file():
                raise ValueError(f"the reader returns the image {image.path}, which does not exist")
            for entry in image.objects:
                if fault := _fault(entry, dataset.categories):
                    raise ValueError(f"the reader returns {image.path} with {fault}")


def _check_categories(categories: dict[int | str, Category]) -> None:
    by_id: dict[Any, Category] = {}
    for key, category in categories.items():
        if not isinstance(category, Category):
            raise ValueError(f"the reader returns the class {key!r} as {category!r}: it must be a Category(id, name)")
        if not category.name.strip():
            raise ValueError(f"the reader returns the class {key!r} without a name")
        if (other := by_id.setdefault(category.id, category)) is not category:
            raise ValueError(
                f"the reader returns the classes {other.name} and {category.name} with the same id {category.id}: number them"
            )


def _fault(entry: Any, categories: dict[int | str, Category]) -> str:
    """What is wrong with an object that a reader has returned, in words; "" if nothing."""
    if entry is None:
        return "an object None, which new_object returns if there is no area"
    if not isinstance(entry, ImportedObject):
        return f"an object of type {type(entry).__name__}: make it with new_object"
    if entry.label not in categories:
        return f"an object of the class {entry.label!r}, which is not among its categories"
    if not _are_numbers(entry.box) or len(entry.box) != 4 or min(entry.box[2:]) <= 0:
        return f"the box {entry.box}: it must be four finite numbers, x, y, width and height, the last two above 0"
    if entry.polygon is not None and (
        not _are_numbers(entry.polygon) or len(entry.polygon) < 6 or len(entry.polygon) % 2
    ):
        return (
            f"the polygon {str(entry.polygon)[:80]}: it must be one list of finite numbers, x1, y1, x2, y2, x3, y3, ..."
        )
    return ""


def _are_numbers(values: Iterable[Any]) -> bool:
    """Whether all are finite real numbers, of Python or numpy."""
    return all(isinstance(value, SupportsFloat) and math.isfinite(value) for value in values)


def write(dataset: ImportedDataset, out: Path, copy_images: bool) -> None:
    """Write a data set to a new folder, which appears when it is complete.

    Raises:
        ValueError: there is nothing to write, or the images cannot be linked.
    """
    dataset.leave_out_unlabelled()
    images = [image for split in dataset.splits.values() for image in split]
    if not any(image.objects for image in images):
        reasons = [f"{kind} ({len(lines)}), such as: {lines[0]}" for kind, lines in dataset.remarks.items()]
        nothing = f"none of its {counted(len(images), 'image')} has an object" if images else "it has no image"
        raise ValueError(f"There is nothing to use in {dataset.source}: {'; '.join(reasons) or nothing}")
    folder = _common_folder([image.path for image in images])
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = out.with_name(f".{out.name}.{os.getpid()}")
    (partial / "annotations").mkdir(parents=True)
    try:
        for split, entries in dataset.splits.items():
            content = to_json(_coco(dataset.categories, entries, folder))
            (partial / "annotations" / f"instances_{split}.json").write_text(content, encoding="utf-8")
        if copy_images:
            _copy({image.path for image in images}, folder, partial / "images")
        else:
            _link(folder, partial / "images", out)
        if out.is_dir():
            out.rmdir()
        partial.rename(out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _common_folder(images: Sequence[Path]) -> Path:
    """The folder that all images are in or below."""
    try:
        return Path(os.path.commonpath({os.path.abspath(image.parent) for image in images}))
    except ValueError:  # Windows
        raise ValueError("The images are on different drives: put them into one folder.") from None


def _coco(categories: dict[int | str, Category], images: Sequence[ImportedImage], folder: Path) -> dict[str, Any]:
    annotations: list[dict[str, Any]] = []
    for number, image in enumerate(images, 1):
        for entry in image.objects:
            box = [_rounded(value) for value in entry.box]
            polygon = None if entry.polygon is None else [_rounded(value) for value in entry.polygon]
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": number,
                    "category_id": _plain(categories[entry.label].id),
                    "bbox": box,
                    "area": _rounded(_area(polygon) if polygon else box[2] * box[3]),
                    "segmentation": [polygon] if polygon else [],
                    "iscrowd": int(entry.crowd),
                }
            )
    return {
        "images": [
            {
                "id": number,
                "file_name": Path(os.path.relpath(image.path, folder)).as_posix(),
                "width": _plain(image.width),
                "height": _plain(image.height),
            }
            for number, image in enumerate(images, 1)
        ],
        "categories": [{"id": _plain(category.id), "name": category.name} for category in categories.values()],
        "annotations": annotations,
    }


def _rounded(pixels: float) -> float:
    return round(float(pixels), 4)


def _plain(value: Any) -> Any:
    """A number of numpy as one of Python, which JSON needs; anything else as it is."""
    return value.item() if hasattr(value, "item") else value


def _area(polygon: Sequence[float]) -> float:
    """The area within a polygon [x1, y1, x2, y2, ...], by the shoelace formula."""
    x, y = polygon[::2], polygon[1::2]
    return abs(math.fsum(x[n - 1] * y[n] - x[n] * y[n - 1] for n in range(len(x)))) / 2


def _copy(images: set[Path], folder: Path, out: Path) -> None:
    for image in track(sorted(images), "copying", console=Console(stderr=True), transient=True):
        copy = out / os.path.relpath(image, folder)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(image, copy)


def _link(folder: Path, link: Path, out: Path) -> None:
    """Create a relative link to the folder of the images, so that both can be moved together; it will be in `out`."""
    target = os.path.relpath(folder.resolve(), out.parent.resolve() / out.name)
    try:
        link.symlink_to(target, target_is_directory=True)
    except (OSError, NotImplementedError) as error:
        raise ValueError(
            f"A link to {folder} cannot be created in {out.parent} ({error}): add --copy-images."
        ) from None
