"""PASCAL VOC format: an XML file for each image, with the corners of each object's box in pixels.

An XML file belongs to the image of the same name or, failing that, to the `filename` in it, which is often outdated. Splits are those
of `ImageSets/Main`, else those in the names of folders (`train/`, `valid/`), else everything is for training.
"""

import math
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from xml.etree.ElementTree import Element, TreeBuilder
from xml.parsers import expat

from ..coco_columns import Category
from ..images import IMAGE_SUFFIXES, stated_sizes
from ..splits import split_of
from .dataset import ImportedDataset, ImportedImage, new_object, text_of, walk

_LISTS = ("train.txt", "val.txt", "trainval.txt", "test.txt")
_UNLISTED = "annotation files that no list of ImageSets/Main names, left out"
_DIFFICULT = "objects marked as difficult, written as crowd regions: --data.crowd keep treats them as objects"
_POLYGONS = "objects whose polygons were left out: their boxes are used"


@dataclass
class _Files:
    """The files of a folder, found recursively."""

    folder: Path
    annotations: list[Path] = field(default_factory=list)
    lists: list[Path] = field(default_factory=list)  # of ImageSets/Main
    images: dict[str, list[Path]] = field(default_factory=lambda: defaultdict(list))  # by name without suffix
    named: dict[str, list[Path]] = field(default_factory=lambda: defaultdict(list))  # by name
    _places: dict[str, "_Places"] = field(default_factory=dict)

    def nearest(self, stem: str, name: str, file: Path) -> list[Path]:
        """The nearest images to an annotation file: of those with this stem, those with this name, or else all."""
        has_name = name in self.named and Path(name).stem == stem
        key, images = (name, self.named[name]) if has_name else (stem, self.images[stem])
        if len(images) == 1:
            return images
        if key not in self._places:
            self._places[key] = _Places(images, len(self.folder.parts))
        return self._places[key].nearest(file)


_IMAGE_FOLDERS = ("JPEGImages", "images")
Parts = tuple[str, ...]  # of a folder


class _Places:
    """Images of the same name, of which there may be thousands: each video has a `000000.jpg`.

    `root` is the number of parts of the folder that they are all in.
    """

    def __init__(self, images: list[Path], root: int) -> None:
        self._root = root
        self._below: dict[Parts, list[Path]] = defaultdict(list)  # by folder above
        self._usual: dict[Parts, list[Path]] = defaultdict(list)  # those in a folder that is called like VOC's
        self._parallel: dict[tuple[Parts, Parts], list[Path]] = defaultdict(list)
        for path in images:
            parts, is_usual = path.parent.parts, path.parent.name in _IMAGE_FOLDERS
            for depth in range(root, len(parts) + 1):
                above = parts[:depth]
                self._below[above].append(path)
                self._parallel[above, parts[depth + 1 :]].append(path)
                if is_usual:
                    self._usual[above].append(path)

    def nearest(self, file: Path) -> list[Path]:
        """The images that share most folders with a file; of these, those in a folder that is called like VOC's.

        Of several, those in the parallel folder: that of `Annotations/a/b` is `Data/a/b`.
        """
        parts = file.parent.parts
        depth = next(depth for depth in range(len(parts), self._root - 1, -1) if parts[:depth] in self._below)
        above = parts[:depth]
        found = self._usual.get(above, self._below[above])
        if len(found) > 1:
            parallel = self._parallel.get((above, parts[depth + 1 :]), [])
            if above in self._usual:
                parallel = [path for path in parallel if path.parent.name in _IMAGE_FOLDERS]
            found = parallel or found
        return found


def find(folder: Path) -> Path | None:
    """The first XML file of a folder in this format."""
    files = (where / name for where, names in walk(folder) for name in names if name.lower().endswith(".xml"))
    return next(filter(_is_annotation, files), None)


