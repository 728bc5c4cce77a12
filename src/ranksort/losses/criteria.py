"""Every loss that detectors can be trained by, in one table. Anchors, positives and heads are the same for all of them.

| name | targets of the positives | weights of the positives for boxes and masks | box and mask losses |
|---|---|---|---|
| rank_sort | IoU | confidence | self-balanced |
| average_lrp | 1, and the GIoU losses as errors | boxes: their rank; masks: 1 | self-balanced |
| average_precision | 1 | 1 | times 2 |
| focal | 1 | 1 | times 2 |
| quality_focal | IoU | confidence | times 2 |
| varifocal | IoU | IoU | times 2 |

Box losses are GIoU, mask losses Dice, both weighted means over the positives. Where there are no boxes, the quality of the masks takes the
place of the IoU.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .average_lrp import ALRPLoss
from .average_precision import average_precision_loss
from .detection import (
    Criterion,
    DetectionLosses,
    confidence,
    localization,
    quality_targets,
    rank_sort_detection_losses,
)
from .not_finite import NotFinite
from .score_based import focal_loss, quality_focal_loss, varifocal_loss

TASK_WEIGHT = 2.0  # of box and mask losses which are not self-balanced: ATSS's and GFL's of boxes
COCO_EPOCH = 7330  # batches of 16 images


@dataclass(frozen=True)
class FixedWeights:
    """A criterion of one classification loss, and of box and mask losses with a fixed weight: `classification`, `box`.

    Attributes:
        loss: of logits and targets, [A, C] each: a scalar.
        quality_as_target: whether the target of a positive is its quality; else it is 1.
        weights: of the positives in the box and mask losses, [P], from their logits [P, C] and qualities [P]; None: all the same.
        task_weight: what the box and mask losses are multiplied by.
    """

    loss: Callable[[Tensor, Tensor], Tensor]
    quality_as_target: bool = False
    weights: Callable[[Tensor, Tensor], Tensor] | None = None
    task_weight: float = TASK_WEIGHT

    def __call__(
        self,
        logits: Tensor,
        positive: Tensor,
        labels: Tensor,
        boxes: Tensor | None,
        object_boxes: Tensor | None,
        *,
        ignored: Tensor | None = None,
        quality: Tensor | None = None,
    ) -> DetectionLosses:
        logits = logits.float()
        quality, box = localization(boxes, object_boxes, quality)
        wanted = quality if self.quality_as_target else torch.ones_like(quality)
        loss = self.loss(logits, quality_targets(logits, positive, labels, wanted, ignored))
        weights = self.weights(logits[positive], quality) if self.weights else None
        found = DetectionLosses({"classification": loss}, quality, weights, self.task_weight)
        found = found if box is None else found.with_task("box", box)
        _check_finite(found.losses)
        return found


class AverageLRP(nn.Module):
    """aLRP Loss in a detector (Oksuz et al., NeurIPS 2020): `classification`, and as `box` the localisation part, self-balanced.

    The localisation error of a positive is its GIoU loss: a half of it, which is in 0..1, divided by 1 - τ for τ = 1/2, as published.

    Args:
        period: batches after which the weight of the localisation part is set again, see `ALRPLoss`: an epoch.
    """

    needs_boxes = True

    def __init__(self, period: int = COCO_EPOCH):
        super().__init__()
        self.loss = ALRPLoss(period=period)

    def forward(
        self,
        logits: Tensor,
        positive: Tensor,
        labels: Tensor,
        boxes: Tensor | None,
        object_boxes: Tensor | None,
        *,
        ignored: Tensor | None = None,
        quality: Tensor | None = None,
    ) -> DetectionLosses:
        logits = logits.float()
        quality, errors = localization(boxes, object_boxes, quality)
        if errors is None:
            raise ValueError("aLRP Loss ranks the errors of boxes: it needs boxes and object_boxes")
        targets = quality_targets(logits, positive, labels, torch.ones_like(quality), ignored)
        in_order = (positive * logits.shape[1] + labels).argsort()  # as they are found among the targets
        classification, localized = self.loss(logits, targets, errors[in_order])
        return DetectionLosses({"classification": classification, "box": localized}, quality)


def build_criterion(name: str, batches_per_epoch: int = COCO_EPOCH) -> Criterion:
    """Returns the criterion of that name in `CRITERIA`; `batches_per_epoch` of a process matter to aLRP Loss's self-balance alone.

    Raises:
        ValueError: where there is no such loss.
    """
    if name not in CRITERIA:
        raise ValueError(f"there is no loss {name!r}: choose one of {', '.join(CRITERIA)}")
    return CRITERIA[name](batches_per_epoch)


def _check_finite(losses: dict[str, Tensor]) -> None:
    if not bool(torch.stack(list(losses.values())).isfinite().all()):
        raise NotFinite(
            f"the losses must be finite, got {', '.join(f'{name} {loss.item():g}' for name, loss in losses.items())}: "
            "look for a diverged model (lower the learning rate, clip gradients) or an overflow in half precision"
        )


def _by_confidence(logits: Tensor, quality: Tensor) -> Tensor:
    return confidence(logits)


def _by_quality(logits: Tensor, quality: Tensor) -> Tensor:
    return quality


CRITERIA: dict[str, Callable[[int], Criterion]] = {  # name in recipes -> what makes it, given the batches of an epoch
    "rank_sort": lambda _: rank_sort_detection_losses,
    "average_lrp": AverageLRP,
    "average_precision": lambda _: FixedWeights(average_precision_loss),
    "focal": lambda _: FixedWeights(focal_loss),
    "quality_focal": lambda _: FixedWeights(quality_focal_loss, quality_as_target=True, weights=_by_confidence),
    "varifocal": lambda _: FixedWeights(varifocal_loss, quality_as_target=True, weights=_by_quality),
}
