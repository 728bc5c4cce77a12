"""Convert images of any size to a normalised batch, and boxes in the batch back to the original images.

Inside a model, boxes are xyxy in pixels of the resized image, outside in pixels of the original: only this module converts between them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.transforms.v2 import functional as F

Size = tuple[int, int]  # height, width
_OTHERS = "; files, PIL images and arrays are for model.predict"


@dataclass
class ImageBatch:
    """B images as input of a detector."""

    pixels: Tensor  # normalised, zero outside each image, float [B, 3, H, W]
    sizes: list[Size]  # of each resized image without padding
    original_sizes: list[Size]  # of each image before resizing
    divisor: int = 32  # H and W are multiples of this

    @property
    def padded_sizes(self) -> list[Size]:
        """Each image's own size rounded up to the divisor. The batch may be larger; padding outside of it is not background."""
        return [_round_up(size, self.divisor) for size in self.sizes]


def _round_up(size: Size, divisor: int) -> Size:
    # With positive numbers, because integer division in ONNX rounds towards 0.
    return (size[0] + divisor - 1) // divisor * divisor, (size[1] + divisor - 1) // divisor * divisor


def resized_size(height: int, width: int, min_size: int, max_size: int) -> Size:
    """Height and width after scaling the short side to `min_size`, or less if the long side would exceed `max_size`."""
    scale = min(min_size / min(height, width), max_size / max(height, width))
    return max(1, int(height * scale + 0.5)), max(1, int(width * scale + 0.5))


class ImageTransform(nn.Module):
    """Resize, normalise and pad images, and map detections back; the counterpart of the transform in torchvision's detectors.

    Args:
        min_size: short side after resizing, in pixels. An image that already has this size is not resized.
        max_size: upper bound of the long side in pixels.
        mean: mean of each RGB channel, in 0..255.
        std: standard deviation of each RGB channel, in 0..255.
        train_min_sizes: in training, one of these is drawn at random for each image, unless it already has one of them; empty:
            `min_size`.
        keep_ratio: keep the aspect ratio; otherwise every image becomes `min_size` x `min_size`, without padding.
    """

    def __init__(
        self,
        min_size: int,
        max_size: int,
        mean: Sequence[float],
        std: Sequence[float],
        train_min_sizes: Sequence[int] = (),
        keep_ratio: bool = True,
    ):
        super().__init__()
        self.min_size, self.max_size, self.keep_ratio = min_size, max_size, keep_ratio
        self.divisor = ImageBatch.divisor if keep_ratio else 1
        self.train_min_sizes = tuple(train_min_sizes) or (min_size,)
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1) / 255, persistent=False)
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1) / 255, persistent=False)
        self.mean: Tensor
        self.std: Tensor

    def forward(
        self, images: Sequence[Tensor], targets: Sequence[dict[str, Tensor]] | None = None
    ) -> tuple[ImageBatch, list[dict[str, Tensor]]]:
        """Make a batch of `images` and transform their `targets` to its coordinates; both as for `Detector.forward`."""
        resized, new_targets = [], []
        for i, image in enumerate(images):
            height, width = image.shape[-2:]
            size = self._target_size(height, width)
            image = F.to_dtype(image.as_subclass(Tensor), self.mean.dtype, scale=True)
            resized.append((F.resize(image, list(size), antialias=True) - self.mean) / self.std)
            if targets is not None:
                new_targets.append(_resized_target(targets[i], (height, width), size))
        sizes = [(x.shape[-2], x.shape[-1]) for x in resized]
        largest = _round_up((max(h for h, _ in sizes), max(w for _, w in sizes)), self.divisor)
        pixels = resized[0].new_zeros(len(resized), 3, *largest)
        for row, image in zip(pixels, resized, strict=True):
            row[:, : image.shape[-2], : image.shape[-1]] = image
        return ImageBatch(pixels, sizes, [(x.shape[-2], x.shape[-1]) for x in images], self.divisor), new_targets

    def _target_size(self, height: int, width: int) -> Size:
        if not self.keep_ratio:
            return self.min_size, self.min_size
        sizes = self.train_min_sizes if self.training else (self.min_size,)
        candidates = [resized_size(height, width, size, self.max_size) for size in sizes]
        if (height, width) in candidates:
            return height, width
        return candidates[int(torch.randint(len(candidates), ()))] if len(candidates) > 1 else candidates[0]

    @staticmethod
    def to_original(detections: list[dict[str, Tensor]], batch: ImageBatch) -> list[dict[str, Tensor]]:
        """Map the `boxes` of each image's detections from the resized image to the original one."""
        return [
            {**d, "boxes": d["boxes"] * _scale(size, original, d["boxes"])}
            for d, size, original in zip(detections, batch.sizes, batch.original_sizes, strict=True)
        ]


