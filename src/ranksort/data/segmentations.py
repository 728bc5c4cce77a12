"""Segmentations of COCO files: polygons and run-length encodings, kept as JSON until a mask is needed."""

import json
import re
from collections.abc import Iterator, Sequence
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
    """N pieces of bytes in a few large blocks, so that worker processes that read single pieces do not copy their memory.

    Attributes:
        blocks: the pieces one after the other, each within one block.
        starts: int64, start of each block, in bytes counted over all blocks.
        ends: int64 [N], end of each piece, likewise.
    """

    blocks: list[bytes]
    starts: np.ndarray
    ends: np.ndarray

    @staticmethod
    def of(pieces: Sequence[Any]) -> "Packed":
        """Pack pieces that are bytes or buffers, or strings of ASCII."""
        ends = np.cumsum(np.fromiter(map(len, pieces), np.int64, len(pieces)))
        are_strings = len(pieces) > 0 and isinstance(pieces[0], str)
        block = "".join(pieces).encode("ascii") if are_strings else b"".join(pieces)
        return Packed([block], np.zeros(1, dtype=np.int64), ends)

    @staticmethod
    def joined(parts: Sequence["Packed"]) -> "Packed":
        """Concatenate several of them."""
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
        """Total size in bytes."""
        return sum(map(len, self.blocks))

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, n: int) -> bytes:  # type: ignore[override]
        if not 0 <= n < len(self.ends):
            raise IndexError(n)  # ends iteration
        start, end = self.ends[n - 1] if n else 0, self.ends[n]
        block = np.searchsorted(self.starts, start, side="right") - 1
        return self.blocks[block][start - self.starts[block] : end - self.starts[block]]

    def take(self, rows: np.ndarray) -> list[bytes]:
        """The pieces at some positions, int64 [M], faster than one by one."""
        ends = self.ends[rows]
        starts = np.where(rows > 0, self.ends[rows - 1], 0)
        block = np.searchsorted(self.starts, starts, side="right") - 1
        places = (column.tolist() for column in (block, starts - self.starts[block], ends - self.starts[block]))
        return [self.blocks[b][start:end] for b, start, end in zip(*places, strict=True)]

    def select(self, rows: np.ndarray) -> "Packed":
        """The pieces at some positions, int64 [M]."""
        return Packed.of(self.take(rows))

    def slices(self) -> Iterator[tuple[int, list[bytes]]]:
        """Iterate over blocks: the position of the first piece, and the pieces."""
        bounds = np.searchsorted(self.ends, [*self.starts[1:], self.size], side="right")
        first = 0
        for block, start, bound in zip(self.blocks, self.starts, bounds.tolist(), strict=True):
            ends = [0, *(self.ends[first:bound] - start).tolist()]
            yield first, [block[a:b] for a, b in pairwise(ends)]
            first = bound


@dataclass
class CheckedSegmentations:
    """The result of checking N segmentations.

    Attributes:
        missing: [N] bool: there is none.
        problems: position -> why the segmentation is invalid.
        areas: int64 [N] pixels of each mask; -1 if not counted or invalid.
    """

    missing: np.ndarray
    problems: dict[int, str]
    areas: np.ndarray


def check_segmentations(
    packed: Packed, heights: np.ndarray, widths: np.ndarray, *, pixels: bool
) -> CheckedSegmentations:
    """Check whether `decode_mask` can decode segmentations.

    Args:
        packed: N segmentations as JSON.
        heights: [N] heights of their images, in pixels.
        widths: [N] widths of their images.
        pixels: also count the pixels of polygons, which have to be drawn for that, 20 microseconds each. Those of run-length encodings
            are always counted.
    """
    missing, all_areas = np.zeros(len(packed), dtype=bool), np.full(len(packed), -1)
    too_large = heights * widths > _MAX_PIXELS
    problems: dict[int, str] = {}
    for first, texts in packed.slices():
        starts = np.array([text[0] if text else ord("n") for text in texts], dtype=np.uint8)  # as in null
        missing[first:][: len(texts)] = starts == ord("n")
        for i in np.flatnonzero(~np.isin(starts, list(b"n[{"))).tolist():
            problems[first + i] = "is neither polygons nor an RLE"
        places = np.flatnonzero(starts == ord("[")).tolist()
        polygons = [texts[i] for i in places]
        for i in range(len(polygons)) if pixels else _unusual_polygons(polygons):
            n, decoded = first + places[i], _decode(polygons[i])
            problem = _polygon_problem(decoded)
            if problem == "":
                missing[n] = True
            elif problem:
                problems[n] = problem
            elif pixels and min(heights[n], widths[n]) > 0 and not too_large[n]:  # at 0, pycocotools never returns
                all_areas[n] = coco_mask.area(_encode_polygons(decoded, int(heights[n]), int(widths[n])))
        places = np.flatnonzero(starts == ord("{")).tolist()
        rows = first + np.array(places, dtype=np.int64)
        areas, found = _rle_areas([texts[i] for i in places], heights[rows], widths[rows])
        problems |= {int(rows[i]): problem for i, problem in found.items()}
        all_areas[rows] = areas
    for n in np.flatnonzero(too_large & ~missing).tolist():
        problems.setdefault(n, f"is a mask of a {widths[n]:g}x{heights[n]:g} image, which is too large for masks")
    return CheckedSegmentations(missing, problems, all_areas)


