"""Additions of LVIS (Gupta et al., CVPR 2019) to COCO: files named by URL, federated annotation, repeat factor sampling."""

import re

import numpy as np

from .coco_rows import ImageRow


def file_name(image: ImageRow) -> str | None:
    """The path of an image: `train2017/<name>.jpg` or `val2017/<name>.jpg` for LVIS, from the end of its `coco_url`.

    LVIS v1 has no `file_name`, and its validation images come from both folders of COCO. v0.5 has the names of 2014. Other data sets in
    this format may have other URLs: `file_name` is used then.
    """
    if image.neg_category_ids is not None and image.coco_url is not None:
        found = re.search(r"(?:train|val|test)2017/\w+\.jpg$", image.coco_url)
        if found:
            return found[0]
    return image.file_name


def repeat_factors(image: np.ndarray, label: np.ndarray, num_images: int, threshold: float) -> np.ndarray:
    """How often each image is used in an epoch, on average, to oversample rare classes (LVIS, appendix B.2).

    A class c in a fraction f(c) of the images has r(c) = max(1, sqrt(threshold / f(c))); an image has the largest factor of its classes.

    Args:
        image: [A] int, the image of each object, 0 <= image < num_images.
        label: [A] int, its class.
        num_images: I.
        threshold: classes in at least this fraction of the images are not rare; 1e-3 for LVIS.

    Returns:
        float64 [I], 1 or more; 1 for images without objects.

    Examples:
        >>> import numpy as np
        >>> from ranksort.data.lvis import repeat_factors
        >>> repeat_factors(np.array([0, 1, 2, 3]), np.array([0, 0, 0, 1]), num_images=4, threshold=1).tolist()
        [1.1547, 1.1547, 1.1547, 2.0]
    """
    pairs = np.unique(np.stack((image, label), axis=1), axis=0)
    share = np.bincount(pairs[:, 1]) / num_images
    factors = np.ones(num_images)
    np.maximum.at(factors, pairs[:, 0], np.sqrt(threshold / share[pairs[:, 1]]))
    return factors


def random_repeats(factors: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Round each factor up or down at random, up with the probability of its fractional part.

    The images are rounded jointly (systematic sampling: one random number shifts a grid over the cumulative factors, in random order),
    so that the sum equals that of the factors to within 1. All epochs then have the same length, which schedules and resuming rely on.

    Maps factors [I], from `repeat_factors`, to int64 [I].
    """
    order = rng.permutation(len(factors))
    repeats = np.empty(len(factors), dtype=np.int64)
    repeats[order] = np.diff(np.floor(factors[order].cumsum() + rng.random()), prepend=0)
    return repeats
