"""Images from users: files, folders, lists and patterns of files, PIL images, arrays and tensors."""

import glob
import os
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from PIL import Image

from ..data.images import IMAGE_SUFFIXES, darkness, read_image, to_rgb, turn_upright
from ..words import counted, listed

if TYPE_CHECKING:  # exported models use this module, without PyTorch
    from torch import Tensor

VIDEOS = {".mp4", ".mov", ".avi", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg", ".wmv"}
RESULTS = "results_bbox.json"  # a folder with a file of this name holds results of an earlier call
_READERS = 4  # threads
_LONGEST_JPEG = 65500  # pixels of a side

T = TypeVar("T")


def find_images(names: Iterable[str | Path], out: Path | None = None) -> tuple[list[Path], str]:
    """List the image and video files that names refer to.

    Args:
        names: files, with any suffix; folders, recursively and sorted by name, without hidden files, hidden folders, links to folders
            and folders of results; .txt files with one path per line, relative to the working directory or else to the .txt file; and
            patterns such as "photos/*.jpg" or "photos/**/*.jpg".
        out: output folder, which is also skipped.

    Returns:
        The files, and what was skipped in folders, in words; "" if nothing was.

    Raises:
        ValueError: a .txt file or a pattern matches nothing.
    """
    files: list[Path] = []
    others: Counter[tuple[str, str]] = Counter()
    for path in map(Path, names):
        if path.is_dir():
            files += _of_folder(path, out, others)
        elif path.suffix.lower() == ".txt" and path.is_file():
            files += _of_list(path)
        elif glob.has_magic(str(path)) and not path.exists():
            matches = sorted(filter(os.path.isfile, glob.iglob(str(path), recursive=True)))
            if not matches:
                raise ValueError(f"no file matches {path}")
            files += map(Path, matches)
        else:
            files.append(path)
    return files, ", ".join(counted(count, noun) + rest for (noun, rest), count in others.items() if count)


def check_exist(files: Sequence[Path]) -> None:
    """Raise FileNotFoundError if none of the files exists, before a folder is created for their results."""
    if not any(file.exists() for file in files):
        raise FileNotFoundError(f"there is no such file: {listed(files)}")


def _of_folder(top: Path, out: Path | None, others: Counter[tuple[str, str]]) -> Iterator[Path]:
    """The image and video files of a folder; `others` counts the rest."""
    for name, folders, files in os.walk(top):
        folder = Path(name)
        if out is not None and folder != top and folder.resolve() == out.resolve():
            folders.clear()
            continue
        if RESULTS in files:
            folders.clear()
            others["folder", " of results"] += 1
            continue
        seen = [f for f in sorted(folders) if not f.startswith(".") and not (folder / f).is_symlink()]
        others["folder", " (hidden, or links)"] += len(folders) - len(seen)
        folders[:] = seen
        for file in (folder / file for file in sorted(files)):
            is_hidden = file.name.startswith(".")  # macOS leaves ._name.jpg
            if file.suffix.lower() in IMAGE_SUFFIXES | VIDEOS and not is_hidden:
                yield file
            else:
                others["file", " (hidden, or not an image by name)"] += 1


def _of_list(file: Path) -> list[Path]:
    try:
        lines = [line.strip() for line in file.read_text(encoding="utf-8-sig").splitlines()]
    except UnicodeDecodeError:
        raise ValueError(f"{file} is not a list of images in UTF-8 with one path per line") from None
    paths = [Path(line) for line in lines if line and not line.startswith("#")]
    if not paths:
        raise ValueError(f"{file} lists no images: write one path per line")
    return [path if path.exists() else file.parent / path for path in paths]


def failure(path: Path, error: Exception) -> str:
    """Why an image has no detections, in one sentence."""
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    return reason if str(path) in reason else f"The image {path} cannot be processed ({reason})."


def picture_name(number: int, path: Path, suffix: str) -> str:
    """The name of the picture of a file. The file's name is shortened so that number and suffix fit into 255 bytes."""
    stem = os.fsencode(path.stem)[:200].decode(errors="ignore")
    return f"{number:05d}_{stem}{suffix}"


def picture_suffix(shape: Sequence[int]) -> str:
    """The suffix of a picture of this shape: .jpg, or .png if a side is too long for JPEG."""
    return ".jpg" if max(shape) <= _LONGEST_JPEG else ".png"


def say_what_was_found(
    images: int, detections: "Counter[str]", failures: Sequence[str], num_files: int, out: Path
) -> None:
    """Print the number of images and of detections, by class; `out` is their folder.

    Raises:
        ValueError: some files could not be read or processed; the message has the first of the `failures`.
    """
    counts = ", ".join(f"{count} {name}" for name, count in detections.most_common(10))
    numbers = f"{counted(images, 'image')}, {counted(detections.total(), 'detection')}"
    print(f"{numbers}{f' ({counts})' if counts else ''}: {out}")
    if failures:
        raise ValueError(
            f"{len(failures)} of {counted(num_files, 'image')} could not be read or processed: {'; '.join(failures[:5])}"
        )


def load_image(source: Any, white: float = 0) -> "Tensor":
    """Load an image upright, rotated by its EXIF orientation: uint8 RGB [3, H, W], which shares no memory with the source.

    Args:
        source: as for `load_pixels`; or a tensor as models take it, RGB [3, H, W], uint8 or float in 0..1.
        white: as for `load_pixels`.

    Raises:
        FileNotFoundError: as for `load_pixels`.
        ValueError: as for `load_pixels`, or a tensor has another shape, type or range.
    """
    import torch

    if not isinstance(source, torch.Tensor):
        return torch.from_numpy(load_pixels(source, white).transpose(2, 0, 1).copy())
    if source.ndim != 3 or source.shape[0] != 3 or 0 in source.shape:
        raise ValueError(f"a tensor must be RGB of shape [3, H, W], got {tuple(source.shape)}")
    if source.is_floating_point():
        if not ((source >= 0) & (source <= 1)).all():
            raise ValueError("a tensor of floats must be within 0..1: divide values in 0..255 by 255")
        source = source.mul(255).round().to(torch.uint8)
    if source.dtype != torch.uint8:
        raise ValueError(f"a tensor must be uint8 or float in 0..1, got {source.dtype}")
    return source.detach().cpu().clone()


def load_pixels(source: Any, white: float = 0) -> np.ndarray:
    """Load an image upright, rotated by its EXIF orientation: uint8 RGB [H, W, 3].

    Args:
        source: a file; a PIL image; or an array, uint8 [H, W, 3] RGB (OpenCV's are BGR: pass `image[..., ::-1]`), [H, W, 4] whose alpha
            is ignored, or [H, W] grey.
        white: the value of white in floating-point images or greyscale images of more than 8 bits, see `to_rgb`; 0: unknown, and images
            that would turn nearly black are refused.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not an image, is damaged, has another shape or type, or would turn nearly black.
    """
    name = "the image"
    if isinstance(source, str | os.PathLike):
        name = f"The image {os.fspath(source)}"
        source = read_image(Path(source))
    if isinstance(source, Image.Image):
        if not white and (problem := darkness(source)):
            raise ValueError(f"{name} {problem}")
        source = np.array(to_rgb(turn_upright(source), white))
    if not isinstance(source, np.ndarray):
        raise ValueError(
            f"an object of type {type(source).__name__} is not an image: pass a file, a PIL image or an array"
        )
    image = source[..., None].repeat(3, axis=2) if source.ndim == 2 else source
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] not in (3, 4) or 0 in image.shape:
        raise ValueError(
            f"an array must be uint8, [H, W, 3] RGB or [H, W] grey, got {image.dtype} of shape {image.shape}"
        )
    return image[..., :3]


def read_ahead(
    sources: Sequence[T], load: Callable[[T], "Tensor"], ahead: int
) -> Iterator[tuple[T, "Tensor | Exception"]]:
    """Load images ahead in threads, in order; an exception takes the place of an image that cannot be loaded."""
    with ThreadPoolExecutor(min(_READERS, ahead)) as pool:
        pending: deque[Future[Tensor]] = deque()
        try:
            for n, source in enumerate(sources):
                while len(pending) <= ahead and n + len(pending) < len(sources):
                    pending.append(pool.submit(load, sources[n + len(pending)]))
                future = pending.popleft()
                error = future.exception()
                yield source, error if isinstance(error, Exception) else future.result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
