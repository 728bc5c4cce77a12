"""The losses on images to evaluate on, beside their detections."""

import contextlib
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ..losses.not_finite import NotFinite
from ..models import Detector


@contextlib.contextmanager
def computed_once(backbone: nn.Module) -> Iterator[None]:
    """Within it `backbone` is called with the same images again and again, and computes their features once."""
    forward = backbone.forward
    features: list[Any] = []

    def first_time(pixels: Tensor) -> Any:
        if not features:
            features.append(forward(pixels))
        return features[0]

    backbone.forward = first_time
    try:
        yield
    finally:
        del backbone.forward


class ValidationLosses:
    """The mean losses over the images of an evaluation, or over those of them that have an object of a size to train on.

    The model stays in evaluation mode, so that its batch norms and whatever else has a state are left as they were. Nothing is drawn at
    random: images are as large as in evaluation.

    Args:
        min_box_size: objects with a side below this many pixels do not count.
    """

    def __init__(self, min_box_size: float) -> None:
        self.min_box_size = min_box_size
        self.reset()

    def reset(self) -> None:
        """Forget all images."""
        self.sums: dict[str, Tensor] = {}
        self.spoilt = torch.zeros(())  # NaN where a loss was not finite
        self.images = 0

    def update(self, model: Detector, images: Sequence[Tensor], targets: Sequence[dict[str, Any]]) -> None:
        """Take some images: `images` and `targets` as of `Detector.forward`, but with any boxes that an annotation file may have."""
        usable = [self._usable(image, target) for image, target in zip(images, targets, strict=True)]
        chosen = [index for index, target in enumerate(usable) if len(target["boxes"])]
        if chosen:
            batch, resized = model.transform([images[n] for n in chosen], [usable[n] for n in chosen])
            try:
                losses = model.losses(batch, resized).losses
            except NotFinite:  # no reason to lose the evaluation
                self.spoilt += math.nan
                return
            for name, loss in losses.items():
                self.sums[name] = self.sums.get(name, 0) + loss.detach().float() * len(chosen)
            self.images += len(chosen)

    def _usable(self, image: Tensor, target: dict[str, Any]) -> dict[str, Tensor]:
        height, width = image.shape[-2:]
        boxes = target["boxes"].clamp(min=0)
        boxes = torch.minimum(boxes, boxes.new_tensor([width, height, width, height]))
        sides = boxes[:, 2:] - boxes[:, :2]
        kept = ((sides > 0) & (sides >= self.min_box_size)).all(dim=1)
        if "masks" in target:
            kept &= target["masks"].flatten(1).any(dim=1).bool()  # of uint8 it is uint8
        return {"boxes": boxes[kept], **{key: target[key][kept] for key in ("labels", "masks") if key in target}}

    def compute(self) -> dict[str, float]:
        """The means by name, and their sum as `loss`, over the images of all processes; empty where none has an object.

        All processes have to call it.
        """
        parts = [({name: float(total) + float(self.spoilt) for name, total in self.sums.items()}, self.images)]
        if dist.is_available() and dist.is_initialized():
            # As objects: a process may have no image with an object, and so no names of losses.
            gathered: list[Any] = [None] * dist.get_world_size()
            dist.all_gather_object(gathered, parts[0])
            parts = gathered
        sums: Counter[str] = Counter()
        for part, _ in parts:
            sums.update(part)
        images = sum(number for _, number in parts)
        means = {name: total / images for name, total in sums.items()}
        return {"loss": sum(means.values()), **means} if means else {}