def read(folder: Path) -> ImportedDataset:
    """Read a folder that `find` knows."""
    files = _Files(folder)
    for where, names in walk(folder):
        paths = [where / name for name in names]
        files.annotations += [path for path in paths if path.suffix.lower() == ".xml"]
        if where.parts[-2:] == ("ImageSets", "Main"):
            files.lists += [path for path in paths if path.name in _LISTS]
        for path in paths:
            if path.suffix.lower() in IMAGE_SUFFIXES and not path.parent.name.startswith("Segmentation"):  # VOC's masks
                files.images[path.stem].append(path)
                files.named[path.name].append(path)
    dataset = ImportedDataset(f"VOC data set {folder}")
    tasks = _listed(files, dataset) or _by_folder(files, dataset)
    dataset.read(tasks, lambda file: _read_image(file, files))
    images = [image for split in dataset.splits.values() for image in split]
    names = sorted({str(entry.label) for image in images for entry in image.objects})
    dataset.categories = {name: Category(number, name) for number, name in enumerate(names, 1)}
    by_name: dict[str, list[str]] = defaultdict(list)
    for name in names:
        by_name[name.casefold()].append(name)
    dataset.remark(
        "classes that differ only in case, which a detector would have to tell apart: merge them in the XML files",
        (", ".join(same) for same in by_name.values() if len(same) > 1),
    )
    used, annotated = {image.path for image in images}, {file.stem for file in files.annotations}
    alone = [
        path for stem, paths in files.images.items() if stem not in annotated for path in paths if path not in used
    ]
    dataset.remark("images without an annotation file, left out", map(str, alone))
    return dataset


def _is_annotation(file: Path) -> bool:
    try:
        return _parse(file).tag == "annotation"
    except ValueError:
        return False


def _listed(files: _Files, dataset: ImportedDataset) -> list[tuple[str, Path]]:
    """The annotation files that the lists of ImageSets/Main name, by split. Those of `trainval.txt` count if there is no `train.txt`."""
    tasks: dict[tuple[str, Path], None] = {}
    missing = []
    for folder in dict.fromkeys(file.parent for file in files.lists):
        ids = {file.stem: _ids(file) for file in files.lists if file.parent == folder}
        both = ids.pop("trainval", [])
        if not ids.get("train"):
            held_out = set(ids.get("val", []))
            ids["train"] = [id for id in both if id not in held_out]
        for split in ("train", "val", "test"):
            for id in ids.get(split, []):
                annotations = folder.parent.parent / "Annotations"
                # Some tools list image files instead of their names without suffix.
                files_of_id = (annotations / f"{name}.xml" for name in (id, Path(id).stem))
                if file := next((file for file in files_of_id if file.is_file()), None):
                    tasks[split, file] = None
                else:
                    missing.append(f"{id} of {folder / split}.txt")
    dataset.remark("entries of ImageSets/Main without an annotation file, left out", missing)
    if tasks:
        listed = {file for _, file in tasks}
        dataset.remark(_UNLISTED, (str(file) for file in files.annotations if file not in listed))
    return list(tasks)


def _ids(file: Path) -> list[str]:
    """The names in a list; some tools quote names with spaces."""
    return [line.strip().strip('"') for line in text_of(file).splitlines() if line.strip()]


def _by_folder(files: _Files, dataset: ImportedDataset) -> list[tuple[str, Path]]:
    """All annotation files, by the split in the names of their folders."""
    tasks = [(split_of(file.parent.relative_to(files.folder)), file) for file in files.annotations]
    if not any(split for split, _ in tasks):
        return [("train", file) for _, file in tasks]
    dataset.remark(
        "annotation files outside the folders of the splits, left out",
        (str(file) for split, file in tasks if not split),
    )
    return [(split, file) for split, file in tasks if split]


