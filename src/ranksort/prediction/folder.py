"""Write the detections of files to a folder, as `ranksort predict` does."""

import contextlib
import io
import itertools
import math
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

from PIL import Image
from rich.console import Console
from rich.markup import escape
from rich.progress import track
from torch import Tensor

from ..data.coco_columns import Category
from ..data.ids import Id
from ..evaluation.results import ResultsWriter, to_rows
from ..words import counted
from .images import RESULTS, VIDEOS, failure, picture_name, picture_suffix
from .predictor import Predictor
from .result import Prediction
from .video import Video, VideoWriter

_SECONDS = 60.0  # between lines of progress

T = TypeVar("T")


class PredictionFolder:
    """Write results and pictures file by file, so that finished ones are kept if anything fails.

    The folder gets `results_bbox.json`, `results_segm.json` if the model predicts masks, `results.csv`, `images.json`, and the
    pictures: one per file, numbered in order, as JPEG, or PNG if a side is too long for JPEG; videos as MP4.

    Args:
        out: the folder.
        predictor: the predictor to use.
        categories: of its model, in the order of the labels.
        pictures: whether to draw pictures.
        every: detect in every n-th frame of videos.

    Attributes:
        images: number of images and frames with results.
        detections: number of detections by class.
        failures: one sentence for each file that could not be read or processed.
    """

    def __init__(
        self, out: Path, predictor: Predictor, categories: Sequence[Category], *, pictures: bool = True, every: int = 1
    ) -> None:
        self._out, self._predictor, self._categories = out, predictor, categories
        self._pictures, self._every = pictures, every
        self.images, self.detections = 0, Counter[str]()
        self.failures: list[str] = []

    def predict(self, files: Sequence[Path], image_ids: Iterable[Id] | None = None) -> None:
        """Write the results of some files.

        Args:
            files: images and videos.
            image_ids: ids of the files, which then may not be videos; None: 1, 2, ... for images and frames. A frame is named like
                `clip.mp4#frame=12&t=0.400`.

        Raises:
            OSError: the results cannot be written, for example on a full disk; the message says what is kept.
        """
        self._ids = iter(itertools.count(1) if image_ids is None else image_ids)
        self._done = 0
        numbered = list(enumerate(files))
        model = self._predictor.model
        mark = None if model.calibration is None else model.calibration.target
        with ResultsWriter(self._out, self._categories, masks=model.has_masks, calibrated=mark) as self._results:
            try:
                for is_video, group in itertools.groupby(numbered, key=lambda one: one[1].suffix.lower() in VIDEOS):
                    (self._predict_videos if is_video else self._predict_images)(list(group))
            except OSError as error:
                raise OSError(
                    f"{error.filename} cannot be written ({error.strerror or error}); {self._kept(files)}"
                ) from None
            except KeyboardInterrupt:
                print(self._kept(files), file=sys.stderr)
                raise

    def _kept(self, files: Sequence[Path]) -> str:
        return f"{self._out / RESULTS} has the detections of the first {self._done} of {counted(len(files), 'image')}"

    def _predict_images(self, numbered: Sequence[tuple[int, Path]]) -> None:
        found = _progress(self._predictor.files([path for _, path in numbered]), len(numbered), "detecting")
        for (number, path), (_, one) in zip(numbered, found, strict=True):
            image_id = next(self._ids)
            try:
                if isinstance(one, Exception):
                    raise one
                suffix, picture = _encode(one.draw()) if self._pictures else ("", b"")
            except Exception as error:  # including out of memory: the next image may be smaller
                self.failures.append(failure(path, error))
            else:
                self._add(one, image_id, str(path))
                if self._pictures:
                    _write(self._out / picture_name(number, path, suffix), picture)
            self._done = number + 1

    def _predict_videos(self, numbered: Sequence[tuple[int, Path]]) -> None:
        for number, path in numbered:
            try:
                self._predict_video(path, self._out / picture_name(number, path, ".mp4"))
            except ValueError as error:
                self.failures.append(str(error))
            self._done = number + 1

    def _predict_video(self, path: Path, annotated: Path) -> None:
        with Video(path) as video, contextlib.ExitStack() as closing:
            writer = closing.enter_context(VideoWriter(annotated, video, self._every)) if self._pictures else None
            total = None if video.count is None else math.ceil(video.count / self._every)
            frames = _progress(self._predictor.images(video.frames(self._every)), total, path.name)
            for done, (frame, found) in enumerate(frames):
                if isinstance(found, Exception):
                    kept = f" The detections in the {counted(done, 'frame')} before it are kept." if done else ""
                    raise ValueError(f"{failure(path, found)}{kept}")
                if writer is not None:
                    writer.add(found.draw(), frame)
                self._add(found, next(self._ids), str(frame))

    def _add(self, found: Prediction, image_id: Id, name: str) -> None:
        """Write the results of an image or a frame."""
        boxes = found.boxes.copy()
        boxes[:, 2:] -= boxes[:, :2]
        categories = [self._categories[label].id for label in found.labels.tolist()]
        rows = to_rows(image_id, categories, boxes.tolist(), found.scores.tolist(), found.rles)
        self._results.add(rows, image_id, name, *found.size)
        self.images += 1
        self.detections.update(found.names)


def _progress(items: Iterable[T], total: int | None, what: str) -> Iterable[T]:
    """Show progress: a bar on a terminal, otherwise a line per minute."""
    if Console().is_terminal:
        return track(items, description=escape(what), total=total)
    return _lines(items, total, what)


def _lines(items: Iterable[T], total: int | None, what: str) -> Iterator[T]:
    start = last = time.monotonic()
    for n, item in enumerate(items, 1):
        yield item
        now = time.monotonic()
        if now >= last + _SECONDS:
            of = "" if total is None else f" of {total}"
            print(f"{what}: {n}{of} images, {n / (now - start):.1f} images/s", flush=True)
            last = now


def _encode(image: Tensor) -> tuple[str, bytes]:
    """Encode an image, uint8 [3, H, W], as a file suffix and file contents."""
    suffix, content = picture_suffix(image.shape), io.BytesIO()
    Image.fromarray(image.permute(1, 2, 0).numpy()).save(content, "JPEG" if suffix == ".jpg" else "PNG")
    return suffix, content.getvalue()


def _write(file: Path, content: bytes) -> None:
    """Write a file, or leave none behind."""
    try:
        file.write_bytes(content)
    except BaseException as error:
        with contextlib.suppress(OSError):
            file.unlink()
        if isinstance(error, OSError):
            error.filename = str(file)
        raise
