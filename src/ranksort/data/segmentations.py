"""Segmentations of COCO files: polygons and run-length encodings, kept as the JSON that they are until a mask is asked for."""

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import msgspec
import numpy as np
from pycocotools import mask as coco_mask

MAX_COORDINATE = 1e6  # of a polygon, in pixels: pycocotools needs memory in proportion to it
_MAX_PIXELS = 2**32 - 1  # of an image with masks: pycocotools counts in 32 bits
_NUMBERS = b"0123456789.- \t\r\n"
# A list of polygons without its numbers: at least one number each, an even number of them, and six in one of them.
_POLYGONS = re.compile(rb"\[(?=.*\[,,,,,)\[,(?:,,)*\](?:,\[,(?:,,)*\])*\]")


@dataclass(frozen=True)
class Packed(Sequence[bytes]):
    """N pieces of bytes in a few large blocks: a worker process that reads single ones does not copy the memory that they lie in.

    Attributes:
        blocks: the pieces one after the other, each within one block.
        starts: int64, of each block, in bytes from the first on.
        ends: int64 [N], of each piece, likewise.
    """

    blocks: list[bytes]
    starts: np.ndarray
    ends: np.ndarray

    @staticmethod
    def of(pieces: Iterable[Any]) -> "Packed":
        """Pack pieces that are bytes or buffers."""
        texts = list(
            map(bytes, pieces)
        )  # not views, which Python's garbage collection would look through again and again
        ends = np.cumsum(np.fromiter(map(len, texts), np.int64, len(texts)))
        return Packed([b"".join(texts)], np.zeros(1, dtype=np.int64), ends)

    @staticmethod
    def joined(parts: Sequence["Packed"]) -> "Packed":
        """Put several of them one after the other."""
        starts = [np.empty(0, dtype=np.int64)]
        ends = [np.empty(0, dtype=np.int64)]
        size = 0
        for part in parts:
            starts.append(part.starts + size)
            ends.append(part.ends + size)
            size += part.size
        blocks = [block for part in parts for block in part.blocks]
        return Packed(blocks, np.concatenate(starts), np.concatenate(ends))

    @property
    def size(self) -> int:
        """Of all pieces, in bytes."""
        return sum(map(len, self.blocks))

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, n: int) -> bytes:  # type: ignore[override]
        if not 0 <= n < len(self.ends):
            raise IndexError(n)  # by which iteration ends
        start, end = self.ends[n - 1] if n else 0, self.ends[n]
        block = np.searchsorted(self.starts, start, side="right") - 1
        return self.blocks[block][start - self.starts[block] : end - self.starts[block]]

    def select(self, rows: np.ndarray) -> "Packed":
        """Return those at some positions, int64 [M]."""
        return Packed.of([self[n] for n in rows.tolist()])

    def slices(self) -> Iterator[tuple[int, list[bytes]]]:
        """Go through all pieces by block: the position of the first, and the pieces."""
        bounds = np.searchsorted(self.ends, [*self.starts[1:], self.size], side="right")
        first = 0
        for block, start, bound in zip(self.blocks, self.starts, bounds.tolist(), strict=True):
            ends = [0, *(self.ends[first:bound] - start).tolist()]
            yield first, [block[a:b] for a, b in pairwise(ends)]
            first = bound


@dataclass
class CheckedSegmentations:
    """What there is to say about N segmentations.

    Attributes:
        missing: [N] bool: there is none.
        problems: why one is no good, by its position.
        is_empty: [N] bool: good, but without a pixel in the image; False where that was not looked at.
    """

    missing: np.ndarray
    problems: dict[int, str]
    is_empty: np.ndarray


