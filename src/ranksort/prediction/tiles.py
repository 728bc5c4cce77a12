"""Tiles of large images: their positions, and how their detections are merged.

Neighbouring tiles share a strip, so that an object smaller than the strip is complete in one of them. Three rules follow:

1. A detection that is cut off at a tile's border but narrower than the strip is dropped: the neighbour sees it better.
2. Two detections of different tiles belong to the same object if they agree in the area that both tiles see.
3. The better one of the two is kept; if both are cut off, the box that encloses both.
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

_MARGIN = 0.01  # of a tile's side: a box that ends this close to the border is cut off by it
_AGREEMENT = 0.5  # IoU


@dataclass(frozen=True)
class Tiles:
    """T tiles of an image.

    Attributes:
        boxes: int [T, 4], x1, y1, x2, y2 in pixels of the image.
        shared: int [T, 4], how many pixels the neighbour overlaps the tile from the left, top, right and bottom; -1 at the edge of the
            image.
    """

    boxes: np.ndarray
    shared: np.ndarray

    def __len__(self) -> int:
        return len(self.boxes)


def cover(height: int, width: int, side: int, overlap: float) -> Tiles:
    """Cover an image evenly with squares (rectangles if it is smaller), so that neighbours share at least `overlap` of a side."""
    columns, rows = _spans(width, side, overlap), _spans(height, side, overlap)
    boxes = [(x1, y1, x2, y2) for y1, y2, *_ in rows for x1, x2, *_ in columns]
    shared = [(left, top, right, bottom) for *_, top, bottom in rows for *_, left, right in columns]
    return Tiles(np.array(boxes), np.array(shared))


def _spans(length: int, side: int, overlap: float) -> list[tuple[int, int, int, int]]:
    """Start and end of each tile along an axis, and its overlap with the tiles before and after it."""
    side = min(side, length)
    count = 1 + math.ceil((length - side) / max(side - math.ceil(side * overlap), 1))
    starts = np.linspace(0, length - side, count).astype(int).tolist()
    shared = [-1, *(a + side - b for a, b in pairwise(starts)), -1]
    return [(start, start + side, *pair) for start, pair in zip(starts, pairwise(shared), strict=True)]


def join(parts: Sequence[Prediction], tiles: Tiles, whole: Prediction) -> Prediction:
    """Merge the detections of tiles to those of the image.

    Args:
        parts: detections of each tile, in pixels of the image.
        tiles: the tiles.
        whole: detections in the whole image; only those larger than a tile count, because the model saw it at a reduced size.
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
    """The detections of a tile without those that a neighbour sees better, and which of them are cut off by its border."""
    box, shared = tiles.boxes[tile], tiles.shared[tile]
    margin = max(1.0, _MARGIN * float((box[2:] - box[:2]).max()))
    touches = (np.abs(part.boxes - box) < margin) & (shared >= 0)  # left, top, right, bottom
    extent = np.tile(part.boxes[:, 2:] - part.boxes[:, :2], 2)
    seen_better = (touches & (extent + margin <= shared)).any(1)
    return part.select(~seen_better), touches.any(1)[~seen_better]


def _owners(found: Prediction, tile_of: np.ndarray, is_cut: np.ndarray, areas: np.ndarray) -> np.ndarray:
    """For each detection, the one that represents its object, int [D]: complete ones come first, then higher scores."""
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
                if is_cut[root]:  # this one completes the other pieces
                    owner[np.isin(owner, roots)] = root
        if owner[i] == i or is_cut[owner[i]]:
            candidates[tile, label].append(i)
    return owner


def _united(found: Prediction, owner: np.ndarray, is_cut: np.ndarray) -> Prediction:
    """One detection for each owner: itself or, if it is cut off, the box around all pieces."""
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
    """Intersection of boxes [..., 4]; without area if they do not meet."""
    start = np.maximum(a[..., :2], b[..., :2])
    return np.concatenate([start, np.maximum(start, np.minimum(a[..., 2:], b[..., 2:]))], axis=-1)


def _iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """IoU of pairs of boxes [N, 4]; 0 if neither has an area."""
    both, one, other = ((x[:, 2] - x[:, 0]) * (x[:, 3] - x[:, 1]) for x in (_intersection(a, b), a, b))
    return both / np.maximum(one + other - both, 1e-9)


def place(found: Prediction, box: Sequence[int], size: tuple[int, int]) -> Prediction:
    """Map the detections of a tile to its image of height and width `size`; the tile may have been resized."""
    x, y, x2, y2 = box
    scale = np.array([(x2 - x) / found.size[1], (y2 - y) / found.size[0]] * 2, dtype=np.float32)
    boxes = found.boxes * scale + np.array([x, y, x, y], dtype=np.float32)
    rles = found.rles and [_placed(rle, box, size) for rle in found.rles]
    return replace(found, boxes=boxes, rles=rles, size=size)


def _placed(rle: dict[str, Any], box: Sequence[int], size: tuple[int, int]) -> dict[str, Any]:
    """Map the RLE of a mask from a tile to its image, without allocating anything of the image's size."""
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
    """An RLE in a form that JSON can hold."""
    return {"size": list(map(int, rle["size"])), "counts": rle["counts"].decode("ascii")}
