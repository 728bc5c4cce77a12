"""Fingerprints, to tell whether two files contain the same training data."""

import hashlib
from pathlib import PurePosixPath

import numpy as np

from .coco import CocoDataset


def fingerprint(dataset: CocoDataset) -> str:
    """Hash training data: image ids, file names without folders, boxes, labels and classes, in order.

    Masks are left out, because the same polygons can be written in many ways.

    Returns:
        64 hexadecimal digits, independent of the location of the files.
    """
    names = (PurePosixPath(dataset.file_name(n).replace("\\", "/")).name for n in range(len(dataset)))
    texts = [f"{id} {name}" for id, name in zip(dataset.image_ids, names, strict=True)]
    texts += [f"{category.id} {category.name}" for category in dataset.categories]
    content = hashlib.sha256("\n".join(texts).encode("utf-8", "surrogatepass"))
    for column in (dataset._ends, dataset._labels):
        content.update(np.asarray(column, dtype="<i8").tobytes())
    content.update(np.asarray(dataset._boxes, dtype="<f8").tobytes())
    return content.hexdigest()