def check_segmentations(
    packed: Packed, heights: np.ndarray, widths: np.ndarray, *, pixels: bool
) -> CheckedSegmentations:
    """Look whether segmentations are such that `decode_mask` takes them.

    Args:
        packed: N segmentations as JSON.
        heights, widths: [N] of their images, in pixels.
        pixels: look for masks without a pixel as well, for which polygons have to be drawn, 20 microseconds each. Run-length
            encodings are always counted.
    """
    missing, is_empty = np.zeros((2, len(packed)), dtype=bool)
    too_large = heights * widths > _MAX_PIXELS
    problems: dict[int, str] = {}
    for first, texts in packed.slices():
        of_kind = _by_kind(texts)
        missing[first + of_kind["none"]] = True
        problems |= {first + i: "is neither polygons nor an RLE" for i in of_kind["other"].tolist()}
        polygons = [texts[i] for i in of_kind["polygons"]]
        for i in range(len(polygons)) if pixels else _unusual_polygons(polygons):
            n, decoded = first + int(of_kind["polygons"][i]), _decode(polygons[i])
            problem = _polygon_problem(decoded)
            if problem == "":
                missing[n] = True
            elif problem:
                problems[n] = problem
            elif (
                pixels and heights[n] > 0 and widths[n] > 0 and not too_large[n]
            ):  # pycocotools never ends where one is 0
                is_empty[n] = _polygon_rle(decoded, int(heights[n]), int(widths[n]))[1] == 0
        rows = first + of_kind["rle"]
        areas, found = _rle_areas([texts[i] for i in of_kind["rle"]], heights[rows], widths[rows])
        problems |= {int(rows[i]): problem for i, problem in found.items()}
        is_empty[rows] = areas == 0
    for n in np.flatnonzero(too_large & ~missing).tolist():
        problems.setdefault(n, f"is a mask of a {widths[n]:g}x{heights[n]:g} image, which is too large for masks")
    return CheckedSegmentations(missing, problems, is_empty)


def encode_segmentations(
    packed: Packed, heights: np.ndarray, widths: np.ndarray
) -> tuple[list[str | bytes | None], np.ndarray]:
    """Take segmentations to COCO's compressed run lengths.

    Args: as of `check_segmentations`.

    Returns:
        N run lengths, None where a segmentation is no good, and int64 [N] how many pixels each has, -1 for those.
    """
    counts: list[str | bytes | None] = [None] * len(packed)
    areas = np.full(len(packed), -1, dtype=np.int64)
    for first, texts in packed.slices():
        of_kind = _by_kind(texts)
        for n in (first + of_kind["polygons"]).tolist():
            polygons = _decode(texts[n - first])
            if rle := polygon_rle(polygons, int(heights[n]), int(widths[n])):
                counts[n], areas[n] = rle
        rows = first + of_kind["rle"]
        of_rle = [texts[i] for i in of_kind["rle"]]
        areas[rows], problems = _rle_areas(of_rle, heights[rows], widths[rows])
        for i, (n, text) in enumerate(zip(rows.tolist(), of_rle, strict=True)):
            if i not in problems:
                runs = _decode(text)["counts"]
                size = [int(heights[n]), int(widths[n])]
                counts[n] = runs if isinstance(runs, str) else _compressed({"size": size, "counts": runs})["counts"]
    return counts, areas


def decode_mask(segmentation: bytes, height: int, width: int) -> np.ndarray:
    """Decode polygons, an uncompressed or a compressed RLE in which `check_segmentations` finds no problem.

    Returns:
        uint8 [height, width], 1 inside the object; the same as pycocotools' `annToMask`.
    """
    decoded = _decode(segmentation)
    counts = _polygon_rle(decoded, height, width)[0] if isinstance(decoded, list) else decoded["counts"]
    rle = {"size": [height, width], "counts": counts}
    return coco_mask.decode(_compressed(rle) if isinstance(counts, list) else rle)


def _compressed(rle: dict[str, Any]) -> dict[str, Any]:
    return coco_mask.frPyObjects(rle, *rle["size"])


def _decode(text: bytes) -> Any:
    try:
        return msgspec.json.decode(text)
    except msgspec.DecodeError:
        return json.loads(text)  # takes NaN and numbers of any size


def _by_kind(texts: list[bytes]) -> dict[str, np.ndarray]:
    """Where there are polygons, run-length encodings, nothing and other things."""
    kinds = np.array([text[0] if text else ord("n") for text in texts], dtype=np.uint8)
    signs = {"polygons": kinds == ord("["), "rle": kinds == ord("{"), "none": kinds == ord("n")}
    signs["other"] = ~np.logical_or.reduce(list(signs.values()))
    return {name: np.flatnonzero(column) for name, column in signs.items()}


