"""A JSON list on disk that grows, and is whole at every moment."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any


class JsonList:
    """Writes `json.dumps(items, indent=1)` piece by piece, each of them over the closing bracket of the last.

    Whatever ends the process, the file holds all items added before; where an item cannot be written, it stays as it was.

    Raises:
        OSError: on a full disk, say; by every method.
    """

    def __init__(self, path: Path) -> None:
        self.path, self._end = path, 0
        self._file = path.open("wb", buffering=0)
        self._append("[", "]\n")

    def extend(self, items: Sequence[Any]) -> None:
        """Add items, which are on the disk when this returns."""
        if items:
            lines = json.dumps(items, indent=1).removeprefix("[").removesuffix("\n]")
            self._append(lines if self._end == 1 else f",{lines}", "\n]\n")

    def close(self) -> None:
        """Close the file; nothing is left to be written."""
        self._file.close()

    def _append(self, text: str, closing: str) -> None:
        added = text.encode("ascii")
        try:
            self._write(added + closing.encode("ascii"))
        except BaseException:
            if self._end:
                self._file.truncate(self._end)
                self._write(b"]\n" if self._end == 1 else b"\n]\n")
            raise
        self._end += len(added)

    def _write(self, content: bytes) -> None:
        """Write at the end, all of it: one call of the system may take a part."""
        self._file.seek(self._end)
        while content:
            content = content[self._file.write(content) :]
