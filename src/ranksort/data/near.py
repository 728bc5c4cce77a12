"""What may have been meant by the name of a file that is not there."""

import os
import unicodedata
from collections.abc import Sequence
from pathlib import Path, PurePath


class Near:
    """Finds paths that differ in the case of letters, the encoding of accents or the suffix alone; folders are listed once."""

    def __init__(self) -> None:
        self._names: dict[Path, dict[str, str]] = {}

    def find(self, folder: Path, parts: Sequence[str]) -> str:
        """Say what there is in a folder instead of a path that is not there, with `/`; "" for nothing."""
        found: list[str] = []
        for part in parts:
            place = folder.joinpath(*found)
            near = part if os.path.lexists(place / part) else self._listing(place).get(_key(part))
            if near is None:
                return ""
            found.append(near)
        return "/".join(found) if found != list(parts) else ""

    def _listing(self, folder: Path) -> dict[str, str]:
        if folder not in self._names:
            try:
                self._names[folder] = {_key(name): name for name in sorted(os.listdir(folder))}
            except OSError:
                self._names[folder] = {}
        return self._names[folder]


def rename(near: str, wanted: str) -> str:
    """Say what to do about a name that nearly is the one wanted, as the end of a sentence."""
    alike = unicodedata.normalize("NFC", near).endswith(unicodedata.normalize("NFC", wanted)) and not near.endswith(
        wanted
    )
    looks = ", which only looks the same: its accents are encoded in another way (NFC and NFD)" if alike else ""
    return f"; there is {near}{looks}: rename it, or change the file's name for it"


def beside(path: Path) -> str:
    """Say what there is of nearly the name of a path that is not there, as part of a sentence; "" for nothing."""
    near = Near().find(path.parent, [path.name])
    return f" (there is {path.parent / near})" if near else ""


def _key(name: str) -> str:
    """What remains of a name whatever its case, encoding and suffix."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", PurePath(name).stem).casefold())