def _unusual_polygons(texts: list[bytes]) -> list[int]:
    """Which of some lists have to be looked into, to say whether they are good polygons.

    Those of odd brackets and commas, and those with coordinates beyond MAX_COORDINATE, which have seven digits before the point.
    """
    joined = b";".join(texts)
    shapes = joined.translate(None, _NUMBERS).split(b";")
    if len(shapes) != len(texts):  # a string among them
        return list(range(len(texts)))
    usual = {shape: _POLYGONS.fullmatch(shape) is not None for shape in set(shapes)}
    unusual = set() if all(usual.values()) else {i for i, shape in enumerate(shapes) if not usual[shape]}
    signs = np.frombuffer(joined, np.uint8)
    is_digit = signs - np.uint8(ord("0")) < 10  # what is below wraps around
    seven = is_digit[1:]
    for step in (1, 2, 3):
        seven = seven[:-step] & seven[step:]
    long = np.flatnonzero(seven)
    long = long[~is_digit[long] & (signs[long] != ord("."))]  # the sign before the seven
    ends = np.cumsum(np.fromiter(map(len, texts), np.int64, len(texts)) + 1)
    return sorted(unusual.union(np.searchsorted(ends, long, side="right").tolist()))


def _polygon_problem(polygons: list[Any]) -> str | None:
    """Why a list is no good as polygons; "" where there are no coordinates at all."""
    if not all(isinstance(p, list) and len(p) % 2 == 0 and all(map(_is_number, p)) for p in polygons):
        return "has a polygon that is no list of finite x, y pairs"
    if not any(polygons):
        return ""
    if any(len(p) >= 6 for p in polygons):
        return None
    if len(polygons) >= 3 and all(len(p) == 2 for p in polygons):
        return "has a list of [x, y] points, where COCO has lists of polygons [x1, y1, x2, y2, ...]"
    return "has no polygon with three points"


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and -MAX_COORDINATE < value < MAX_COORDINATE


def polygon_rle(polygons: list[Any], height: int, width: int) -> tuple[bytes, int] | None:
    """Polygons as compressed run lengths, and how many pixels they have; None where they are no good."""
    return None if _polygon_problem(polygons) is not None else _polygon_rle(polygons, height, width)


def _polygon_rle(polygons: list[list[float]], height: int, width: int) -> tuple[bytes, int]:
    """Good polygons as compressed run lengths, and how many pixels they have."""
    # A polygon of one or two points has no area, and pycocotools would read one of two points as a box.
    drawn = [p for p in polygons if len(p) >= 6]
    rle = coco_mask.merge(coco_mask.frPyObjects(drawn, height, width))
    return rle["counts"], int(coco_mask.area(rle))


def _rle_areas(texts: list[bytes], heights: np.ndarray, widths: np.ndarray) -> tuple[np.ndarray, dict[int, str]]:
    """Pixels of N run-length encodings in JSON, int64 [N], -1 for those that are no good; and why they are not."""
    counts: list[Any] = []
    problems: dict[int, str] = {}
    for i, (text, height, width) in enumerate(zip(texts, heights.tolist(), widths.tolist(), strict=True)):
        rle = _decode(text)
        counts.append(rle.get("counts"))
        if rle.get("size") != [height, width]:
            problems[i] = f"is neither polygons nor an RLE of the size of its {width:g}x{height:g} image"
    areas = rle_areas(counts, (heights * widths).astype(np.int64))
    for i in np.flatnonzero(areas < 0).tolist():
        problems.setdefault(i, f"has a broken RLE, whose runs do not fill its {widths[i]:g}x{heights[i]:g} image")
    areas[list(problems)] = -1
    return areas, problems