def encode_segmentations(
    packed: Packed, heights: np.ndarray, widths: np.ndarray, areas: np.ndarray
) -> tuple[Packed, np.ndarray]:
    """Convert valid segmentations (see `check_segmentations`) to COCO's compressed run lengths.

    Args:
        packed: N segmentations as JSON.
        heights: [N] heights of their images, in pixels.
        widths: [N] widths of their images.
        areas: int64 [N] known pixel counts, -1 for unknown ones, as in `CheckedSegmentations`.

    Returns:
        N compressed run lengths, and int64 [N], the pixel count of each.
    """
    parts, areas = [Packed.of([])], areas.copy()
    for first, texts in packed.slices():
        height, width, known = (column[first : first + len(texts)] for column in (heights, widths, areas))
        rles = map(_encode, texts, height.tolist(), width.tolist())
        counts = [runs if isinstance(runs, str) else runs.decode() for runs in (rle["counts"] for rle in rles)]
        parts.append(Packed.of(counts))
        unknown = np.flatnonzero(known < 0)
        known[unknown] = rle_areas([counts[n] for n in unknown.tolist()], (height * width)[unknown])
    return Packed.joined(parts), areas


def decode_mask(segmentation: bytes, height: int, width: int) -> np.ndarray:
    """Decode polygons or a (compressed) RLE that are valid according to `check_segmentations`.

    Returns:
        uint8 [height, width], 1 inside the object; the same as pycocotools' `annToMask`.
    """
    return coco_mask.decode(_encode(segmentation, height, width))


def _encode(segmentation: bytes, height: int, width: int) -> dict[str, Any]:
    """A valid segmentation as a compressed RLE."""
    decoded = _decode(segmentation)
    if isinstance(decoded, list):
        return _encode_polygons(decoded, height, width)
    rle = {"size": [height, width], "counts": decoded["counts"]}
    return compress(rle) if isinstance(rle["counts"], list) else rle


def compress(rle: dict[str, Any]) -> dict[str, Any]:
    """Convert an RLE with a list of counts to one with bytes."""
    return coco_mask.frPyObjects(rle, *rle["size"])


def _decode(text: bytes) -> Any:
    try:
        return msgspec.json.decode(text)
    except msgspec.DecodeError:
        return json.loads(text)  # supports NaN and numbers of any size


def _unusual_polygons(texts: list[bytes]) -> list[int]:
    """Which lists have to be parsed to tell whether they are valid polygons.

    Those with unusual brackets and commas, and those with coordinates beyond MAX_COORDINATE, with seven digits before the point.
    """
    joined = b";".join(texts)
    shapes = joined.translate(None, _NUMBERS).split(b";")
    if len(shapes) != len(texts):  # a string among them
        return list(range(len(texts)))
    usual = {shape: _POLYGONS.fullmatch(shape) is not None for shape in set(shapes)}
    unusual = set() if all(usual.values()) else {i for i, shape in enumerate(shapes) if not usual[shape]}
    signs = np.frombuffer(joined, np.uint8)
    is_digit = signs - np.uint8(ord("0")) < 10  # lower values wrap around
    seven = is_digit[1:]
    for step in (1, 2, 3):
        seven = seven[:-step] & seven[step:]
    long = np.flatnonzero(seven)
    long = long[~is_digit[long] & (signs[long] != ord("."))]  # the sign before the seven
    ends = np.cumsum(np.fromiter(map(len, texts), np.int64, len(texts)) + 1)
    return sorted(unusual.union(np.searchsorted(ends, long, side="right").tolist()))


def _polygon_problem(polygons: list[Any]) -> str | None:
    """Why a list is not valid polygons; "" if there are no coordinates at all."""
    if not all(isinstance(p, list) and len(p) % 2 == 0 and all(map(_is_number, p)) for p in polygons):
        return "has a polygon that is not a list of finite x, y pairs"
    if not any(polygons):
        return ""
    if any(len(p) >= 6 for p in polygons):
        return None
    if len(polygons) >= 3 and all(len(p) == 2 for p in polygons):
        return "has a list of [x, y] points instead of a list of polygons [x1, y1, x2, y2, ...]"
    return "has no polygon with three points"


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and -MAX_COORDINATE < value < MAX_COORDINATE


def are_polygons(value: Any) -> bool:
    """Whether this is a list of polygons, at least one of them with three points or more."""
    return isinstance(value, list) and _polygon_problem(value) is None


