"""Large images in tiles: where they lie, and how their detections become those of the image.

Neighbouring tiles share a strip, so that an object smaller than the strip is whole in one of them. Three rules follow:

1. What a tile sees cut off at its border, but narrower than the strip, its neighbour sees better: it is dropped.
2. Two detections of different tiles are of one object if they agree within what both tiles see.
3. Of such two the better one is kept; if both are cut off, what they enclose together.
"""

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask

from .result import Prediction

_MARGIN = 0.01  # of a tile's side: a box which ends this close to the border is cut off by it
_AGREEMENT = 0.5  # IoU


@dataclass(frozen=True)
class Tiles:
    """T tiles of an image.

    Attributes:
        boxes: int [T, 4], x1, y1, x2, y2 in pixels of the image.
        shared: int [T, 4], how many pixels the neighbour reaches into the tile from the left, the top, the right and the bottom; -1
            where the image ends.
    """

    boxes: np.ndarray
    shared: np.ndarray

    def __len__(self) -> int:
        return len(self.boxes)


def cover(height: int, width: int, side: int, overlap: float) -> Tiles:
    """Cover an image with squares, or rectangles where it is smaller; evenly, so that neighbours share `overlap` of a side or more."""
    columns, rows = _spans(width, side, overlap), _spans(height, side, overlap)
    boxes = [(x1, y1, x2, y2) for y1, y2, *_ in rows for x1, x2, *_ in columns]
    shared = [(left, top, right, bottom) for *_, top, bottom in rows for *_, left, right in columns]
    return Tiles(np.array(boxes), np.array(shared))


def _spans(length: int, side: int, overlap: float) -> list[tuple[int, int, int, int]]:
    """Start and end of each tile along an axis, and how much of it the tiles before and after it share."""
    side = min(side, length)
    count = 1 + math.ceil((length - side) / max(side - math.ceil(side * overlap), 1))
    starts = np.linspace(0, length - side, count).astype(int).tolist()
    shared = [-1, *(a + side - b for a, b in pairwise(starts)), -1]
    return [(start, start + side, *pair) for start, pair in zip(starts, pairwise(shared), strict=True)]


def join(parts: Sequence[Prediction], tiles: Tiles, whole: Prediction) -> Prediction:
    """Make the detections of an image of those of its tiles.

    Args:
        parts: of each tile, in pixels of the image.
        tiles: where they lie.
        whole: of the image as a whole, of which only what is larger than a tile counts: the model has seen a small image of it.
    """
    kept = [_without_clipped(part, tiles, tile) for tile, part in enumerate(parts)]
    sides, (height, width) = whole.boxes[:, 2:] - whole.boxes[:, :2], whole.size
    large = whole.select((sides > (tiles.boxes[:, 2:] - tiles.boxes[:, :2]).max()).any(1))
    kept.append((large, np.zeros(len(large), dtype=bool)))
    areas = np.concatenate([tiles.boxes, [[0, 0, width, height]]])
    tile_of = np.repeat(np.arange(len(kept)), [len(part) for part, _ in kept])
    everything = _concatenated([part for part, _ in kept])
    is_cut = np.concatenate([cut for _, cut in kept])
    owner = _owners(everything, tile_of, is_cut, areas)
    return _united(everything, owner, is_cut)


def _without_clipped(part: Prediction, tiles: Tiles, tile: int) -> tuple[Prediction, np.ndarray]:
    """The detections of a tile but for those that a neighbour sees better, and which of them are cut off by its border."""
    box, shared = tiles.boxes[tile], tiles.shared[tile]
    margin = max(1.0, _MARGIN * float((box[2:] - box[:2]).max()))
    touches = (np.abs(part.boxes - box) < margin) & (shared >= 0)  # left, top, right, bottom
    extent = np.tile(part.boxes[:, 2:] - part.boxes[:, :2], 2)
    seen_better = (touches & (extent + margin <= shared)).any(1)
    return part.select(~seen_better), touches.any(1)[~seen_better]


def _owners(found: Prediction, tile_of: np.ndarray, is_cut: np.ndarray, areas: np.ndarray) -> np.ndarray:
    """For each detection the one that stands for its object, int [D]: whole ones come first, then the higher score."""
    reach = areas[:, None], areas[None]
    meets = (np.maximum(reach[0], reach[1])[..., :2] < np.minimum(reach[0], reach[1])[..., 2:]).all(-1)
    neighbours = [[other for other in np.flatnonzero(row).tolist() if other != t] for t, row in enumerate(meets)]
    owner = np.arange(len(found))
    candidates: defaultdict[tuple[int, int], list[int]] = defaultdict(list)  # by tile and label
    for i in np.lexsort((-found.scores, is_cut)).tolist():
        tile, label = int(tile_of[i]), int(found.labels[i])
        others = np.array([j for other in neighbours[tile] for j in candidates.get((other, label), ())], dtype=int)
        if len(others):
            common = _intersection(areas[tile_of[others]], areas[tile])
            mine, theirs = _intersection(common, found.boxes[i]), _intersection(common, found.boxes[others])
            same = others[_iou(mine, theirs) > _AGREEMENT]
            roots = np.unique(owner[same])
            if len(roots):
                root = min(roots.tolist(), key=lambda r: (bool(is_cut[r]), -found.scores[r]))
                owner[i] = root
                if is_cut[root]:  # this one is the piece that other pieces were lacking
                    owner[np.isin(owner, roots)] = root
        if owner[i] == i or is_cut[owner[i]]:
            candidates[tile, label].append(i)
    return owner


