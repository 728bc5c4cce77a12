"""Training transforms of images and their objects.

Images stay uint8, which workers can send four times faster than floats; models accept both.
Evaluation needs no transform: the model resizes, and returns boxes in original pixels.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torchvision import tv_tensors
from torchvision.ops import box_area, masks_to_boxes
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from ..models.images import resized_size


class ResizeShortSide(v2.Transform):
    """Scale the short side to one of several sizes, drawn at random, and keep the long side within a limit.

    Args:
        min_sizes: lengths of the short side in pixels, to draw from.
        max_size: maximum length of the long side in pixels, which may make the short side shorter than drawn.

    Examples:
        >>> import torch
        >>> from torchvision import tv_tensors
        >>> from ranksort.data.transforms import ResizeShortSide
        >>> ResizeShortSide([32], max_size=100)(tv_tensors.Image(torch.zeros(3, 64, 96, dtype=torch.uint8))).shape
        torch.Size([3, 32, 48])
    """

    def __init__(self, min_sizes: Sequence[int], max_size: int) -> None:
        super().__init__()
        self.min_sizes, self.max_size = tuple(min_sizes), max_size

    def forward(self, image: Tensor, *rest: Any) -> Any:
        min_size = self.min_sizes[int(torch.randint(len(self.min_sizes), ()))]
        height, width = resized_size(image.shape[-2], image.shape[-1], min_size, self.max_size)
        return v2.Resize((height, width), antialias=True)(image, *rest)


class ScaleJitter(nn.Module):
    """Crop a window, or place the image on a larger canvas, with the same aspect ratio; to be resized to the original size.

    The scale s is drawn log-uniformly. For s > 1, the window has 1/s of each side and a random position that includes the centre of one
    object. Objects with less than `MIN_VISIBLE` in the window are dropped; boxes of cut objects are clipped to the window and to the
    visible part of their mask. If no object would be left, the image is not cropped. For s < 1, the image is placed anywhere on a
    canvas with 1/s of each side (large scale jitter in Ghiasi et al., "Simple copy-paste", CVPR 2021, section 3).

    Args:
        fill: colour of the canvas, RGB in 0..255.
        scales: minimum and maximum of s.
    """

    MIN_VISIBLE = 0.2  # fraction of the area of a box

    def __init__(self, fill: Sequence[float], scales: tuple[float, float] = (0.5, 2.0)) -> None:
        super().__init__()
        self.fill, self.scales = list(fill), scales

    def forward(self, image: Tensor, target: dict[str, Any]) -> tuple[Tensor, dict[str, Any]]:
        least, greatest = map(math.log, self.scales)
        scale = math.exp(least + (greatest - least) * _random())
        height, width = image.shape[-2:]
        size = max(round(height / scale), 1), max(round(width / scale), 1)
        if scale < 1:
            top, left = (int(_random() * (room + 1)) for room in (size[0] - height, size[1] - width))
            sides = [left, top, size[1] - width - left, size[0] - height - top]
            return v2.Pad(sides, fill={tv_tensors.Image: self.fill, "others": 0})(image, target)
        boxes = target["boxes"]
        centre = ((boxes[:, :2] + boxes[:, 2:]) / 2)[int(_random() * len(boxes))].tolist() if len(boxes) else [None] * 2
        top, left = self._start(height, size[0], centre[1]), self._start(width, size[1], centre[0])
        shown = self._shown(target, top, left, size)
        if len(boxes) and not len(shown["boxes"]):
            return image, target
        return F.crop(image, top, left, *size), shown

    @staticmethod
    def _start(length: int, window: int, centre: float | None) -> int:
        """The start of a random window within the image that contains a point."""
        first, last = 0, length - window
        if centre is not None:
            first, last = max(first, math.ceil(centre) - window), min(last, math.floor(centre))
        return min(max(first + int(_random() * (last - first + 1)), 0), length - window)

    def _shown(self, target: dict[str, Any], top: int, left: int, size: tuple[int, int]) -> dict[str, Any]:
        """The objects in a window, in its coordinates."""
        whole = target["boxes"].as_subclass(Tensor)
        boxes = whole - whole.new_tensor([left, top, left, top])
        boxes = torch.minimum(boxes.clamp(min=0), whole.new_tensor([size[1], size[0], size[1], size[0]]))
        kept = box_area(boxes) >= self.MIN_VISIBLE * box_area(whole)
        new = dict(target)
        if "masks" in target:
            masks = F.crop(target["masks"], top, left, *size)
            visible = masks.flatten(1).sum(1)
            kept &= visible > 0
            is_cut = (visible < target["masks"].flatten(1).sum(1)) & kept
            ends = boxes.new_tensor([0, 0, 1, 1])  # `masks_to_boxes` gives the last pixel, boxes end after it
            parts, old = masks_to_boxes(masks[is_cut]) + ends, boxes[is_cut]
            boxes[is_cut] = torch.cat(
                (torch.maximum(old[:, :2], parts[:, :2]), torch.minimum(old[:, 2:], parts[:, 2:])), 1
            )
            new["masks"] = masks
        new["boxes"] = tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=size)
        return _selected(new, kept)


def _random() -> float:
    return float(torch.rand(()))


def _selected(target: dict[str, Any], kept: Tensor) -> dict[str, Any]:
    """The objects selected by `kept`, bool [G], with all their fields."""
    return {
        key: tv_tensors.wrap(value[kept], like=value) if isinstance(value, Tensor) else value
        for key, value in target.items()
    }


class DropEmptyBoxes(nn.Module):
    """Drop objects whose box has no width or no height, with all their fields."""

    def forward(self, image: Tensor, target: dict[str, Any]) -> tuple[Tensor, dict[str, Any]]:
        boxes = target["boxes"]
        return image, _selected(target, (boxes[:, 2:] > boxes[:, :2]).all(dim=1))


def training_transforms(
    min_sizes: Sequence[int], max_size: int, flip: float = 0.5, jitter_fill: Sequence[float] | None = None
) -> v2.Compose:
    """The published augmentation of (image uint8, target): `ResizeShortSide`, horizontal flip, clip the boxes to the image.

    Args:
        min_sizes: as in `ResizeShortSide`.
        max_size: as in `ResizeShortSide`.
        flip: probability of a flip.
        jitter_fill: if given, `ScaleJitter` with this colour comes first, and slight colour changes follow.
    """
    resize = ResizeShortSide(min_sizes, max_size)
    if jitter_fill is None:
        return _then_flip([resize], flip)
    colours = v2.ColorJitter(brightness=0.2, contrast=0.2, saturation=0.2, hue=0.02)
    return _then_flip([ScaleJitter(jitter_fill), resize, colours], flip)


def ssd_transforms(size: int, fill: Sequence[float], flip: float = 0.5) -> v2.Compose:
    """The augmentation of SSD (Liu et al., ECCV 2016, section 2.2), which YOLACT trains with, of (image uint8, target).

    Colours are distorted; the image is expanded up to four times in width and height; a crop is taken whose IoU with an object is at
    least one of 0, .1, .3, .5, .7 and .9, or none; and the result is resized to a square.

    Args:
        size: side of the square, in pixels.
        fill: colour of the margin, RGB in 0..255.
        flip: probability of a horizontal flip.
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
