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
import torch.distributed as dist
from torch import Tensor, nn

from .average_lrp import ALRPLoss
from .average_precision import average_precision_loss
from .counting import on_cpu
from .detection import (
    Criterion,
    DetectionLosses,
    confidence,
    localization,
    quality_targets,
    rank_sort_detection_losses,
)
from .not_finite import NotFinite
from .processes import all_processes, over_processes
from .score_based import focal_loss, quality_focal_loss, varifocal_loss

RANKING = ("rank_sort", "average_lrp", "average_precision")  # names of the losses that rank
TASK_WEIGHT = 2.0  # of box and mask losses that are not self-balanced: ATSS's and GFL's of boxes
COCO_EPOCH = 7330  # batches of 16 images


@dataclass(frozen=True)
class FixedWeights:
    """A criterion of one classification loss, and of box and mask losses with a fixed weight: `classification`, `box`.

    Attributes:
        loss: of logits and targets, [A, C] each: a scalar. One that ranks may be called with a `process_group`, too.
        quality_as_target: whether the target of a positive is its quality; else it is 1.
        weights: of the positives in the box and mask losses, [P], from their logits [P, C] and qualities [P]; None: all the same.
        task_weight: what the box and mask losses are multiplied by.
    """

    loss: Callable[..., Tensor]
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
        process_group: "dist.ProcessGroup | None" = None,
    ) -> DetectionLosses:
        logits = logits.float()
        quality, box = localization(boxes, object_boxes, quality)
        wanted = quality if self.quality_as_target else torch.ones_like(quality)
        targets = quality_targets(logits, positive, labels, wanted, ignored)
        if process_group is None:
            loss = self.loss(logits, targets)
        else:
            ranked = self.loss(logits, targets, process_group=process_group)
            loss = over_processes(ranked, ranked, process_group)
        weights = self.weights(logits[positive], quality) if self.weights else None
        found = DetectionLosses({"classification": loss}, quality, weights, self.task_weight, process_group)
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
        process_group: "dist.ProcessGroup | None" = None,
    ) -> DetectionLosses:
        logits = logits.float()
        quality, errors = localization(boxes, object_boxes, quality)
        if errors is None:
            raise ValueError("aLRP Loss ranks the errors of boxes: it needs boxes and object_boxes")
        targets = quality_targets(logits, positive, labels, torch.ones_like(quality), ignored)
        in_order = (positive * logits.shape[1] + labels).argsort()  # as they are found among the targets
        classification, localized = (
            over_processes(loss, loss, process_group)
            for loss in self.loss(logits, targets, errors[in_order], process_group)
        )
        return DetectionLosses(
            {"classification": classification, "box": localized}, quality, process_group=process_group
        )


class GlobalRanking(nn.Module):
    """A criterion over the examples of all processes in training, and over those of its own process in evaluation.

    Its losses, and the mean of the processes' gradients, are those of one process with all images. Each process has to call it equally
    often.

    Args:
        criterion: takes `process_group`, as `rank_sort_detection_losses`.
    """

    def __init__(self, criterion: Callable[..., DetectionLosses]):
        super().__init__()
        self.criterion = criterion
        self.needs_boxes = getattr(criterion, "needs_boxes", False)

    def forward(self, *args: Tensor | None, **kwargs: Tensor | None) -> DetectionLosses:
        # Asked for at each call: models are built before processes meet.
        return self.criterion(*args, **kwargs, process_group=all_processes() if self.training else None)


def build_criterion(name: str, batches_per_epoch: int = COCO_EPOCH, *, global_ranking: bool = False) -> Criterion:
    """Return the criterion of that name in `CRITERIA`.

    Args:
        name: in `CRITERIA`.
        batches_per_epoch: of a process; they matter to aLRP Loss's self-balance alone.
        global_ranking: whether it ranks over the examples of all processes in training.

    Raises:
        ValueError: there is no such loss, or it does not rank.
    """
    if name not in CRITERIA:
        raise ValueError(f"there is no loss {name!r}: choose one of {', '.join(CRITERIA)}")
    criterion = CRITERIA[name](batches_per_epoch)
    if global_ranking and name not in RANKING:
        raise ValueError(f"--training.global-ranking is for losses that rank, {', '.join(RANKING)}, not for {name}")
    return GlobalRanking(criterion) if global_ranking else criterion


def _check_finite(losses: dict[str, Tensor]) -> None:
    """Raise ValueError where a loss is not finite. Not on a GPU, which would be waited for at each call: the loop sees the loss."""
    if not all(map(on_cpu, losses.values())):
        return
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