def _scale(size: Size, new_size: Size, like: Tensor) -> Tensor:
    y, x = new_size[0] / size[0], new_size[1] / size[1]
    return torch.stack([like.new_full((), factor) for factor in (x, y, x, y)])  # sizes in a graph can be symbolic


def _resized_target(target: dict[str, Tensor], size: Size, new_size: Size) -> dict[str, Tensor]:
    boxes = target["boxes"].as_subclass(Tensor).float()
    result = {"boxes": boxes * _scale(size, new_size, boxes), "labels": target["labels"]}
    if "masks" in target:
        masks = target["masks"].as_subclass(Tensor)
        result["masks"] = F.resize(masks, list(new_size), interpolation=F.InterpolationMode.NEAREST)
    return result


def check_input(
    images: Sequence[Tensor],
    targets: Sequence[dict[str, Tensor]] | None,
    num_classes: int,
    training: bool,
    masks: bool = False,
) -> None:
    """Check `images` and `targets`; see `Detector.forward` for what they have to be.

    Raises:
        ValueError: one sentence with the position in the batch and what is wrong.
    """
    if not isinstance(images, list | tuple) or not images:
        raise ValueError(f"a model needs a list of at least one image, each a tensor [3, H, W]{_OTHERS}")
    for i, image in enumerate(images):
        if problem := _image_problem(image):
            raise ValueError(f"image {i} of the batch must be {problem}")
    if not training:
        return
    if targets is None or len(targets) != len(images):
        raise ValueError("in training mode a model needs one target for each image; call model.eval() to predict")
    for i, (image, target) in enumerate(zip(images, targets, strict=True)):
        if problem := _target_problem(target, image.shape[-2:], num_classes, masks):
            raise ValueError(f"target {i} of the batch {problem}")


def _image_problem(image: Any) -> str | None:
    if not isinstance(image, Tensor):
        return f"a tensor [3, H, W], got {type(image).__name__}{_OTHERS}"
    if image.ndim != 3 or image.shape[0] != 3 or 0 in image.shape:
        return f"RGB of shape [3, H, W], got {tuple(image.shape)}"
    if image.dtype != torch.uint8 and not image.is_floating_point():
        return f"float in 0..1 or uint8, got {image.dtype}"
    return None


def _target_problem(target: dict[str, Tensor], size: Sequence[int], num_classes: int, masks: bool) -> str | None:
    needed = ["boxes", "labels", "masks"] if masks else ["boxes", "labels"]
    if not set(needed) <= target.keys():
        return f"needs {' and '.join(needed)}, it has {', '.join(target) or 'nothing'}"
    boxes, labels = target["boxes"], target["labels"]
    if not isinstance(boxes, Tensor) or not isinstance(labels, Tensor):
        return "needs boxes and labels as tensors"
    if boxes.ndim != 2 or boxes.shape[1] != 4 or labels.shape != boxes.shape[:1]:
        return f"needs boxes [G, 4] and labels [G], got {tuple(boxes.shape)} and {tuple(labels.shape)}"
    if masks and target["masks"].shape != (shape := (len(labels), *size)):
        return f"needs masks [G, H, W] of the size of its image, {shape}, got {tuple(target['masks'].shape)}"
    if labels.dtype != torch.int64:
        return f"needs labels of type int64, got {labels.dtype}"
    has_area = (boxes[:, 2:] > boxes[:, :2]).all(1) & boxes.isfinite().all(1)
    if not bool(has_area.all()):
        bad = boxes[~has_area][0].tolist()
        return f"has an empty or non-finite box, xyxy {bad}: drop such objects from the data"
    if len(labels) and not bool(((labels >= 0) & (labels < num_classes)).all()):
        return f"has labels {int(labels.min())}..{int(labels.max())}, but the model has 0..{num_classes - 1}"
    return None
