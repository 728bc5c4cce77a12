"""Image files: find those named in an annotation file, and read them upright in RGB."""

import os
from collections import Counter
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

import numpy as np
from PIL import ExifTags, Image, TiffImagePlugin

from .near import Near, beside, rename

if TYPE_CHECKING:  # otherwise reading an image would need everything that reads annotations
    from .segmentations import Packed

IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff"}
"""Suffixes of image files, in lower case."""
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What each EXIF orientation but 1 asks for; from 5 on, width and height swap."""


class ImageFolder:
    """Find the images of an annotation file.

    Exporters write different paths: with backslashes, with the images folder in front, or with folders that no longer exist. An image
    that is not where its name says is looked for without the first folders of the name, unless several images of the file would then
    share a name.

    Args:
        folder: the folder that names are relative to.
        names: names of all images of the annotation file, UTF-8.
    """

    def __init__(self, folder: Path, names: "Packed") -> None:
        self.folder, self.names, self._near = folder, names, Near()

    def path(self, n: int) -> Path:
        """Find an image.

        Raises:
            FileNotFoundError: it is not found; the message says what was found instead, if that is clear.
        """
        name = self.names[n].decode("utf-8", "surrogatepass")
        path = self.folder / name
        if _is_file(path):
            return path
        parts = PurePosixPath(name.replace("\\", "/")).parts
        is_unique = self._base_names[parts[-1]] == 1 if parts else False
        for start in range(len(parts) if is_unique else min(len(parts), 1)):
            candidate = self.folder.joinpath(*parts[start:])
            if _is_file(candidate):
                return candidate
        raise FileNotFoundError(f"The image {name} is not in {self.folder}{self._hint(parts, is_unique)}.")

    def require(self, images: Iterable[int]) -> None:
        """Raise FileNotFoundError, as `path` does, for the first missing image, if there is one.

        Folders are listed, which on a network is much faster than checking each file.
        """
        listings: dict[str, frozenset[str]] = {}
        for n in images:
            folder, _, name = self.names[n].decode("utf-8", "surrogatepass").rpartition("/")
            if folder not in listings:
                try:
                    listings[folder] = frozenset(os.listdir(self.folder / folder))
                except (OSError, ValueError):
                    listings[folder] = frozenset()
            if name not in listings[folder]:
                self.path(n)

    def _hint(self, parts: tuple[str, ...], is_unique: bool) -> str:
        if parts and not is_unique and _is_file(self.folder.joinpath(parts[-1])):
            return f"; {parts[-1]} exists, but the file has several images of that name"
        near = next(filter(None, (self._near.find(self.folder, parts[n:]) for n in range(len(parts)))), "")
        return rename(near, parts[-1]) if near else ""

    @cached_property
    def _base_names(self) -> Counter[str]:
        names = {name.decode("utf-8", "surrogatepass") for _, part in self.names.slices() for name in part}
        return Counter(name.replace("\\", "/").rpartition("/")[2] for name in names)


def require_folder(folder: Path) -> None:
    """Raise FileNotFoundError if there is no such folder of images, and ValueError if it is a file."""
    if not folder.exists():
        raise FileNotFoundError(f"The images folder {folder} does not exist{beside(folder)}.")
    if not folder.is_dir():
        raise ValueError(f"The images folder {folder} is a file: name the folder that it is in.")


def find_folder(folders: Iterable[Path], name: str) -> Path | None:
    """The first folder that has an image of that name or, failing that, of its name without folders."""
    parts = PurePosixPath(name.replace("\\", "/")).parts
    for start in range(max(len(parts), 1)):
        for folder in folders:
            if _is_file(folder.joinpath(*parts[start:])) or (start == 0 and _is_file(folder / name)):
                return folder
    return None


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # a name that no file can have
        return False


def read_image(path: Path) -> Image.Image:
    """Read and decode an image file as it is stored.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not an image, or it is damaged.
    """
    _require_regular(path)
    try:
        with Image.open(path) as image:
            image.load()
            return image
    except FileNotFoundError:
        raise FileNotFoundError(f"The image {path} does not exist.") from None
    except Image.DecompressionBombError:
        limit = 2 * (Image.MAX_IMAGE_PIXELS or 0) / 1e6
        raise ValueError(
            f"The image {path} has more pixels than Pillow opens by default, {limit:.0f} million: cut it into "
            "parts; `ranksort predict --tile` reads images of any size; in Python, set PIL.Image.MAX_IMAGE_PIXELS = None."
        ) from None
    except Exception as error:  # a damaged file makes Pillow raise nearly anything
        raise ValueError(f"The image {path} cannot be read ({error}): replace or remove it.") from error


def _require_regular(path: Path) -> None:
    """Raise ValueError for a pipe or a device, which could block forever when opened or read."""
    if path.exists() and not path.is_file() and not path.is_dir():
        raise ValueError(f"The image {path} is a pipe or a device, not a file: remove it.")


def stated_sizes(path: Path) -> tuple[tuple[int, int], tuple[int, int]]:
    """Read the width and height of an image file: rotated by its EXIF orientation, see `upright`, and as stored.

    Pixels are not decoded. Both are upright for a TIFF, which cannot be read otherwise.

    Raises:
        ValueError: it is not an image.
    """
    _require_regular(path)
    try:
        with Image.open(path) as image:
            stored, swaps = image.size, orientation(image) >= 5
            if isinstance(image, TiffImagePlugin.TiffImageFile):
                # Pillow rotates a TIFF when it decodes it and, since version 11.1, swaps `size` before that.
                stored = image.tag_v2[ExifTags.Base.ImageWidth], image.tag_v2[ExifTags.Base.ImageLength]
                stored, swaps = (stored[::-1] if swaps else stored), False
    except Exception as error:  # a damaged file makes Pillow raise nearly anything
        raise ValueError(f"The image {path} cannot be read ({error}).") from error
    return (stored[::-1] if swaps else stored), stored


def orientation(image: Image.Image) -> int:
    """The EXIF orientation of an image, 1 to 8; 1 if there is none, or it is damaged, as viewers show it then."""
    try:
        value = image.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # damaged EXIF makes Pillow raise nearly anything
        return 1
    return value if isinstance(value, int) and value in _TURNS else 1


def turn_upright(image: Image.Image) -> Image.Image:
    """Rotate an image by its EXIF orientation.

    Unlike Pillow's `exif_transpose`, this does not write the EXIF data again, which fails for tags of unusual types.
    """
    image.load()  # which already rotates a TIFF
    turn = _TURNS.get(orientation(image))
    return image if turn is None else image.transpose(turn)


def upright(image: Image.Image, width: int, height: int, path: Path) -> Image.Image:
    """Rotate an image by its EXIF orientation, as viewers and labelling tools show it.

    It stays as stored if only then it has the size that its annotations are for.

    Raises:
        ValueError: it does not have that size either way.
    """
    for candidate in (turn_upright(image), image):
        if candidate.size == (width, height):
            return candidate
    raise ValueError(f"The image {path} is {image.width}x{image.height}, but its annotations are for {width}x{height}.")


def to_rgb(image: Image.Image, white: float = 0) -> Image.Image:
    """Convert any kind of image to 8 bit RGB.

    Args:
        image: an image of any mode.
        white: value of white in floating-point images or greyscale images of more than 8 bits, which Pillow alone would clip; 0: 65535,
            or 255 for floats.
    """
    if image.mode[:1] in "IF":
        values = np.nan_to_num(np.asarray(image, dtype=np.float64)) * (255 / _white(image, white))
        # Rounding, because whole numbers may come out slightly lower.
        image = Image.fromarray((values + 1e-6).clip(0, 255).astype(np.uint8))
    return image.convert("RGB")


def deep_colours(image: Image.Image) -> bool:
    """Whether an image that is not decoded yet has 16 bits per colour, of which Pillow uses the upper 8."""
    return image.mode in ("RGB", "RGBA", "RGBX", "CMYK") and any(
        ";16" in str(tile[3]) for tile in getattr(image, "tile", [])
    )


def darkness(image: Image.Image, white: float = 0) -> str | None:
    """Why `to_rgb` with this `white` would make an image nearly black or clip it; None if it would not."""
    if image.mode[:1] not in "IF":
        return None
    values = np.asarray(image)  # `getextrema` does not support the big-endian images of TIFF
    least, greatest = float(np.nanmin(values, initial=0)), float(np.nanmax(values, initial=0))
    white, bits = _white(image, white), "16 bit" if image.mode.startswith("I") else "floating point"
    if greatest > white:
        return f"is {bits} greyscale with values up to {greatest:g}, but white is {white:g}: higher values are lost"
    if least < 0:
        return f"is {bits} greyscale with values down to {least:g}, but black is 0: lower values are lost"
    if 0 < greatest < white / 8:
        return (
            f"is {bits} greyscale with values up to only {greatest:g}, but white is {white:g}: it becomes nearly black; "
            f"multiply its values by {white // greatest if greatest >= 1 else white:g}"
        )
    return None


def _white(image: Image.Image, white: float) -> float:
    return white or (65535 if image.mode.startswith("I") else 255)
