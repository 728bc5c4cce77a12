"""Videos: read their frames one by one, and write annotated copies."""

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

with contextlib.suppress(ModuleNotFoundError):
    import av


@dataclass(frozen=True)
class Frame:
    """The position of an image in a video."""

    video: Path
    number: int  # from 0
    timestamp: int | None  # from the start, in units of the video's time base
    seconds: float | None  # from the start

    def __str__(self) -> str:
        """The path with a media fragment, such as clip.mp4#frame=12&t=0.400."""
        return f"{self.video}#frame={self.number}" + ("" if self.seconds is None else f"&t={self.seconds:.3f}")


class Video:
    """Read a video file frame by frame.

    Attributes:
        count: number of frames according to the file; None if unknown.
        rate: frames per second.
        time_base: unit of timestamps, in seconds.
        start: timestamp of the start of the file; MPEG files and some AVI files do not start at 0.

    Raises:
        ValueError: PyAV is not installed, or the file is missing or not a video.
    """

    def __init__(self, path: Path) -> None:
        if "av" not in globals():
            raise ValueError(f'{path} is a video, which needs PyAV: pip install "ranksort[video]", or: pip install av')
        self.path = path
        with self._sentences():
            self._container = av.open(os.fspath(path))
            if not self._container.streams.video:
                raise ValueError("it has no pictures")
            self._stream = self._container.streams.video[0]
            self._stream.thread_type = "AUTO"
        self.count: int | None = self._stream.frames or None
        self.rate = Fraction(self._stream.average_rate or 25)
        self.time_base = Fraction(self._stream.time_base or Fraction(1, 1000))
        start = Fraction(max(self._container.start_time or 0, 0), av.time_base)  # of all streams, in seconds
        self.start = round(start / self.time_base)

    def frames(self, every: int = 1) -> Iterator[tuple[Frame, Tensor | Exception]]:
        """Every n-th frame, starting with the first, uint8 RGB [3, H, W], rotated as players show it.

        If the file is damaged, the last item is an exception; raising it would lose the frames that are still waiting in a batch.
        """
        decoded = self._container.decode(self._stream)
        number = -1
        while True:
            number += 1
            try:
                with self._sentences(f" from frame {number} on" if number else ""):
                    frame = next(decoded, None)
            except ValueError as error:
                yield Frame(self.path, number, None, None), error
                return
            if frame is None:
                return
            if number % every == 0:
                pixels = np.rot90(frame.to_ndarray(format="rgb24"), round(frame.rotation / 90))
                image = torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))
                timestamp = None if frame.pts is None else frame.pts - self.start
                seconds = None if timestamp is None else float(timestamp * self.time_base)
                yield Frame(self.path, number, timestamp, seconds), image

    def __enter__(self) -> "Video":
        return self

    def __exit__(self, *error: object) -> None:
        self._container.close()

    @contextlib.contextmanager
    def _sentences(self, where: str = "") -> Iterator[None]:
        try:
            yield
        except (av.error.FFmpegError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise ValueError(f"The video {self.path} cannot be read{where} ({reason}).") from None


class VideoWriter:
    """Write an MP4 file frame by frame, without sound; if it is closed early, it holds the frames added before.

    A frame that is not later than the one before, as in files that round times to milliseconds, comes one unit of time after it.

    Args:
        path: path of the file.
        like: the video whose rate and timestamps to use.
        every: write one frame for this many frames of that video.

    Raises:
        OSError: it cannot be written, for example on a full disk; raised by every method.
        ValueError: its frames cannot be encoded as MP4; likewise.
    """

    def __init__(self, path: Path, like: Video, every: int) -> None:
        self._path = path
        with self._sentences():
            self._container = av.open(os.fspath(path), "w", format="mp4")
        self._rate, self._time_base = like.rate / every, like.time_base
        self._stream: Any = None
        self._last: int | None = None  # timestamp

    def add(self, image: Tensor, frame: Frame) -> None:
        """Add an image, uint8 RGB [3, H, W], at the time of a frame of the original. Sides are made even, as the format requires."""
        height, width = (side // 2 * 2 for side in image.shape[1:])
        if not height or not width:
            raise self._failure("its frames need two pixels or more per side")
        timestamp = frame.timestamp
        if timestamp is not None and self._last is not None:  # MP4 files cannot have two frames at a time
            timestamp = max(timestamp, self._last + 1)
        self._last = timestamp
        pixels = np.ascontiguousarray(image[:, :height, :width].permute(1, 2, 0).numpy())
        with self._sentences():
            if self._stream is None:
                self._stream = self._new_stream(height, width)
            picture = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            picture.pts, picture.time_base = timestamp, self._time_base
            self._container.mux(self._stream.encode(picture))

    def _new_stream(self, height: int, width: int) -> Any:
        codec = "libx264" if "libx264" in av.codecs_available else "mpeg4"
        stream: Any = self._container.add_stream(codec, rate=self._rate)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.codec_context.time_base = self._time_base
        return stream

    def __enter__(self) -> "VideoWriter":
        return self

    def __exit__(self, *error: object) -> None:
        with self._sentences():
            try:
                if self._stream is not None:
                    self._container.mux(self._stream.encode(None))
            finally:
                self._container.close()

    @contextlib.contextmanager
    def _sentences(self) -> Iterator[None]:
        """Errors of the encoder as ValueError; those of the disk stay."""
        try:
            yield
        except av.error.FFmpegError as error:
            if isinstance(error, OSError):
                raise
            raise self._failure(error.strerror) from None

    def _failure(self, reason: str | None) -> ValueError:
        return ValueError(
            f"The video {self._path} cannot be written ({reason}): --no-pictures leaves it out, and detects in all frames."
        )
