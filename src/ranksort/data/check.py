"""Everything that is wrong with a data set, before a training finds it."""

import os
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from .annotations import Fault, box_problem, objects, parse_annotations
from .coco import read_image, upright


class ClassCount(NamedTuple):
    """How often a class occurs: its single objects, and the images that hold one."""

    id: int
    name: str
    objects: int
    images: int


@dataclass(frozen=True)
class DataCheck:
    """What a data set holds, counted without what is fatally wrong, and all of its faults."""

    images_path: Path
    annotations_path: Path
    images: int
    annotations: int  # crowds included
    crowds: int
    images_without_objects: int  # without any annotation but crowds
    sizes: dict[str, int]  # objects small, medium and large by COCO's limits, 32^2 and 96^2 square pixels of `area`
    classes: list[ClassCount]  # in the order of the labels
    untrained: dict[str, list[int]]  # ids of what is no fault, but not trained on either
    faults: list[Fault]

    @property
    def is_usable(self) -> bool:
        """Whether training accepts the data."""
        return all(fault.consequence != "fatal" for fault in self.faults)

    def __str__(self) -> str:
        return self.text(faults_per_kind=20)

    def text(self, faults_per_kind: int | None = None) -> str:
        """A report to read, with so many faults of each kind written out; None: all of them."""
        sizes = ", ".join(f"{count} {size}" for size, count in self.sizes.items())
        name_width = max([len(entry.name) for entry in self.classes] + [5])
        lines = [
            f"{self.annotations_path}, images in {self.images_path}",
            f"{self.images} images, {self.images_without_objects} of them without objects",
            f"{self.annotations} annotations: {self.crowds} crowd regions; objects: {sizes}",
            "",
            f"{'class':{name_width}} {'id':>7} {'objects':>8} {'images':>8}",
            *(f"{c.name:{name_width}} {c.id:>7} {c.objects:>8} {c.images:>8}" for c in self.classes),
            "",
        ]
        for what, ids in self.untrained.items():
            shown = ", ".join(map(str, ids[:faults_per_kind]))
            more = ", ..." if len(ids) > len(ids[:faults_per_kind]) else ""
            lines += [f"training leaves out {len(ids)} {what}: {shown}{more}"] if ids else []
        consequences = Counter(fault.consequence for fault in self.faults)
        for kind, consequence in dict.fromkeys((fault.kind, fault.consequence) for fault in self.faults):
            faults = [fault for fault in self.faults if (fault.kind, fault.consequence) == (kind, consequence)]
            lines.append(f"{kind} ({len(faults)}, {consequence})")
            lines.extend(f"  {fault.where} {fault.message}" for fault in faults[:faults_per_kind])
            if faults_per_kind is not None and len(faults) > faults_per_kind:
                lines.append(f"  and {len(faults) - faults_per_kind} more")
        lines += [""] if self.faults else []
        return "\n".join(lines) + (
            f"\n{consequences['fatal']} faults that training refuses, {consequences['dropped']} for which it leaves out an "
            f"object or image, {consequences['kept']} that it keeps"
        )


def check_data(images: Path, annotations: Path) -> DataCheck:
    """Checks an annotation file in full, and decodes every image.

    Args:
        images: the folder of the images.
        annotations: the COCO annotation file. If any object has a segmentation, all of them have to.

    Raises:
        FileNotFoundError: the folder or the file does not exist. Whatever else is wrong becomes a fault.
    """
    if not images.is_dir():
        raise FileNotFoundError(f"The images folder {images} does not exist.")
    file = parse_annotations(annotations)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        image_faults = list(pool.map(lambda image: _image_fault(images, image), file.images.values()))

    singles = objects(file.annotations)
    object_counts = Counter(a["category_id"] for a in singles)
    image_counts = Counter(category for category, _ in {(a["category_id"], a["image_id"]) for a in singles})
    trained_on = {a["image_id"] for a in singles if not box_problem(a, file.images[a["image_id"]])}
    areas = [annotation.get("area", annotation["bbox"][2] * annotation["bbox"][3]) for annotation in singles]
    small, large = sum(area < 32**2 for area in areas), sum(area >= 96**2 for area in areas)
    return DataCheck(
        images_path=images,
        annotations_path=annotations,
        images=len(file.images),
        annotations=len(file.annotations),
        crowds=len(file.annotations) - len(singles),
        images_without_objects=len(file.images.keys() - {annotation["image_id"] for annotation in singles}),
        sizes={"small": small, "medium": len(areas) - small - large, "large": large},
        classes=[ClassCount(c.id, c.name, object_counts[c.id], image_counts[c.id]) for c in file.categories],
        untrained={
            "crowd regions, by annotation": [a["id"] for a in file.annotations if a.get("iscrowd")],
            "images without an object to train on": sorted(file.images.keys() - trained_on),
        },
        faults=file.faults + [fault for fault in image_faults if fault],
    )


def _image_fault(folder: Path, image: dict[str, Any]) -> Fault | None:
    path, kind, where = folder / image["file_name"], "unreadable image", f"image {image['id']}"
    try:
        picture = read_image(path)
        kind = "wrong image size"
        upright(picture, image["width"], image["height"], path)
    except FileNotFoundError:
        return Fault("missing image", where, f"is not there: {path}", "fatal")
    except ValueError as error:
        return Fault(kind, where, f"cannot be used: {error}", "fatal")
    return None
