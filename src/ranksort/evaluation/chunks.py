"""A JSON list, of a file or in memory, in parts which fit into the processor's cache once they are decoded."""

import json
from collections.abc import Iterator
from io import RawIOBase
from pathlib import Path
from typing import Any

import numpy as np

CHUNK = 2**19  # bytes of a file at a time, about
CHUNK_ROWS = 4000  # of what is in memory


def json_chunks(source: Any, what: str) -> Iterator[bytes | memoryview]:
    """JSON lists of the rows that follow each other in a list, one at least; each is valid until the next one.

    What is in the file is not checked here: if it is no JSON list, then one of the chunks is none.

    Args:
        source: path of a JSON file, or its content, where pycocotools' bytes and numpy's numbers are welcome.
        what: its name in a complaint.

    Raises:
        FileNotFoundError: `source` is no file.
        ValueError: it is neither a path nor a list, or has no place in JSON.
    """
    if isinstance(source, str | Path):
        with existing_file(source, what).open("rb", buffering=0) as file:
            yield from _split(file)
    elif isinstance(source, list):
        for start in range(0, max(len(source), 1), CHUNK_ROWS):
            yield to_json(source[start : start + CHUNK_ROWS], what)
    else:
        raise ValueError(f"The {what} must be a JSON list of objects, as COCO's are.")


def _split(file: RawIOBase) -> Iterator[memoryview]:
    """A JSON list of objects as shorter ones of about `CHUNK` bytes, each valid until the next one.

    A list is cut where an object seems to end and the next one to begin. Should that be inside of a row, the left part
    is no JSON, and whoever decodes it notices.
    """
    buffer, filled = bytearray(CHUNK), 0
    while count := file.readinto(memoryview(buffer)[filled:]):
        filled += count
        end, start = _last_cut(buffer, filled)
        if end:
            rest = b"[" + buffer[start:filled]
            buffer[end : end + 1] = b"]"
            yield memoryview(buffer)[: end + 1]
            filled = len(rest)
            buffer[:filled] = rest
        elif filled == len(buffer):
            buffer = buffer + bytes(filled)  # so that a row of any length is read in linear time
    yield memoryview(buffer)[:filled]


def _last_cut(text: bytearray, length: int) -> tuple[int, int]:
    """Where the last object ends which another one follows, and where that starts; zeros if there is none."""
    start = length
    while (start := text.rfind(b"{", 0, start)) > 0:
        before = text[max(start - 99, 0) : start].rstrip()
        if before.endswith(b",") and before[:-1].rstrip().endswith(b"}"):
            return text.rindex(b"}", 0, start) + 1, start
    return 0, 0


def existing_file(source: str | Path, what: str) -> Path:
    """The path of a file.

    Raises:
        FileNotFoundError: there is none.
    """
    path = Path(source)
    if not path.is_file():
        raise FileNotFoundError(f"There is no {what} file {path}.")
    return path


def to_json(content: Any, what: str) -> bytes:
    """JSON of what is in memory, with pycocotools' bytes as strings and numpy's numbers as numbers."""

    def plain(value: Any) -> Any:
        if isinstance(value, bytes):
            return value.decode("ascii")
        if isinstance(value, np.ndarray | np.generic):
            return value.tolist()
        raise ValueError(f"objects of type {type(value).__name__}")

    try:
        return json.dumps(content, default=plain).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"The {what} hold something that has no place in JSON: {error}.") from None
