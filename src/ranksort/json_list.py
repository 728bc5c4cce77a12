"""Files on disk that grow, and are valid at any time."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec


class GrowingFile:
    """A text file to which pieces are added; each piece overwrites the closing text of the previous one.

    However the process ends, the file holds all pieces added before. If a piece cannot be written, the file does not change.

    Args:
        path: path of the file; an existing one is replaced.
        opening: text at the start of the file.
        closing: text at its end.

    Raises:
        OSError: for example on a full disk, from every method. It names the file.
    """

    def __init__(self, path: Path, opening: str = "", closing: str = "") -> None:
        self.path, self._end, self._closing = path, 0, b""
        self._file = path.open("wb", buffering=0)
        self.append(opening, closing)

    def append(self, text: str, closing: str = "") -> None:
        """Add a piece and the new closing text; both are on disk when this returns."""
        added, ending = (part.encode("utf-8", "backslashreplace") for part in (text, closing))
        try:
            self._write(added + ending)
        except BaseException as error:
            if self._end:
                self._file.truncate(self._end)
                self._write(self._closing)
            if isinstance(error, OSError):
                error.filename = str(self.path)
            raise
        self._end, self._closing = self._end + len(added), ending

    def close(self) -> None:
        """Close the file; everything has been written already."""
        self._file.close()

    def _write(self, content: bytes) -> None:
        """Write all of it at the end; a single system call may write only a part."""
        self._file.seek(self._end)
        while content:
            content = content[self._file.write(content) :]


class JsonList(GrowingFile):
    """A list of JSON values, one per line.

    Args:
        path: path of the file.
        before: JSON before the list, if the list is the last member of an object.
        after: JSON after it.
    """

    def __init__(self, path: Path, before: str = "", after: str = "") -> None:
        self._after, self._separator = after, "\n"
        super().__init__(path, f"{before}[", f"]{after}\n")

    def extend(self, items: Iterable[Any]) -> None:
        """Add items; they are on disk when this returns."""
        lines = ",\n".join(map(to_json, items))
        if lines:
            self.append(self._separator + lines, f"\n]{self._after}\n")
            self._separator = ",\n"


_encode = msgspec.json.Encoder().encode  # several times faster than json


def to_json(item: Any) -> str:
    """JSON in one line."""
    try:
        return _encode(item).decode()
    except (UnicodeEncodeError, OverflowError):  # lone surrogates, as in file names, and integers of more than 64 bits
        return json.dumps(item)