def rle_areas(counts: Sequence[Any], pixels: np.ndarray) -> np.ndarray:
    """Areas of masks; -1 where the runs do not fill the image: pycocotools crashes on such RLEs, or never returns.

    In COCO's compressed form a run is a number in base 32, lowest digit first, a character a digit (48 + digit); bit 5
    of a digit says that more follow, bit 4 of the last one is the sign. From the fourth on, a run is given as the
    difference to the run before the last.

    Args:
        counts: N compressed RLEs, strings, or lists of the lengths of runs.
        pixels: [N] height times width of their images.

    Returns:
        int64 [N] pixels.
    """
    areas = np.full(len(counts), -1)
    for start in range(0, len(counts), 1000):  # as many as fit into the processor's cache
        chunk = slice(start, start + 1000)
        texts = [runs if type(runs) is str and runs and runs.isascii() else "~" for runs in counts[chunk]]
        areas[chunk] = _compressed_areas(texts, pixels[chunk])
    for n in np.flatnonzero(areas < 0).tolist():
        runs = counts[n]
        if type(runs) is list and all(type(run) is int and run >= 0 for run in runs) and sum(runs) == pixels[n]:
            areas[n] = sum(runs[1::2])
    return areas


def _compressed_areas(counts: list[str], pixels: np.ndarray) -> np.ndarray:
    """`rle_areas` of ASCII strings, all of them at the same time."""
    # A zero after each string makes its number of runs even where it was odd, and is left out elsewhere.
    digits = np.frombuffer(("0".join(counts) + "0").encode(), np.uint8) - np.uint8(48)  # wraps around below
    zeros = np.cumsum(np.fromiter(map(len, counts), np.int64, len(counts)) + 1) - 1
    begins = np.append(0, zeros[:-1] + 1)
    bad = (np.maximum.reduceat(digits, begins) > 63) | (digits[zeros - 1] > 31)
    digits[zeros - 1] &= 31
    is_end = digits < 32
    num_runs = np.add.reduceat(is_end.view(np.uint8), begins, dtype=np.int64) - 1
    values = _run_values(digits, is_end, zeros, bad)
    is_odd = num_runs % 2 == 1
    is_end[zeros] = is_odd
    pairs = values[is_end].reshape(-1, 2)  # of background and object
    num_pairs = (num_runs + 1) // 2
    starts = np.cumsum(num_pairs) - num_pairs
    first = pairs[starts, 0]
    pairs[starts, 0] = 0  # no other run is given as a difference to the first one
    background, areas = _sums_of_runs(pairs, starts, is_odd, bad)
    bad |= (first < 0) | (first + background + areas != pixels)
    return np.where(bad, -1, areas)


def _run_values(digits: np.ndarray, is_end: np.ndarray, zeros: np.ndarray, bad: np.ndarray) -> np.ndarray:
    """int32: at the last digit of each run what it says; marks in `bad` the strings with runs of too many digits."""
    low = digits & 31
    signed = (low ^ 16).view(np.int8) - np.int8(16)  # the highest digit has the sign
    follows = ~is_end[:-1]  # a digit of the same run
    values = signed.astype(np.int32)
    two = signed[1:].astype(np.int16)
    values[1:] += follows * (two * np.int16(31) + low[:-1])  # 32 times the second digit instead of once
    ends = np.flatnonzero(is_end[2:] & follows[1:] & follows[:-1]) + 2  # of runs of three digits or more
    for position in range(2, 6):
        values[ends] = values[ends] * 32 + low[ends - position]
        ends = ends[~is_end[ends - position - 1]]
    bad[np.searchsorted(zeros, ends)] = True
    return values


def _sums_of_runs(
    pairs: np.ndarray, starts: np.ndarray, is_odd: np.ndarray, bad: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Sums of the background and the object runs of N masks, int64 [N] each.

    Args:
        pairs: int32 [P, 2] differences between the runs, of background and object, less than 2^30.
        starts: [N] the first pairs of the masks.
        is_odd: [N] whether the last object run does not exist.
        bad: [N], marked where a run is negative.
    """
    num_pairs = np.diff(starts, append=len(pairs))
    lasts = starts + num_pairs - 1
    # Both runs in one number, the object's in its upper half: as long as none is negative, neither disturbs the other.
    runs = np.cumsum((pairs[:, 1].astype(np.int64) << 32) + pairs[:, 0])
    runs -= np.repeat(np.append(0, runs[lasts[:-1]]), num_pairs)
    background, objects = runs.astype("<i8", copy=False).view("<i4").reshape(-1, 2).T
    bad |= np.minimum.reduceat(np.minimum(background, objects), starts) < 0
    objects[lasts[is_odd]] = 0
    return np.add.reduceat(background, starts, dtype=np.int64), np.add.reduceat(objects, starts, dtype=np.int64)
