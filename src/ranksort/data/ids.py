"""Ids of images, categories and annotations: integers, integral floats (a habit of exporters that use pandas) or strings."""

import contextlib
from array import array
from collections.abc import Sequence
from typing import Any

import numpy as np

Id = int | str
_MOST_DIGITS = 4300  # that Python converts; JSON has no larger integers either


def canonical(value: Any) -> Id | None:
    """The id for a JSON value: 3 for 3.0, a string unchanged; None if it is not an id."""
    if type(value) in (int, str):
        return value
    return int(value) if isinstance(value, float) and value.is_integer() else None


def spelled(value: Id) -> Id:
    """The integer for a string of digits, if not of thousands of them; any other id unchanged."""
    if isinstance(value, str) and len(value) < _MOST_DIGITS and value.isascii() and value.removeprefix("-").isdigit():
        return int(value)
    return value


def sort_key(value: Id) -> tuple[bool, Id]:
    """Order ids: numbers first, then strings."""
    return isinstance(value, str), value


class IdIndex:
    """Look up ids among N known ones.

    A string of digits and the corresponding integer are the same id, unless both are known.

    Args:
        ids: the known ids, each once.
    """

    def __init__(self, ids: Sequence[Id]) -> None:
        self._place = {id: n for n, id in enumerate(ids)}
        # Integers in a small range, as in nearly all data sets, are looked up in a table.
        self._first, self._table = 0, np.empty(0, dtype=np.int64)
        if ids and all(type(id) is int and abs(id) < 2**62 for id in ids):
            numbers = np.array(ids, dtype=np.int64)
            spread = int(numbers.max()) - int(numbers.min())
            if spread < 16 * len(ids) + 10_000_000:
                self._first = int(numbers.min())
                self._table = np.full(spread + 2, -1, dtype=np.int64)  # the last entry is for unknown ids
                self._table[numbers - self._first] = np.arange(len(ids))

    def find(self, values: Sequence[Any]) -> np.ndarray:
        """The positions of V ids among the known ones, int64 [V], -1 for unknown ones.

        `values` are ids as read by `coco_rows`: without booleans, which are integers in Python.
        """
        if len(self._table):
            # An array raises these for anything but integers of its size.
            with contextlib.suppress(TypeError, OverflowError):
                below = np.frombuffer(array("q", values), np.int64) - self._first
                return self._table[np.where((below >= 0) & (below < len(self._table) - 1), below, -1)]
        places: dict[Any, int] = {}
        result = np.empty(len(values), dtype=np.int64)
        for n, value in enumerate(values):
            if (type(value), value) not in places:
                places[type(value), value] = self._find_one(value)
            result[n] = places[type(value), value]
        return result

    def _find_one(self, value: Any) -> int:
        id = canonical(value)
        if id is None:
            return -1
        if id in self._place:
            return self._place[id]
        return self._place.get(spelled(id) if isinstance(id, str) else str(id), -1)
