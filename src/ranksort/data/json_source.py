"""JSON in a file or in memory, and the rows of a long list in it, half a megabyte at a time, so that rows need not stay in memory."""

import errno
import gc
import json
import mmap
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import numpy as np

from .near import beside

Row = TypeVar("Row")
_CHUNK = 1 << 19  # bytes: fits into the processor's cache with the decoded rows
_LARGEST_REUSED = (1 << 25) - (1 << 16)  # bytes: glibc learns nothing from a larger block
_BETWEEN = re.compile(rb"\}\s*,\s*(?=\{)")


@dataclass(frozen=True)
class JsonSource:
    """JSON; a file is mapped into memory. `name` is its name in messages."""

    content: bytes | mmap.mmap
    name: str

    @staticmethod
    def open(source: Any, what: str) -> "JsonSource":
        """Open a file by its path, or take contents in memory, which may include bytes from pycocotools and numbers from numpy.

        `what` describes the contents, such as "annotation file".

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: it is a folder or a pipe, or the contents are not valid JSON values.
        """
        if not isinstance(source, str | Path):
            return JsonSource(_json_of(source, what), what)
        path = Path(source)
        if path.is_dir():
            raise ValueError(f"The {what} {path} is a folder: name a file in it.")
        if path.exists() and not path.is_file():  # it can be read only once
            raise ValueError(f"The {what} {path} is not a regular file: write it to one first.")
        if not path.is_file():
            raise FileNotFoundError(f"The {what} {path} does not exist{beside(path)}.")
        with path.open("rb") as file:  # an empty file cannot be mapped
            content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if path.stat().st_size else b""
        return JsonSource(content, f"{what} {path}")

    def parse(self) -> Any:
        """Decode everything with Python's own parser: slower, but supports NaN, any encoding, and numbers of any size.

        Raises:
            ValueError: it is not JSON.
        """
        try:
            return json.loads(bytes(self.content))
        except RecursionError:
            raise ValueError(f"The {self.name} is not COCO JSON: its brackets are nested too deeply.") from None
        except ValueError as error:
            raise ValueError(
                f"The {self.name} is not complete JSON, perhaps cut off while being written: {error}."
            ) from None

    def release(self) -> None:
        """Release the memory of the part of a file that was read; it can be read again."""
        if isinstance(self.content, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
            self.content.madvise(mmap.MADV_DONTNEED)


def _json_of(content: Any, what: str) -> bytes:
    def plain(value: Any) -> Any:
        if isinstance(value, bytes):
            return value.decode("ascii")
        if isinstance(value, np.ndarray | np.generic):
            return value.tolist()
        raise ValueError(f"objects of type {type(value).__name__}")

    try:
        return json.dumps(content, default=plain).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"The {what} contains something that is not valid in JSON: {error}.") from None


@contextmanager
def in_memory(source: Any, what: str, advice: str) -> Iterator[None]:
    """Report in a sentence what does not fit into memory, and what to do."""
    # glibc returns freed memory to the system and fetches it again for every chunk of rows, until a large block has been freed.
    with suppress(MemoryError):
        np.empty(_LARGEST_REUSED, dtype=np.uint8)
    try:
        yield
    except (MemoryError, OSError) as error:
        if isinstance(error, OSError) and error.errno != errno.ENOMEM:
            raise
        name = f" {source} ({Path(source).stat().st_size / 1e9:.3g} GB)" if isinstance(source, str | Path) else ""
        raise ValueError(f"This machine has too little memory for the {what}{name}: {advice}.") from None


@contextmanager
def no_garbage_collection() -> Iterator[None]:
    """Disable garbage collection while there are millions of rows, which have no reference cycles."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def decode_rows(
    rows: "msgspec.Raw | bytes | memoryview | mmap.mmap | list[Any]",
    kind: type[Row],
    convert: Callable[[Any], Row],
    *,
    release: Callable[[], None] = lambda: None,
) -> Iterator[list[Row]]:
    """Decode a JSON list of objects part by part.

    Args:
        rows: the list, as JSON or decoded.
        kind: type of a row, a `msgspec.Struct`.
        convert: converts values to rows, one by one, for parts with rows that are not of this kind, and for lists that are already
            decoded.
        release: called occasionally, when the JSON before the current part is no longer needed.

    Yields:
        The rows of each part.

    Raises:
        ValueError: the JSON is malformed.
    """
    if isinstance(rows, list):
        yield [convert(row) for row in rows]
        return
    decoder = msgspec.json.Decoder(list[kind])  # type: ignore[valid-type]
    view = memoryview(rows)
    start, size, released = bytes(view[:1000]).find(b"[") + 1, _CHUNK, 0
    while True:
        # An apparent boundary between two rows may be within a string or a row. Then the text before it is not valid JSON.
        between = _BETWEEN.search(view, start + size)
        end = between.start() + 1 if between else len(view)
        text = b"".join((b"[", view[start:end], b"]" if between else b""))
        try:
            decoded = decoder.decode(text)
        except (msgspec.DecodeError, RecursionError):
            try:
                loose = _decode(text)
            except ValueError:
                if between is None:
                    raise
                size *= 2
                continue
            decoded = [convert(row) for row in loose]
        yield decoded
        if between is None:
            return
        start, size = between.end(), _CHUNK
        if start - released > 1 << 26:
            released = start
            release()


def _decode(text: bytes) -> list[Any]:
    try:
        return msgspec.json.decode(text)
    except (msgspec.DecodeError, RecursionError):
        try:
            return json.loads(text)  # supports NaN and numbers of any size
        except RecursionError:
            raise ValueError("its brackets are nested too deeply") from None


def text_of(value: Any) -> msgspec.Raw:
    """Encode a decoded value as JSON again."""
    return msgspec.Raw(json.dumps(value).encode())
