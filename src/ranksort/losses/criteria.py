"""All losses that detectors can be trained with, in one table. Anchors, positives and heads are the same for all of them.

| name | targets of the positives | weights of the positives for boxes and masks | box and mask losses |
|---|---|---|---|
| rank_sort | IoU | confidence | self-balanced |
| average_lrp | 1, and the GIoU losses as errors | boxes: their rank; masks: 1 | self-balanced |
| average_precision | 1 | 1 | times 2 |
| focal | 1 | 1 | times 2 |
| quality_focal | IoU | confidence | times 2 |
| varifocal | IoU | IoU | times 2 |

Box losses are GIoU, mask losses Dice, both weighted means over the positives. Without boxes, the quality of the masks replaces the IoU.
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
TASK_WEIGHT = 2.0  # of box and mask losses that are not self-balanced: as for boxes in ATSS and GFL
COCO_EPOCH = 7330  # batches of 16 images


@dataclass(frozen=True)
class FixedWeights:
    """A criterion with one classification loss and fixed weights of box and mask losses: `classification`, `box`.

    Attributes:
        loss: maps logits and targets, [A, C] each, to a scalar. A ranking loss may also take a `process_group`.
        quality_as_target: whether the target of a positive is its quality; otherwise it is 1.
        weights: of the positives in the box and mask losses, [P], from their logits [P, C] and qualities [P]; None: all the same.
        task_weight: factor of the box and mask losses.
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

    The localisation error of a positive is half its GIoU loss, which is in 0..1, divided by 1 - τ for τ = 1/2, as published.

    Args:
        period: number of batches after which the weight of the localisation part is updated (an epoch), see `ALRPLoss`.
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
        in_order = (positive * logits.shape[1] + labels).argsort()  # in the order of the targets
        classification, localized = (
            over_processes(loss, loss, process_group)
            for loss in self.loss(logits, targets, errors[in_order], process_group)
        )
        return DetectionLosses(
            {"classification": classification, "box": localized}, quality, process_group=process_group
        )


class GlobalRanking(nn.Module):
    """A criterion over the examples of all processes in training, and of its own process in evaluation.

    Its losses, and the mean of the processes' gradients, equal those of a single process with all images. All processes have to call it
    equally often.

    Args:
        criterion: takes `process_group`, as `rank_sort_detection_losses`.
    """

    def __init__(self, criterion: Callable[..., DetectionLosses]):
        super().__init__()
        self.criterion = criterion
        self.needs_boxes = getattr(criterion, "needs_boxes", False)

    def forward(self, *args: Tensor | None, **kwargs: Tensor | None) -> DetectionLosses:
        # Looked up at each call: models are built before processes are connected.
        return self.criterion(*args, **kwargs, process_group=all_processes() if self.training else None)


def build_criterion(name: str, batches_per_epoch: int = COCO_EPOCH, *, global_ranking: bool = False) -> Criterion:
    """Build the criterion with this name in `CRITERIA`.

    Args:
        name: in `CRITERIA`.
        batches_per_epoch: number of batches of a process; only used by aLRP Loss's self-balancing.
        global_ranking: whether to rank over the examples of all processes in training.

    Raises:
        ValueError: there is no such loss, or it does not rank.
    """
    if name not in CRITERIA:
        raise ValueError(f"there is no loss {name!r}: choose one of {', '.join(CRITERIA)}")
    criterion = CRITERIA[name](batches_per_epoch)
    if global_ranking and name not in RANKING:
        raise ValueError(f"--training.global-ranking is for ranking losses, {', '.join(RANKING)}, not for {name}")
    return GlobalRanking(criterion) if global_ranking else criterion


def _check_finite(losses: dict[str, Tensor]) -> None:
    """Raise ValueError if a loss is not finite. Skipped on a GPU, to avoid waiting; the training loop checks the loss."""
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


# Name in recipes -> function that builds it, given the number of batches of an epoch.
CRITERIA: dict[str, Callable[[int], Criterion]] = {
    "rank_sort": lambda _: rank_sort_detection_losses,
    "average_lrp": AverageLRP,
    "average_precision": lambda _: FixedWeights(average_precision_loss),
    "focal": lambda _: FixedWeights(focal_loss),
    "quality_focal": lambda _: FixedWeights(quality_focal_loss, quality_as_target=True, weights=_by_confidence),
    "varifocal": lambda _: FixedWeights(varifocal_loss, quality_as_target=True, weights=_by_quality),
}
