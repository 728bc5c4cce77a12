"""Image files: where the ones that an annotation file names are, and pixels upright in RGB."""

import os
from collections import Counter
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

import numpy as np
from PIL import ExifTags, Image, ImageOps

from .near import Near, beside, rename

if TYPE_CHECKING:  # else reading an image would need all that reads annotations
    from .segmentations import Packed

IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff"}
"""By which image files are told from others, in lower case."""


class ImageFolder:
    """Finds the images of an annotation file.

    Exporters write paths of their own: with backslashes, with the name of the images folder in front, or with folders that were left
    behind. An image that is not where its name says is looked for without the first folders of the name, unless several
    images of the file would then share a name.

    Args:
        folder: what the names are relative to.
        names: of all images of the annotation file, UTF-8.
    """

    def __init__(self, folder: Path, names: "Packed") -> None:
        self.folder, self.names, self._near = folder, names, Near()

    def path(self, n: int) -> Path:
        """Return where an image is.

        Raises:
            FileNotFoundError: it is nowhere; the message says what there is instead, if that is clear.
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
        """Raise FileNotFoundError, as `path` does, for the first of some images that is nowhere, if there is one.

        Folders are listed, which on a network takes far less time than asking for each file.
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
            return f"; {parts[-1]} is there, but the file names several images so"
        near = next(filter(None, (self._near.find(self.folder, parts[n:]) for n in range(len(parts)))), "")
        return rename(near, parts[-1]) if near else ""

    @cached_property
    def _base_names(self) -> Counter[str]:
        names = {name.decode("utf-8", "surrogatepass") for _, part in self.names.slices() for name in part}
        return Counter(name.replace("\\", "/").rpartition("/")[2] for name in names)


def require_folder(folder: Path) -> None:
    """Raise FileNotFoundError unless there is such a folder of images, and ValueError where it is a file."""
    if not folder.exists():
        raise FileNotFoundError(f"The images folder {folder} does not exist{beside(folder)}.")
    if not folder.is_dir():
        raise ValueError(f"The images folder {folder} is a file: name the folder that it lies in.")


def find_folder(folders: Iterable[Path], name: str) -> Path | None:
    """Return the first of some folders that holds an image of that name, or else, without the folders in front of its name."""
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
        ValueError: it is not an image, or damaged.
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
            f"The image {path} has more pixels than Pillow reads unasked, {limit:.0f} million: cut it into "
            "parts; `ranksort predict --tile` reads images of any size, and PIL.Image.MAX_IMAGE_PIXELS = None makes Python do so."
        ) from None
    except Exception as error:  # a damaged file makes Pillow raise nearly anything
        raise ValueError(f"The image {path} cannot be read ({error}); replace it or take it out.") from error


def _require_regular(path: Path) -> None:
    """Raise ValueError for a pipe or a device: to open one may wait for ever, and to read it, too."""
    if path.exists() and not path.is_file() and not path.is_dir():
        raise ValueError(f"The image {path} is a pipe or a device, not a file; take it out.")


def stated_sizes(path: Path) -> tuple[tuple[int, int], tuple[int, int]]:
    """Read the width and height of an image file: turned as its EXIF orientation says, see `upright`, and as it is stored.

    Pixels are not decoded.

    Raises:
        ValueError: it is not an image.
    """
    _require_regular(path)
    try:
        with Image.open(path) as image:
            width, height = image.size
            is_turned = image.getexif().get(ExifTags.Base.Orientation, 1) >= 5
    except Exception as error:  # a damaged file makes Pillow raise nearly anything
        raise ValueError(f"The image {path} cannot be read ({error}).") from error
    return ((height, width) if is_turned else (width, height)), (width, height)


def upright(image: Image.Image, width: int, height: int, path: Path) -> Image.Image:
    """Turn an image as its EXIF orientation says, as viewers and labelling tools show it.

    It stays as it is stored where only so it has the size that its annotations are for.

    Raises:
        ValueError: it has that size neither way.
    """
    turned = ImageOps.exif_transpose(image)
    for candidate in (turned, image):
        if candidate.size == (width, height):
            return candidate
    raise ValueError(f"The image {path} is {image.width}x{image.height}, but its annotations are for {width}x{height}.")


def to_rgb(image: Image.Image, white: float = 0) -> Image.Image:
    """Convert any kind of image to 8 bit RGB.

    Args:
        image: of any mode.
        white: what is white in one of floats or more than 8 bits of grey, which Pillow alone would clip; 0: 65535, or 255 for floats.
    """
    if image.mode[:1] in "IF":
        values = np.nan_to_num(np.asarray(image, dtype=np.float64)) * (255 / _white(image, white))
        # What should come to a whole number may come to a little less.
        image = Image.fromarray((values + 1e-6).clip(0, 255).astype(np.uint8))
    return image.convert("RGB")


def deep_colours(image: Image.Image) -> bool:
    """Whether an image that is not decoded yet has 16 bits for each of its colours, of which Pillow takes the upper 8."""
    return image.mode in ("RGB", "RGBA", "RGBX", "CMYK") and any(
        ";16" in str(tile[3]) for tile in getattr(image, "tile", [])
    )


def darkness(image: Image.Image, white: float = 0) -> str | None:
    """Say why an image turns nearly black, or loses what is bright, by `to_rgb` with this `white`; None: it does not."""
    if image.mode[:1] not in "IF":
        return None
    least, greatest = map(float, image.getextrema())  # type: ignore[arg-type]
    white, bits = _white(image, white), "16 bit" if image.mode.startswith("I") else "floating point"
    if greatest > white:
        return f"is {bits} greyscale with values up to {greatest:g}, where {white:g} is white: what is above is lost"
    if least < 0:
        return f"is {bits} greyscale with values down to {least:g}, where 0 is black: what is below is lost"
    if 0 < greatest < white / 8:
        return (
            f"is {bits} greyscale whose brightest value is {greatest:g}, where {white:g} is white: it turns nearly black; "
            f"multiply its values by {white // max(greatest, 1) if greatest >= 1 else white:g}"
        )
    return None


def _white(image: Image.Image, white: float) -> float:
    return white or (65535 if image.mode.startswith("I") else 255)