def encode_polygons(polygons: list[Any], height: int, width: int) -> dict[str, Any] | None:
    """Polygons as a compressed RLE; None if they are invalid."""
    return None if _polygon_problem(polygons) is not None else _encode_polygons(polygons, height, width)


def _encode_polygons(polygons: list[list[float]], height: int, width: int) -> dict[str, Any]:
    # A polygon of one or two points has no area, and pycocotools would read one of two points as a box.
    drawn = [p for p in polygons if len(p) >= 6]
    return coco_mask.merge(coco_mask.frPyObjects(drawn, height, width))


def _rle_areas(texts: list[bytes], heights: np.ndarray, widths: np.ndarray) -> tuple[np.ndarray, dict[int, str]]:
    """Pixel counts of N run-length encodings in JSON, int64 [N], -1 for invalid ones; and why they are invalid."""
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
    """Areas of masks; -1 if the runs do not fill the image: pycocotools crashes on such RLEs, or never returns.

    In COCO's compressed form a run is a number in base 32, lowest digit first, one character per digit (48 + digit); bit 5 of a digit
    means that more follow, bit 4 of the last one is the sign. From the fourth on, a run is the difference to the last but one.

    Args:
        counts: N compressed RLEs, strings, or lists of run lengths.
        pixels: [N] height times width of their images.

    Returns:
        int64 [N] pixels.
    """
    areas = np.full(len(counts), -1)
    for start in range(0, len(counts), 2000):  # as many as fit into the processor's cache
        chunk = slice(start, start + 2000)
        areas[chunk] = _compressed_areas(counts[chunk], pixels[chunk])
    for n in np.flatnonzero(areas < 0).tolist():
        runs = counts[n]
        if type(runs) is list and all(type(run) is int and run >= 0 for run in runs) and sum(runs) == pixels[n]:
            areas[n] = sum(runs[1::2])
    return areas


_END, _LAST = ord("0"), ord("O")  # ends a run; from "P" on, more digits follow
_SIGNED = bytes((c - _END ^ 16) - 16 & 255 for c in range(_LAST + 1)).ljust(256, b"\0")
_FOLLOWED = bytes(range(_LAST + 1, 256))


def _compressed_areas(counts: Sequence[Any], pixels: np.ndarray) -> np.ndarray:
    """`rle_areas` of strings, all at once; -1 for anything else."""
    try:
        text = "00".join([*counts, ""])  # two more runs per mask
    except TypeError:
        return _compressed_areas([runs if isinstance(runs, str) else "" for runs in counts], pixels)
    if not text.isascii():
        return _compressed_areas([runs if runs.isascii() else "" for runs in counts], pixels)
    code = text.encode()
    digits = np.frombuffer(code, np.uint8)
    lengths = np.fromiter(map(len, counts), np.int64, len(counts))
    stops = np.cumsum(lengths + 2) - 2
    bad = (lengths == 0) | (digits[stops - 1] > _LAST)
    if digits.min() < _END or digits.max() >= _END + 64:
        bad |= np.maximum.reduceat(digits - np.uint8(_END), stops - lengths) > 63  # lower values wrap around
    # Runs from their last digit only, to which the others are added. A run changes by less than 2^30, so that the first one below 0 or
    # above 2^31 is negative in 32 bits.
    values = np.frombuffer(code.translate(_SIGNED, _FOLLOWED), np.int8).astype(np.int32)
    followed = np.flatnonzero(digits > _LAST)
    ends = stops - np.searchsorted(followed, stops) + 2  # of the masks among the runs
    low = digits.take(followed) - np.uint8(_LAST + 1)
    run = followed - np.arange(len(followed))
    for _ in range(5):
        values[run] = 32 * values.take(run) + low  # here the last digit of a run is used
        earlier = np.flatnonzero(run[1:] == run[:-1])
        run, low = run.take(earlier), low.take(earlier)
    bad[np.searchsorted(ends, run, side="right")] = True
    begins = np.append(0, ends[:-1])
    first = values[begins].astype(np.int64)
    values[begins] = 0  # no other run is a difference to the first one
    values[ends - 2] = values[ends - 1] = 0
    # Background and object runs of a mask are those at even and odd places, or the other way round.
    sums = []
    for parity in (0, 1):
        differences = values[parity::2]
        starts = (begins + 1 - parity) // 2
        lasts = np.append(starts[1:], len(differences)) - 1  # one of the two more runs, which takes the sum back to 0
        differences[lasts] = -np.add.reduceat(differences, starts, dtype=np.int32)
        runs = differences.cumsum(dtype=np.int32)
        if runs.min() < 0:
            bad |= np.minimum.reduceat(runs, starts) < 0
        fits = int(runs.max()) * int(lengths.max()) < 1 << 31  # 64 bits take twice as long
        sums.append(np.add.reduceat(runs, starts, dtype=np.int32 if fits else np.int64))
    areas = np.where(begins % 2, sums[0], sums[1])
    bad |= (first < 0) | (first + sums[0] + sums[1] != pixels)
    return np.where(bad, -1, areas)
