"""What LVIS (Gupta et al., CVPR 2019) has beyond COCO: files named by URL, federated annotation, repeat factor sampling."""

import re

import numpy as np

from .coco_rows import ImageRow


def file_name(image: ImageRow) -> str | None:
    """Where an image is: `train2017/<name>.jpg` or `val2017/<name>.jpg` for one of LVIS, as its `coco_url` ends.

    LVIS v1 states no `file_name`, and its validation images come from both folders of COCO. v0.5 states names of 2014.
    """
    if image.neg_category_ids is not None and image.coco_url is not None:
        found = re.search(r"(?:train|val|test)2017/\w+\.jpg$", image.coco_url)
        return found and found[0]
    return image.file_name


def repeat_factors(image: np.ndarray, label: np.ndarray, num_images: int, threshold: float) -> np.ndarray:
    """How often each image is to be seen in an epoch, on average, so that rare classes are seen more (LVIS, appendix B.2).

    A class c in a share f(c) of the images has r(c) = max(1, sqrt(threshold / f(c))); an image has the largest factor
    of its classes.

    Args:
        image: [A] int, the image of each object, 0 <= image < num_images.
        label: [A] int, its class.
        num_images: I.
        threshold: the share of images from which on a class is not rare; 1e-3 for LVIS.

    Returns:
        float64 [I], 1 or more; 1 for images without objects.
    """
    pairs = np.unique(np.stack((image, label), axis=1), axis=0)
    share = np.bincount(pairs[:, 1]) / num_images
    factors = np.ones(num_images)
    np.maximum.at(factors, pairs[:, 0], np.sqrt(threshold / share[pairs[:, 1]]))
    return factors


def random_repeats(factors: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Round each factor up or down at random, up with a probability of its fraction.

    The images are rounded together (systematic sampling: one random number moves a grid over their cumulated factors,
    in random order), so that the sum is that of the factors to within 1. Epochs are then of one length, which schedules
    and resuming rely on.

    Takes factors [I], as for `repeat_factors`, to int64 [I].
    """
    order = rng.permutation(len(factors))
    repeats = np.empty(len(factors), dtype=np.int64)
    repeats[order] = np.diff(np.floor(factors[order].cumsum() + rng.random()), prepend=0)
    return repeats
