"""The value of white in images of more than 8 bits: a 12-bit camera writes 0 to 4095 to 16-bit files, others 0 to 1 as floats."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from ..words import counted
from .images import deep_colours, read_image

LEVELS = (255, 1023, 4095, 16383, 65535)  # maxima of 8 to 16 bits
_SAMPLE = 200  # images to examine, evenly spread
_DARK = 32  # of 255: below an eighth


def find_white(paths: Sequence[Path], *, skip_unreadable: bool = False) -> float:
    """The value of white in the images of a data set: the lowest of `LEVELS` or 1 that their range allows.

    All images of a data set are scaled by one value, so that dark ones stay darker than bright ones.

    Args:
        paths: paths of its images. Only the first bytes of 8-bit images are read.
        skip_unreadable: leave out damaged images, for callers that report them.

    Returns:
        The value; 0 if no examined image has more than 8 bits of grey.

    Raises:
        ValueError: values are below 0 or above 65535, only the lowest of 16 bits per colour are used, or an image is damaged.
    """
    greatest, is_float, deep, brightest = 0.0, True, 0, 0
    example = Path()
    for path in paths[:: max(1, len(paths) // _SAMPLE)]:
        kind = _kind(path)
        if not kind:
            continue
        try:
            image = read_image(path)
        except ValueError:
            if skip_unreadable:
                continue
            raise
        if kind == "RGB":
            deep += 1
            example = path if deep == 1 else example
            brightest = max(brightest, *(high for _, high in image.getextrema()))  # type: ignore[misc]
            continue
        values = np.nan_to_num(np.asarray(image, dtype=np.float64))
        least, high = float(values.min()), float(values.max())
        if least < 0 or high > LEVELS[-1]:
            raise ValueError(
                f"The image {path} has values from {least:g} to {high:g}: scale the images to 0..255, or set --data.white to the value "
                "of white, with 0 as black."
            )
        greatest, is_float = max(greatest, high), is_float and kind == "F"
    if deep and brightest < _DARK:
        raise ValueError(
            f"{counted(deep, 'image')}, such as {example}, have 16 bits per colour, but only the lowest of them are used, so that "
            f"they are nearly black to a model. Multiply their values by {65536 // (brightest * 256 + 256)}, or convert them to 8 bits."
        )
    if greatest == 0:
        return 0.0
    return next(level for level in ((1, *LEVELS) if is_float else LEVELS) if greatest <= level)


def _kind(path: Path) -> str:
    """F or I: an image of floats or of more than 8 bits of grey; RGB: one of 16 bits for each colour; "": any other."""
    try:
        with Image.open(path) as image:
            return image.mode[0] if image.mode[0] in "IF" else "RGB" if deep_colours(image) else ""
    except Exception:  # unreadable images are reported when they are used
        return ""
