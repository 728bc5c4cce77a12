"""Resize masks, paste them from boxes into images, and compute their boxes and centres."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from .images import Size

_PIXELS_AT_ONCE = 2**25  # memory for masks of numbers larger than bools that are computed together
_TRAINED_AT_ONCE = 128  # predicted masks in memory together in training


def losses_in_parts(losses: Callable[..., Tensor], *of_masks: Tensor) -> Tensor:
    """Losses of many predicted masks, only 128 of which are in memory at a time; they are recomputed for the gradient.

    An image with 200 objects has thousands of positives, and each of their masks is a full map.

    Args:
        losses: computes masks from its arguments, and a loss for each mask, [P]. It may refer to other tensors that need gradients.
        of_masks: its arguments, one row for each mask, [P, ...] each.

    Returns:
        [P], as for `losses(*of_masks)`.
    """
    if len(of_masks[0]) <= _TRAINED_AT_ONCE:
        return losses(*of_masks)
    parts = zip(*(x.split(_TRAINED_AT_ONCE) for x in of_masks), strict=True)
    return torch.cat([checkpoint(losses, *part, use_reentrant=False, preserve_rng_state=False) for part in parts])


def in_parts(make: Callable[..., Tensor], most: int, *columns: Tensor) -> Tensor:
    """`make(*columns)`, which returns one row per input row, with at most `most` rows at a time; all at once in an exported graph."""
    if torch.compiler.is_exporting():
        return make(*columns)
    parts = zip(*(column.split(most) for column in columns), strict=True)
    first = make(*next(parts))
    if len(first) == len(columns[0]):
        return first
    result = first.new_empty(len(columns[0]), *first.shape[1:])
    result[:most] = first
    for start, part in enumerate(parts, 1):
        result[start * most : (start + 1) * most] = make(*part)
    return result


def resize_masks(masks: Tensor, size: Sequence[int]) -> Tensor:
    """Resize masks or probabilities in 0..1, [D, H, W], and threshold them at 1/2; bool [D, *size]."""
    most = min(masks_at_once(size), masks_at_once(masks.shape[1:]))
    return in_parts(
        lambda part: F.interpolate(part[:, None].float(), tuple(size), mode="bilinear")[:, 0] > 0.5, most, masks
    )


def masks_at_once(size: Sequence[int]) -> int:
    """Number of masks of this height and width to compute together."""
    return max(1, _PIXELS_AT_ONCE // (size[0] * size[1]))


def quarter_masks(masks: Tensor, size: Sequence[int]) -> Tensor:
    """Masks at stride 4, bool [G, H, W] -> [G, *size], where `size` may reach beyond H / 4 and W / 4.

    A cell is set if half of its four middle pixels are, which equals bilinear resizing.
    """
    height, width = masks.shape[-2:]
    masks = F.pad(masks, (0, -width % 4, 0, -height % 4)).view(torch.uint8)
    middle = sum(masks[:, i::4, j::4] for i in (1, 2) for j in (1, 2))
    result = masks.new_zeros(len(masks), *size, dtype=torch.bool)
    result[:, : masks.shape[1] // 4, : masks.shape[2] // 4] = middle >= 2
    return result


def centres_and_areas(masks: Tensor) -> tuple[Tensor, Tensor]:
    """Mean x and y of the pixels of each mask, bool [G, H, W] -> float32 [G, 2], (0, 0) if empty; and the number of pixels [G]."""
    # In parts and in int16, which is large enough for image sides: sums first copy to that type.
    parts = masks.split(masks_at_once(masks.shape[1:]))
    of_columns, of_rows = (torch.cat([part.sum(dim, dtype=torch.int16) for part in parts]).float() for dim in (1, 2))
    area = of_columns.sum(1)
    x, y = (torch.arange(n, device=masks.device, dtype=torch.float32) for n in (masks.shape[2], masks.shape[1]))
    # No matrix products: autocast would take sums of millions to float16.
    return torch.stack([(of_columns * x).sum(1), (of_rows * y).sum(1)], 1) / area.clamp(min=1)[:, None], area


def boxes_around(masks: Tensor) -> Tensor:
    """The boxes that enclose masks, bool [D, H, W] -> float32 xyxy [D, 4]; all 0 for an empty one."""
    sides = []
    for occupied in (masks.any(1), masks.any(2)):  # columns, rows
        place = torch.arange(occupied.shape[1], device=masks.device)
        last = torch.where(occupied, place + 1, 0).amax(1)
        sides.append((torch.where(occupied, place, occupied.shape[1]).amin(1).minimum(last), last))
    (left, right), (top, bottom) = sides
    return torch.stack([left, top, right, bottom], 1).float()


def paste_masks(masks: Tensor, boxes: Tensor, size: Size) -> Tensor:
    """Paste masks from their boxes into an image, bilinearly, at the centres of its pixels.

    Maps probabilities [D, M, M] in boxes xyxy [D, 4], in pixels of an image of (height, width) `size`, to bool [D, height, width]:
    whether they are above 1/2.
    """

    def paste(masks: Tensor, boxes: Tensor) -> Tensor:
        # Bilinear interpolation is one matrix for the rows and one for the columns.
        rows = _interpolation(boxes[:, 1], boxes[:, 3], size[0], masks.shape[1])
        columns = _interpolation(boxes[:, 0], boxes[:, 2], size[1], masks.shape[2])
        with torch.autocast(masks.device.type, enabled=False):
            return rows @ masks.float() @ columns.mT > 0.5

    return in_parts(paste, masks_at_once(size), masks, boxes)


def _interpolation(start: Tensor, end: Tensor, pixels: int, points: int) -> Tensor:
    """The weight of each of the points between `start` and `end`, [D] each, at the centre of each pixel: [D, pixels, points]."""
    centres = torch.arange(pixels, device=start.device) + 0.5
    position = (centres - start[:, None]) / (end - start).clamp(min=1e-6)[:, None] * points - 0.5
    return (1 - (position[..., None] - torch.arange(points, device=start.device)).abs()).clamp(min=0)
