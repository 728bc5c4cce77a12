"""What training does to an image and its objects before the model sees them.

Images stay uint8, a quarter of what the workers would otherwise have to send; the models take that as well as floats.
Evaluation needs no transform: the model resizes, and returns boxes in original pixels.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torchvision import tv_tensors
from torchvision.transforms import v2

from ..models.images import resized_size


class ResizeShortSide(v2.Transform):
    """Scales the short side to one of some sizes, drawn at random, and keeps the long side within a limit.

    Args:
        min_sizes: lengths of the short side in pixels, to draw from.
        max_size: the greatest length of the long side in pixels; the short side is then shorter than drawn.
    """

    def __init__(self, min_sizes: Sequence[int], max_size: int) -> None:
        super().__init__()
        self.min_sizes, self.max_size = tuple(min_sizes), max_size

    def forward(self, image: Tensor, *rest: Any) -> Any:
        min_size = self.min_sizes[int(torch.randint(len(self.min_sizes), ()))]
        height, width = resized_size(image.shape[-2], image.shape[-1], min_size, self.max_size)
        return v2.Resize((height, width), antialias=True)(image, *rest)


class DropEmptyBoxes(nn.Module):
    """Drops objects, with all that belongs to them, whose box has no width or no height."""

    def forward(self, image: Tensor, target: dict[str, Any]) -> tuple[Tensor, dict[str, Any]]:
        boxes = target["boxes"]
        kept = (boxes[:, 2:] > boxes[:, :2]).all(dim=1)
        return image, {
            key: tv_tensors.wrap(value[kept], like=value) if isinstance(value, Tensor) else value
            for key, value in target.items()
        }


def training_transforms(min_sizes: Sequence[int], max_size: int, flip: float = 0.5) -> v2.Compose:
    """The published augmentation of (image uint8, target): `ResizeShortSide`, flip from left to right, clip the boxes to the image.

    `flip` is the probability of a flip.
    """
    return _then_flip([ResizeShortSide(min_sizes, max_size)], flip)


def ssd_transforms(size: int, fill: Sequence[float], flip: float = 0.5) -> v2.Compose:
    """The augmentation of SSD (Liu et al., ECCV 2016, section 2.2), which YOLACT trains with, of (image uint8, target).

    Colours are distorted; a margin makes the image up to four times as wide and high; a part is cut out whose IoU with an object is
    at least one of 0, .1, .3, .5, .7 and .9, or nothing is cut; and what remains becomes a square.

    Args:
        size: the side of the square, in pixels.
        fill: the colour of the margin, RGB in 0..255.
        flip: the probability of a flip from left to right.
    """
    distort_and_crop = [
        v2.RandomPhotometricDistort(),
        v2.RandomZoomOut(fill={tv_tensors.Image: list(fill), tv_tensors.Mask: 0}, side_range=(1, 4)),
        v2.RandomIoUCrop(),
        v2.Resize((size, size), antialias=True),
    ]
    return _then_flip(distort_and_crop, flip)


def _then_flip(transforms: Sequence[nn.Module], flip: float) -> v2.Compose:
    return v2.Compose([*transforms, v2.RandomHorizontalFlip(flip), v2.ClampBoundingBoxes(), DropEmptyBoxes()])
