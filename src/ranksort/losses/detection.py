"""Use of a loss in a detector, RS Loss in particular (Oksuz et al. 2021, sections 4 and 5).

targets           a positive's target is the IoU of its predicted box with its object, of its own class only
ranking, sorting  RS Loss over all logits of the batch
box, mask         means over the positives, each weighted by its confidence
balance           every box and mask loss scaled to the value of the classification loss: no task weight to tune

A detector calls `rank_sort_detection_losses`, or another `Criterion`, after its own assignment of anchors or proposals to objects, with
all images of the batch in one list. Detectors with masks add their loss with `with_task` of the result, as `models/yolact.py` does. For
detectors like DETR, whose queries are matched one to one with the objects, there is `rank_sort_set_losses`. The other criteria are in
`criteria.py`.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple, Protocol

import torch
import torch.distributed as dist
from torch import Tensor

from .localization import giou_loss, paired_iou
from .processes import over_processes, sum_over_processes
from .rank_sort import rank_sort_loss

_TASKS = ("box", "mask")  # names of losses that are not classification losses


class DetectionLosses(NamedTuple):
    """The losses of a classifier and its boxes, or of a whole detector, for a batch."""

    losses: dict[str, Tensor]
    """scalars by name, to be summed: `box`, `mask`, and classification losses with any other names, such as `ranking` and `sorting`"""
    quality: Tensor  # how well each positive fits its object, in 0..1, without gradient, [P]; for the logs
    weights: Tensor | None = None
    """weights of the positives in the box and mask losses, without gradient, [P]; None: equal"""
    task_weight: float | None = None  # factor of the box and mask losses; None: they are self-balanced
    process_group: "dist.ProcessGroup | None" = None
    """the means are over the positives of this group; None: of this process"""

    @property
    def classification(self) -> Tensor:
        """The sum of all losses except `box` and `mask`, for `self_balanced`."""
        return sum((loss for name, loss in self.losses.items() if name not in _TASKS), self.quality.new_zeros(()))

    def with_task(self, name: str, losses: Tensor, chosen: Tensor | None = None) -> "DetectionLosses":
        """A copy with one more loss, `box` or `mask`: the weighted mean of `losses`, balanced with the classification.

        Args:
            name: name of the new loss.
            losses: loss of each positive, [P]; or of some, [M].
            chosen: which positives these are, int64 [M].
        """
        weights = self.weights if self.weights is None or chosen is None else self.weights[chosen]
        weights = torch.ones_like(losses) if weights is None else weights
        mean = weighted_mean(losses, weights, self.process_group)
        balanced = self_balanced(mean, self.classification) if self.task_weight is None else self.task_weight * mean
        return self._replace(losses=self.losses | {name: balanced})

    def logs(self) -> dict[str, Tensor]:
        """Values to log besides the losses: the number of `positives` and their mean `quality`, 0 if there are none."""
        positives = len(self.quality)
        count = self.quality.new_full((), positives)  # created on the device: copying a number there would wait
        return {"positives": count, "quality": self.quality.sum() / max(positives, 1)}


class Criterion(Protocol):
    """The training losses of a detector: a function or module with the arguments of `rank_sort_detection_losses`, which is one.

    A detector calls it for each of its classifiers: its head, or RPN and box heads; the RPN has a single class, "object". Each
    classifier has its own copy of a criterion with state. Its arguments come from:

        logits, positive, labels, ignored: from every detector.
        boxes, object_boxes: from all except those without a box branch, such as SOLOv2, which pass None.
        quality: only from those, instead of boxes; a criterion that does not support them needs no such argument.

    Detectors add their mask losses themselves, with `DetectionLosses.with_task`. Detectors without boxes refuse a criterion whose
    attribute `needs_boxes` is true.
    """

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
    ) -> DetectionLosses: ...


def localization(
    boxes: Tensor | None, object_boxes: Tensor | None, quality: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """How well the positives fit their objects, from the arguments of a `Criterion`.

    Returns:
        Their qualities without gradient, [P]: as given, or else the IoUs of their boxes; and the GIoU losses of their boxes, float32
        [P], None if there is no box branch.

    Raises:
        ValueError: there is neither a box nor a quality.
    """
    losses = None
    if boxes is not None and object_boxes is not None:
        boxes, object_boxes = boxes.float(), object_boxes.float()
        losses = giou_loss(boxes, object_boxes)
        quality = paired_iou(boxes.detach(), object_boxes) if quality is None else quality
    if quality is None:
        raise ValueError("the quality of the positives is needed if there are no boxes and object_boxes")
    return quality.detach(), losses


def quality_targets(
    logits: Tensor, positive: Tensor, labels: Tensor, quality: Tensor, ignored: Tensor | None = None
) -> Tensor:
    """Targets of RS Loss for a sigmoid classifier, one for each example and class.

    Args:
        logits: [A, C]; only shape, dtype and device matter.
        positive: int64 [P], which of the A examples are positive.
        labels: int64 [P], their classes, 0..C-1.
        quality: [P], their localisation qualities in [0, 1]. A quality of exactly 0 makes its example a negative, as published. If all
            can be 0, as with arbitrary initial predictions, nothing is learnt: clamp them above 0.
        ignored: bool [A], examples that take no part in any class, unless they are positive; None if all do.

    Returns:
        [A, C]: the quality at (positive, label), -1 in ignored rows, else 0.

    Examples:
        >>> import torch
        >>> from ranksort.losses.detection import quality_targets
        >>> logits = torch.zeros(3, 2)
        >>> quality_targets(logits, torch.tensor([1]), torch.tensor([0]), torch.tensor([0.8]), torch.tensor([False, False, True]))
        tensor([[ 0.0000,  0.0000],
                [ 0.8000,  0.0000],
                [-1.0000, -1.0000]])
    """
    targets = torch.zeros_like(logits)
    if ignored is not None:
        targets.masked_fill_(ignored[:, None], -1)
    targets[positive, labels] = quality.to(targets.dtype)
    return targets


def confidence(logits: Tensor) -> Tensor:
    """The weight of an example in the box and mask losses: its highest class probability, without gradient; [P, C] -> [P]."""
    return logits.detach().sigmoid().amax(-1)


def weighted_mean(losses: Tensor, weights: Tensor, process_group: "dist.ProcessGroup | None" = None) -> Tensor:
    """Σ weights · losses / Σ weights, for losses and weights [P]; 0, connected to the graph, where P = 0.

    With `confidence` as weights this is the box or mask loss of section 4: high-scoring detections are reported, so they should fit.
    With a process group, the sums are over all its processes, which all have to call it; for the gradient see `over_processes`.
    """
    own = (losses * weights).sum()
    if process_group is None:
        return own / weights.sum().clamp(min=1e-10)
    total, weight = sum_over_processes(torch.stack([own, weights.sum()]), process_group)
    weight = weight.clamp(min=1e-10)
    return over_processes(own / weight, total / weight, process_group)


def self_balanced(task_loss: Tensor, *classification: Tensor) -> Tensor:
    """`task_loss` scaled by λ = detach(Σ classification) / detach(task_loss) (section 4.2, "self-balancing"); all scalars.

    Its value becomes that of the classification loss, such as ranking + sorting; its gradient keeps its direction. A task loss of 0
    stays 0. Several tasks are balanced separately.
    """
    task = task_loss.detach()
    scale = sum(classification, torch.zeros_like(task)).detach() / torch.where(task == 0, 1.0, task)
    return task_loss * torch.where(task == 0, 0.0, scale)


def rank_sort_detection_losses(
    logits: Tensor,
    positive: Tensor,
    labels: Tensor,
    boxes: Tensor | None,
    object_boxes: Tensor | None,
    *,
    ignored: Tensor | None = None,
    quality: Tensor | None = None,
    delta: float = 0.5,
    process_group: "dist.ProcessGroup | None" = None,
) -> DetectionLosses:
    """RS Loss of a classifier with a box branch, for anchors and for RoIs alike, all images of the batch ranked as one.

    Args:
        logits: class scores before the sigmoid, [A, C].
        positive: int64 [P], which of the A examples are positive, each once.
        labels: int64 [P], the classes of their objects, 0..C-1; for the other classes, a positive is a negative.
        boxes: the predicted boxes of the positives, decoded, with gradient, xyxy [P, 4]; None if there is no box branch.
        object_boxes: the boxes of their objects, xyxy [P, 4]; None if there is no box branch.
        ignored: bool [A], examples that take no part in the ranking.
        quality: how well each positive fits its object, in 0..1, [P], such as the Dice coefficient of its mask; None: the IoU of its box.
        delta: half the width of RS Loss's smoothed step.
        process_group: rank, weigh and balance over the examples of all its processes, as a single process with all of them would. All
            have to call it, and get the same losses; the mean of their gradients, which DDP takes, is the gradient of that single
            process.

    Returns:
        The losses `ranking`, `sorting` and, with boxes, `box` (GIoU, confidence-weighted, self-balanced), float32 scalars to be summed
        without weights, and the quality of the positives. Without positives, all losses are 0, connected to the graph.

    Raises:
        ValueError: logits or boxes are not finite, or there is neither a box nor a quality.

    Examples:
        >>> import torch
        >>> from ranksort.losses.detection import rank_sort_detection_losses
        >>> logits = torch.zeros(100, 3, requires_grad=True)  # 100 anchors or proposals, 3 classes
        >>> boxes = torch.tensor([[10.0, 10.0, 30.0, 30.0]], requires_grad=True)  # predicted by the only positive, number 7
        >>> positive, labels = torch.tensor([7]), torch.tensor([2])
        >>> found = rank_sort_detection_losses(logits, positive, labels, boxes, torch.tensor([[10.0, 10.0, 30.0, 20.0]]))
        >>> sum(found.losses.values()).backward()
        >>> sorted(found.losses), found.quality  # the quality is the IoU
        (['box', 'ranking', 'sorting'], tensor([0.5000]))
    """
    logits = logits.float()
    quality, box = localization(boxes, object_boxes, quality)
    targets = quality_targets(logits, positive, labels, quality, ignored)
    ranked = rank_sort_loss(logits, targets, delta=delta, process_group=process_group)
    losses = {name: over_processes(loss, loss, process_group) for name, loss in ranked._asdict().items()}
    found = DetectionLosses(losses, quality, confidence(logits[positive]), process_group=process_group)
    return found if box is None else found.with_task("box", box)


def rank_sort_set_losses(
    layers: Iterable[tuple[Tensor, Tensor, Sequence[tuple[Tensor, Tensor]]]],
    labels: Sequence[Tensor],
    object_boxes: Sequence[Tensor],
    *,
    least_quality: float = 0.01,
    l1_weight: float = 2.5,
    delta: float = 0.5,
) -> dict[str, Tensor]:
    """RS Loss for set prediction (DETR and similar): queries matched one to one with objects are positives, the others negatives.

    Args:
        layers: everything with its own loss: the decoder's last layer, its auxiliary layers, the encoder's proposals, denoising
            queries. Each ranks its own queries, those of all images together. Each is a tuple of

            - the class scores of its queries before the sigmoid, [B, Q, C], without a column for "no object". A softmax with such a
              column, as in plain DETR, cannot be ranked across queries: drop the column, and report sigmoids.
            - their boxes, with gradient, xyxy [B, Q, 4], as fractions of the sides of their images;
            - for each image, the queries and the objects they are matched with, int64 [P_b] each, as from Hungarian matchers.

        labels: for each image, the classes of its objects, int64 [G_b], 0..C-1.
        object_boxes: for each image, the boxes of its objects, xyxy [G_b, 4], in the unit of the layers.
        least_quality: lower bound of the IoU of a matched query. A match need not overlap its object, especially early in training, and
            with a quality of 0 it would be a negative.
        l1_weight: weight of the L1 distance of centre, width and height relative to GIoU in the box loss; by default as in DETR, 5 to 2.
        delta: half the width of RS Loss's smoothed step.

    Returns:
        The losses `ranking`, `sorting` and `box` (GIoU and L1, in each layer weighted by confidence and self-balanced), float32 scalars
        to be summed without weights; each is a sum over the layers.

    Raises:
        ValueError: there is no layer, or logits or boxes are not finite.
    """
    of_layers = []
    for logits, boxes, matches in layers:
        starts = range(0, logits.shape[1] * len(matches), logits.shape[1])
        positive = torch.cat([found + start for start, (found, _) in zip(starts, matches, strict=True)]).to(
            logits.device
        )
        classes, wanted = (
            torch.cat(
                [of_image[objects.to(of_image.device)] for of_image, (_, objects) in zip(known, matches, strict=True)]
            )
            for known in (labels, object_boxes)
        )
        predicted, wanted = boxes.flatten(0, 1)[positive].float(), wanted.float()
        quality = paired_iou(predicted.detach(), wanted).clamp(min=least_quality)
        box = giou_loss(predicted, wanted) + l1_weight * _l1(predicted, wanted)
        found = rank_sort_detection_losses(
            logits.flatten(0, 1), positive, classes, None, None, quality=quality, delta=delta
        )
        of_layers.append(found.with_task("box", box).losses)
    if not of_layers:
        raise ValueError("set prediction needs the outputs of at least one layer")
    return {name: torch.stack([losses[name] for losses in of_layers]).sum() for name in of_layers[0]}


def _l1(boxes: Tensor, others: Tensor) -> Tensor:
    """The L1 distance of boxes, xyxy [P, 4], from others in centre, width and height; [P]."""
    difference = boxes - others
    low, high = difference[:, :2], difference[:, 2:]
    return ((low + high) / 2).abs().sum(1) + (high - low).abs().sum(1)
