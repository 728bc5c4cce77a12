"""Ids of images, categories and annotations: integers, integral floats (a habit of exporters that use pandas) or strings."""

import contextlib
from array import array
from collections.abc import Sequence
from typing import Any

import numpy as np

Id = int | str


def canonical(value: Any) -> Id | None:
    """Return the id that a JSON value stands for: 3 for 3.0, a string as it is; None if it is not an id."""
    if type(value) in (int, str):
        return value
    return int(value) if isinstance(value, float) and value.is_integer() else None


def spelled(value: Id) -> Id:
    """Return the integer that a string of digits spells, and any other id as it is."""
    digits = isinstance(value, str) and value.isascii() and value.removeprefix("-").isdigit()
    return int(value) if digits else value


def sort_key(value: Id) -> tuple[bool, Id]:
    """Order ids: numbers first, then strings."""
    return isinstance(value, str), value


class IdIndex:
    """Finds ids among N known ones.

    A string of digits and the integer that it spells are the same id, unless both are known.

    Args:
        ids: the known ids, each once.
    """

    def __init__(self, ids: Sequence[Id]) -> None:
        self._place = {id: n for n, id in enumerate(ids)}
        # Integers in a small range, which nearly all data sets have, are looked up in a table.
        self._first, self._table = 0, np.empty(0, dtype=np.int64)
        if ids and all(type(id) is int and abs(id) < 2**62 for id in ids):
            numbers = np.array(ids, dtype=np.int64)
            spread = int(numbers.max()) - int(numbers.min())
            if spread < 16 * len(ids) + 10_000_000:
                self._first = int(numbers.min())
                self._table = np.full(spread + 2, -1, dtype=np.int64)  # the last entry is for what is unknown
                self._table[numbers - self._first] = np.arange(len(ids))

    def find(self, values: Sequence[Any]) -> np.ndarray:
        """Return int64 [V]: the places of some ids among the known ones, -1 for those that are not known.

        `values` are ids as `coco_rows` takes them from JSON, V in number: without booleans, which to Python are integers.
        """
        if len(self._table):
            with contextlib.suppress(
                TypeError, OverflowError
            ):  # by which an array refuses all but integers of its size
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
