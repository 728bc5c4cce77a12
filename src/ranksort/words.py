"""Helpers for printed text."""

from collections.abc import Callable, Sequence
from typing import Any


def counted(number: int, noun: str) -> str:
    """ "1 image", "2 images", "2 classes"."""
    ending = "" if number == 1 else "es" if noun.endswith("s") else "s"
    return f"{number} {noun}{ending}"


def listed(items: Sequence[Any], most: int | None = 5, shown: Callable[[Any], str] = str) -> str:
    """ "1, 2, 3", or "1, 2, 3, 4, 5, ..." if there are more than `most`."""
    first = items[:most]
    return ", ".join([*map(shown, first), *(["..."] if len(first) < len(items) else [])])
