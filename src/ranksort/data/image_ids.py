"""The ids of image files in an annotation file."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from .coco_columns import Category, CocoFile, require_known
from .coco_file import read_coco_file
from .ids import Id


def read_image_ids(annotations: Path, images: Sequence[Path], categories: Sequence[Category]) -> list[Id | None]:
    """The ids of image files in an annotation file whose classes are all among the categories of a model.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it cannot be used, has other classes, or an image is ambiguous, see `find_image_ids`.
    """
    file = read_coco_file(annotations, segmentations=False)
    file.require("evaluation", without=["nothing to evaluate"])
    require_known(file, categories)
    return find_image_ids(images, file)


def find_image_ids(images: Sequence[Path], file: CocoFile) -> list[Id | None]:
    r"""Find image files in an annotation file by their names.

    The name in the file is the end of the image's path; or, treating `\` as `/`, they share at least the last part, which is unique in
    the file. None if the file has no image of that name.

    Raises:
        ValueError: an image matches several images of the file, or two images match the same one.
    """
    names = [str(PurePosixPath(file.images.file_name(n).replace("\\", "/"))) for n in range(len(file.images))]
    counts, base_counts = Counter(names), Counter(name.rpartition("/")[2] for name in names)
    ids: dict[str, Id] = dict(zip(names, file.images.ids, strict=True))
    ids_by_base = {name.rpartition("/")[2]: id for name, id in ids.items()}
    found: dict[Id, Path] = {}
    result: list[Id | None] = []
    for path in images:
        parts = path.absolute().parts
        ends = ("/".join(parts[start:]) for start in range(1, len(parts)))
        name = next((end for end in ends if end in ids), None)
        known = base_counts[path.name] if name is None else counts[name]
        if known > 1:
            raise ValueError(f"{file.source} has several images that {path} could be.")
        if known == 0:
            result.append(None)
            continue
        id = ids_by_base[path.name] if name is None else ids[name]
        if id in found:
            raise ValueError(f"{found[id]} and {path} are the same image in {file.source}: use one of them.")
        found[id] = path
        result.append(id)
    return result
