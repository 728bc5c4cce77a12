"""Files on disk that grow, and are whole at every moment."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec


class GrowingFile:
    """A text file, each piece of which is written over the closing words of the last.

    Whatever ends the process, the file holds all pieces added before; where a piece cannot be written, it stays as it was.

    Args:
        path: of the file, which replaces one that is there.
        opening, closing: what it begins and ends with.

    Raises:
        OSError: on a full disk, say; by every method. It names the file.
    """

    def __init__(self, path: Path, opening: str = "", closing: str = "") -> None:
        self.path, self._end, self._closing = path, 0, b""
        self._file = path.open("wb", buffering=0)
        self.append(opening, closing)

    def append(self, text: str, closing: str = "") -> None:
        """Add a piece, which is on the disk when this returns, and what the file ends with now."""
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
        """Close the file; nothing is left to be written."""
        self._file.close()

    def _write(self, content: bytes) -> None:
        """Write at the end, all of it: one call of the system may take a part."""
        self._file.seek(self._end)
        while content:
            content = content[self._file.write(content) :]


class JsonList(GrowingFile):
    """A list of JSON values, one a line.

    Args:
        path: of the file.
        before, after: JSON around the list, where it is the last member of an object.
    """

    def __init__(self, path: Path, before: str = "", after: str = "") -> None:
        self._after, self._separator = after, "\n"
        super().__init__(path, f"{before}[", f"]{after}\n")

    def extend(self, items: Iterable[Any]) -> None:
        """Add items, which are on the disk when this returns."""
        lines = ",\n".join(map(to_json, items))
        if lines:
            self.append(self._separator + lines, f"\n]{self._after}\n")
            self._separator = ",\n"


def to_json(item: Any) -> str:
    """JSON in one line."""
    try:
        return msgspec.json.encode(item).decode()  # ten times faster than json
    except UnicodeEncodeError:  # the name of a file may be no Unicode
        return json.dumps(item)
