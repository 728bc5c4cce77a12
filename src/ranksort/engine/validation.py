"""Losses on the validation images."""

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
    """Within this context, `backbone` is called repeatedly with the same images, and computes their features once."""
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
    """Mean losses over the images of an evaluation that have an object large enough to train on.

    The model stays in evaluation mode, so that batch norms and other state are unchanged. Nothing is random: images have the size
    used in evaluation.

    Args:
        min_box_size: objects with a side shorter than this many pixels do not count.
    """

    def __init__(self, min_box_size: float) -> None:
        self.min_box_size = min_box_size
        self.reset()

    def reset(self) -> None:
        """Forget all images."""
        self.sums: dict[str, Tensor] = {}
        self.spoilt = False  # because a loss was not finite
        self.images = 0

    def update(self, model: Detector, images: Sequence[Tensor], targets: Sequence[dict[str, Any]]) -> None:
        """Add images: `images` and `targets` as for `Detector.forward`, but with any boxes that an annotation file may have."""
        usable = [self._usable(image, target) for image, target in zip(images, targets, strict=True)]
        chosen = [index for index, target in enumerate(usable) if len(target["boxes"])]
        if chosen:
            batch, resized = model.transform([images[n] for n in chosen], [usable[n] for n in chosen])
            try:
                losses = model.losses(batch, resized).losses
            except NotFinite:  # no reason to lose the evaluation
                self.spoilt = True
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
            kept &= target["masks"].flatten(1).any(dim=1).bool()  # `any` of uint8 is uint8
        return {"boxes": boxes[kept], **{key: target[key][kept] for key in ("labels", "masks") if key in target}}

    def compute(self) -> dict[str, float]:
        """The means by name, and their sum as `loss`, over the images of all processes; empty if none has an object, NaN if a loss was
        not finite.

        All processes have to call it.
        """
        own = {name: float(total) for name, total in self.sums.items()}, self.images, self.spoilt
        parts = [own]
        if dist.is_available() and dist.is_initialized():
            # As Python objects: a process without objects in its images does not know the names of the losses.
            gathered: list[Any] = [None] * dist.get_world_size()
            dist.all_gather_object(gathered, own)
            parts = gathered
        sums: Counter[str] = Counter()
        for of_process, _, _ in parts:
            sums.update(of_process)
        images = sum(number for _, number, _ in parts)
        if any(spoilt for _, _, spoilt in parts):
            return dict.fromkeys(["loss", *sums], math.nan)
        means = {name: total / images for name, total in sums.items()}
        return {"loss": sum(means.values()), **means} if means else {}
