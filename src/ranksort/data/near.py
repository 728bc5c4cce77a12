"""Suggestions for names of missing files."""

import os
import unicodedata
from collections.abc import Sequence
from pathlib import Path, PurePath


class Near:
    """Find paths that differ only in case, the encoding of accents or the suffix; folders are listed once."""

    def __init__(self) -> None:
        self._names: dict[Path, dict[str, str]] = {}

    def find(self, folder: Path, parts: Sequence[str]) -> str:
        """What a folder has instead of a missing path, with `/`; "" for nothing."""
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
    """What to do about a similar name, as the end of a sentence."""
    alike = unicodedata.normalize("NFC", near).endswith(unicodedata.normalize("NFC", wanted)) and not near.endswith(
        wanted
    )
    looks = ", which only looks the same: its accents are encoded differently (NFC and NFD)" if alike else ""
    return f"; there is {near}{looks}: rename it, or correct the annotation file"


def beside(path: Path) -> str:
    """A similar name to that of a missing path, as part of a sentence; "" for nothing."""
    near = Near().find(path.parent, [path.name])
    return f" (there is {path.parent / near})" if near else ""


def _key(name: str) -> str:
    """The part of a name that does not depend on case, encoding and suffix."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", PurePath(name).stem).casefold())
