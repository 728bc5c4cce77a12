"""SOLOv2 (Wang et al., NeurIPS 2020) in loops: which cells find which object, and Matrix NMS (section 3.4)."""

import math
from typing import NamedTuple

import torch
from torch import Tensor


class Cells(NamedTuple):
    """The outcome, and how clear it was.

    Attributes:
        owner: index of the object of each cell, by level, row and column; -1: none.
        margin: the smallest distance of a number to where it would have decided otherwise.
    """

    owner: list[int]
    margin: float


def match(
    boxes: list[list[float]],
    masks: list[list[list[bool]]],
    size: tuple[int, int],
    ranges: list[tuple[int, int]],
    grids: list[int],
) -> Cells:
    """The first of several objects which want a cell gets it."""
    owner: list[int] = []
    margins = [1.0]
    for grid, (least, greatest) in zip(grids, ranges, strict=True):
        of_level = [[-1] * grid for _ in range(grid)]
        for g, (box, mask) in enumerate(zip(boxes, masks, strict=True)):
            pixels = [(x, y) for y, row in enumerate(mask) for x, set_ in enumerate(row) if set_]
            side = math.sqrt((box[2] - box[0]) * (box[3] - box[1]))
            margins += [abs(side - least), abs(side - greatest)]
            if not pixels or not least <= side <= greatest:
                continue
            bounds = []
            for axis, length in ((0, size[1]), (1, size[0])):
                centre = sum(p[axis] for p in pixels) / len(pixels)
                half = 0.2 * (box[axis + 2] - box[axis]) / 2
                places = [(centre + d) / length * grid for d in (-half, 0, half)]
                margins += [abs(p - round(p)) for p in places]
                first, middle, last = (math.floor(p) for p in places)
                bounds.append(range(max(first, middle - 1, 0), min(last, middle + 1, grid - 1) + 1))
            for y in bounds[1]:
                for x in bounds[0]:
                    if of_level[y][x] == -1:
                        of_level[y][x] = g
        owner += [g for row in of_level for g in row]
    return Cells(owner, min(margins))


def mask_losses(features: Tensor, kernels: Tensor, wanted: Tensor) -> Tensor:
    """Dice losses of the masks [P, h, w] which kernels [P, E] make of features [E, h, w], one by one, all kept for the gradient."""
    losses = []
    for kernel, t in zip(kernels, wanted.double(), strict=True):
        p = (kernel[:, None, None] * features).sum(0).sigmoid()
        losses.append(1 - 2 * (p * t).sum() / ((p * p).sum() + (t * t).sum() + 0.002))
    return torch.stack(losses)


class Found(NamedTuple):
    """A detection."""

    score: float
    label: int
    cell: int


def detect(
    scores: list[list[float]], kernels: Tensor, features: Tensor, least_area: list[int], threshold: float
) -> list[Found]:
    """What is reported of one image: class scores of its cells by row, their kernels [S, E], mask features [E, h, w]."""
    pairs: list[tuple[float, int, int, int]] = []
    for cell, of_cell in enumerate(scores):
        mask = (kernels[cell][:, None, None] * features).sum(0).sigmoid()
        inside = mask > 0.5
        if int(inside.sum()) <= least_area[cell]:
            continue
        maskness = mask[inside].mean().item()
        pixels = as_number(inside)
        pairs += [(score * maskness, label, cell, pixels) for label, score in enumerate(of_cell) if score > threshold]
    pairs = sorted(pairs, key=lambda pair: -pair[0])[:500]
    decay = matrix_nms([pixels for *_, pixels in pairs], [label for _, label, *_ in pairs])
    found = [Found(pair[0] * factor, *pair[1:3]) for pair, factor in zip(pairs, decay, strict=True)]
    return sorted([f for f in found if f.score >= 0.05], key=lambda f: -f.score)[:100]


def as_number(mask: Tensor) -> int:
    """A mask as a number which has a bit for each pixel."""
    return int.from_bytes(bytes(mask.flatten().tolist()), "big")


def matrix_nms(masks: list[int], labels: list[int], sigma: float = 2.0) -> list[float]:
    """The factor on each score, for masks as of `as_number` by falling score."""

    def iou(i: int, j: int) -> float:
        return (masks[i] & masks[j]).bit_count() / (masks[i] | masks[j]).bit_count() if labels[i] == labels[j] else 0.0

    highest = [max([iou(i, k) for k in range(i)], default=0.0) for i in range(len(masks))]
    return [
        min([math.exp(-sigma * (iou(i, j) ** 2 - highest[i] ** 2)) for i in range(j)], default=1.0)
        for j in range(len(masks))
    ]