def _parse(file: Path) -> Element:
    """Parse an XML file that declares no document type: entities, which can grow without bounds or name other files, need one."""
    builder, parser = TreeBuilder(), expat.ParserCreate()

    def refuse(*_: object) -> None:
        raise ValueError(f"{file} declares a document type (<!DOCTYPE), which annotations do not need: remove it")

    parser.StartDoctypeDeclHandler = refuse
    parser.StartElementHandler = builder.start
    parser.EndElementHandler = builder.end
    parser.CharacterDataHandler = builder.data
    try:
        parser.Parse(file.read_bytes(), True)
    except expat.ExpatError as error:
        raise ValueError(f"{file} is not complete XML: {error}") from None
    except (ValueError, LookupError) as error:  # expat reads UTF-8, UTF-16 and encodings of one byte per character
        if str(file) in str(error):
            raise
        raise ValueError(f"{file} is in an encoding that cannot be read ({error}): save it in UTF-8") from None
    return builder.close()


def _read_image(file: Path, files: _Files) -> ImportedImage:
    root = _parse(file)
    if root.tag != "annotation":
        raise ValueError(f"{file} is not an annotation but <{root.tag}>")
    path = _image_of(file, Path(_text(root, "filename").replace("\\", "/")), files)
    width, height = _size(root, path, file)
    image = ImportedImage(path, width, height)
    offset = _offset(root)
    for number, entry in enumerate(root.iterfind("object"), 1):
        name = _text(entry, "name")
        where = f"{file}, object {number} ({name})"
        if not name:
            raise ValueError(f"{file}, object {number}: it has no name")
        corners = [_number(_text(entry, f"bndbox/{key}")) for key in ("xmin", "ymin", "xmax", "ymax")]
        if not all(map(math.isfinite, corners)):
            raise ValueError(f"{where}: it has no <bndbox> with the numbers xmin, ymin, xmax and ymax")
        crowd = _text(entry, "difficult") == "1"
        x1, y1, x2, y2 = corners
        if (found := new_object(name, (x1 - offset, y1 - offset, x2, y2), crowd=crowd)) is None:
            image.remarks.append(("objects without area, left out", where))
            continue
        image.objects.append(found)
        image.remarks += [(_DIFFICULT, where)] * crowd + [(_POLYGONS, where)] * (entry.find("polygon") is not None)
    return image


def _text(element: Element, path: str) -> str:
    return (element.findtext(path) or "").strip()


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def _offset(root: Element) -> int:
    """What to subtract from xmin and ymin to get pixel edges, counted from 0.

    VOC's own files count pixels from 1, and `xmax` is the last one. So does Roboflow's reader, supervision. All other files are used as
    they are: labelImg, CVAT, datumaro and FiftyOne write edges.
    """
    source = f"{_text(root, 'source/database')} {_text(root, 'source/annotation')}".lower()
    return int(any(name in source for name in ("pascal voc", "the voc20", "roboflow")))


def _image_of(file: Path, named: Path, files: _Files) -> Path:
    """The image of an annotation file, the nearest one if several have its name."""
    stems = (file.stem, Path(file.stem).stem, named.stem)
    stem = next((stem for stem in stems if files.images.get(stem)), None)
    if stem is None:
        raise ValueError(f"{file}: there is no image {file.stem}.*{f' and no {named}' if named.name else ''}")
    nearest = files.nearest(stem, named.name, file)
    if len(nearest) > 1:
        more = " or another one" if len(nearest) > 3 else ""
        raise ValueError(f"{file}: its image could be {' or '.join(map(str, nearest[:3]))}{more}")
    return nearest[0]


def _size(root: Element, image: Path, file: Path) -> tuple[int, int]:
    """The image's size, upright or as stored: the one in the annotations, or upright if there is none."""
    sizes = stated_sizes(image)
    width, height = (_number(_text(root, f"size/{key}")) for key in ("width", "height"))
    if not (width > 0 and height > 0):
        return sizes[0]
    if (width, height) not in sizes:
        raise ValueError(
            f"{file}: it is for an image of {width:g}x{height:g}, but {image} has {sizes[0][0]}x{sizes[0][1]} pixels"
        )
    return int(width), int(height)
