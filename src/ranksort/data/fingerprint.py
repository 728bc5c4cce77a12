"""Whether two files hold the same training data."""

import hashlib
from pathlib import PurePosixPath

import numpy as np

from .coco import CocoDataset


def fingerprint(dataset: CocoDataset) -> str:
    """Hash what a run is trained on: image ids, file names without folders, boxes, labels and classes, in their order.

    Masks are left out: the same polygons can be written in many ways.

    Returns:
        64 hexadecimal digits, the same wherever the files are.
    """
    names = (PurePosixPath(dataset.file_name(n).replace("\\", "/")).name for n in range(len(dataset)))
    texts = [f"{id} {name}" for id, name in zip(dataset.image_ids, names, strict=True)]
    texts += [f"{category.id} {category.name}" for category in dataset.categories]
    content = hashlib.sha256("\n".join(texts).encode("utf-8", "surrogatepass"))
    for column in (dataset._ends, dataset._labels):
        content.update(np.asarray(column, dtype="<i8").tobytes())
    content.update(np.asarray(dataset._boxes, dtype="<f8").tobytes())
    return content.hexdigest()