def _united(found: Prediction, owner: np.ndarray, is_cut: np.ndarray) -> Prediction:
    """One detection for each owner: itself, or what all pieces enclose where it is cut off."""
    boxes, rles = found.boxes.copy(), found.rles
    roots = np.flatnonzero(owner == np.arange(len(owner)))
    for root in roots[is_cut[roots]].tolist():
        pieces = np.flatnonzero(owner == root)
        boxes[root] = [*found.boxes[pieces, :2].min(0), *found.boxes[pieces, 2:].max(0)]
        if rles is not None and len(pieces) > 1:
            merged = coco_mask.merge([rles[piece] for piece in pieces.tolist()])
            rles = [*rles[:root], _as_text(merged), *rles[root + 1 :]]
    order = roots[np.argsort(-found.scores[roots], kind="stable")]
    return replace(found, boxes=boxes, rles=rles).select(order)


def _concatenated(parts: Sequence[Prediction]) -> Prediction:
    boxes, scores, labels = (
        np.concatenate(columns) for columns in zip(*((p.boxes, p.scores, p.labels) for p in parts), strict=True)
    )
    rles = None if parts[0].rles is None else [rle for part in parts for rle in part.rles or ()]
    return replace(parts[0], boxes=boxes, scores=scores, labels=labels, rles=rles)


def _intersection(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Of boxes [..., 4]; where they do not meet, one without area."""
    start = np.maximum(a[..., :2], b[..., :2])
    return np.concatenate([start, np.maximum(start, np.minimum(a[..., 2:], b[..., 2:]))], axis=-1)


def _iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Of pairs of boxes [N, 4]; 0 where neither has an area."""
    both, one, other = ((x[:, 2] - x[:, 0]) * (x[:, 3] - x[:, 1]) for x in (_intersection(a, b), a, b))
    return both / np.maximum(one + other - both, 1e-9)


def place(found: Prediction, box: Sequence[int], size: tuple[int, int]) -> Prediction:
    """Take the detections of a tile to its image, whose height and width are `size`; the tile's pixels may be larger than the image's."""
    x, y, x2, y2 = box
    scale = np.array([(x2 - x) / found.size[1], (y2 - y) / found.size[0]] * 2, dtype=np.float32)
    boxes = found.boxes * scale + np.array([x, y, x, y], dtype=np.float32)
    rles = found.rles and [_placed(rle, box, size) for rle in found.rles]
    return replace(found, boxes=boxes, rles=rles, size=size)


def _placed(rle: dict[str, Any], box: Sequence[int], size: tuple[int, int]) -> dict[str, Any]:
    """The RLE of a mask of a tile, in its image. Nothing of the image's size is made."""
    mask = coco_mask.decode(rle)
    x, y, x2, y2 = box
    if mask.shape != (y2 - y, x2 - x):
        mask = np.asarray(Image.fromarray(mask * 255).resize((x2 - x, y2 - y), Image.Resampling.BILINEAR)) > 127
    # RLE runs down the columns: begin and end of each run, in pixels of the image.
    edges = np.diff(mask.astype(np.int8), axis=0, prepend=0, append=0).T
    column, begin = np.nonzero(edges > 0)
    end = np.nonzero(edges < 0)[1]
    offset = (column.astype(np.int64) + x) * size[0] + y
    bounds = np.stack([offset + begin, offset + end], 1).reshape(-1)
    # A run down to the lower edge of the image, and one from the upper edge of the next column, are one.
    joined = bounds[1:-1].reshape(-1, 2)
    is_one = np.repeat(joined[:, 0] == joined[:, 1], 2)
    bounds = np.concatenate([bounds[:1], bounds[1:-1][~is_one], bounds[-1:]])
    counts = np.diff(bounds, prepend=0, append=size[0] * size[1])
    counts = counts[: -1 if len(counts) > 1 and counts[-1] == 0 else None].tolist()
    return _as_text(coco_mask.frPyObjects({"size": list(size), "counts": counts}, *size))


def _as_text(rle: dict[str, Any]) -> dict[str, Any]:
    """In a form that JSON can hold."""
    return {"size": list(map(int, rle["size"])), "counts": rle["counts"].decode("ascii")}
