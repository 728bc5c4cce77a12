"""Rows of a large JSON list, a few megabytes at a time: their columns are kept, the rows are not."""

import json
import re
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import msgspec

Row = TypeVar("Row")
_CHUNK = 1 << 22  # bytes: what fits into the processor's cache with the rows made of it
_BETWEEN = re.compile(rb"\}\s*,\s*(?=\{)")


def decode_rows(
    rows: "msgspec.Raw | memoryview | list[Any]", kind: type[Row], convert: Callable[[Any], Row], chunk: int = _CHUNK
) -> Iterator[list[Row]]:
    """Decode a JSON list of objects part by part.

    Args:
        rows: the list, as JSON or decoded.
        kind: what a row should be, a `msgspec.Struct`.
        convert: takes what the rows of a part hold, where not all of them are of this kind, to rows, one by one. A list that is
            already decoded goes through it as a whole.
        chunk: size of a part in bytes.

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
    start, size = view.tobytes()[: len(view) if len(view) < 64 else 64].find(b"[") + 1, chunk
    while True:
        # What looks like the place between two rows may be within a string or a row. Then the text before is no JSON.
        between = _BETWEEN.search(view, start + size)
        end = between.start() + 1 if between else len(view)
        text = b"".join((b"[", view[start:end], b"]" if between else b""))
        try:
            yield decoder.decode(text)
        except (msgspec.DecodeError, RecursionError):
            try:
                loose = _decode(text)
            except ValueError:
                if between is None:
                    raise
                size *= 2
                continue
            yield [convert(row) for row in loose]
        if between is None:
            return
        start, size = between.end(), chunk


def _decode(text: bytes) -> list[Any]:
    try:
        return msgspec.json.decode(text)
    except (msgspec.DecodeError, RecursionError):
        return json.loads(text)  # takes NaN and numbers of any size


def text_of(value: Any) -> "msgspec.Raw":
    """A decoded value as JSON again."""
    return msgspec.Raw(json.dumps(value).encode())
