"""RS-PAA: RS-ATSS with positives chosen by the model's own losses (Probabilistic Anchor Assignment, Kim and Lee, ECCV 2020).

    images -> backbone C3..C5 -> FPN P3..P7 -> dense head: logits and box deltas for three anchors at every cell
    training: candidates by IoU -> best ones of each object and level by focal + GIoU loss -> two Gaussians -> positives
              -> RS Loss on all logits, GIoU on the boxes of the positives
    testing:  1000 best anchors of each level -> decode -> NMS -> score voting

Unlike the published PAA, it has no IoU branch and no task weights.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.ops import sigmoid_focal_loss

from ..losses.detection import DetectionLosses
from ..losses.localization import giou_loss
from .dense_head import DenseDetector
from .images import ImageBatch
from .matchers import collect, match_iou
from .mixture import low_component
from .postprocess import score_voting


class PAA(DenseDetector):
    """RS-PAA: losses `ranking`, `sorting` and `box`. For the arguments see `DenseDetector`.

    Examples:
        >>> import torch
        >>> from ranksort import create_model
        >>> model = create_model("ranksort_paa_r50_fpn_1x_coco", num_classes=3, backbone="resnet18", min_size=64, channels=64)
        >>> target = {"boxes": torch.tensor([[8.0, 8.0, 40.0, 40.0]]), "labels": torch.tensor([1])}
        >>> sorted(model([torch.rand(3, 64, 64)], [target]))
        ['box', 'ranking', 'sorting']
    """

    def losses(self, batch: ImageBatch, targets: Sequence[dict[str, Tensor]]) -> DetectionLosses:
        output = self.outputs(batch)
        anchors, all_logits = torch.cat(output.anchors), output.all_logits()
        matches = []
        for target, padded in zip(targets, batch.padded_sizes, strict=True):
            in_image = torch.cat(self.anchors.in_image(output.map_sizes, padded, anchors.device))
            matches.append(
                match_iou(anchors, target["boxes"], positive=0.1, negative=0.1, low_quality=0, usable=in_image)
            )
        candidates = collect(matches, targets)
        boxes = output.boxes(candidates.positive)
        most_objects = max(len(target["labels"]) for target in targets)
        logits = all_logits[candidates.positive].detach()
        chosen = choose_positives(
            candidate_losses(logits, candidates.labels, boxes.detach(), candidates.boxes),
            owner=candidates.image * most_objects + candidates.object,
            level=output.level(candidates.positive),
            num_objects=len(targets) * most_objects,
            num_levels=len(output.anchors),
        )
        return self.criterion(
            all_logits,
            candidates.positive[chosen],
            candidates.labels[chosen],
            boxes[chosen],
            candidates.boxes[chosen],
            ignored=candidates.ignored,
        )

    def detect(self, batch: ImageBatch) -> list[dict[str, Tensor]]:
        output = self.outputs(batch)
        detections = []
        for image, size in enumerate(batch.sizes):
            boxes, scores, _ = output.best_regions(image, size)
            kept = self.suppress(boxes, scores)
            detections.append(score_voting(kept, boxes, scores, score_threshold=self.score_threshold))
        return detections


def candidate_losses(logits: Tensor, labels: Tensor, boxes: Tensor, object_boxes: Tensor) -> Tensor:
    """How badly each candidate fits its object: focal loss over all classes plus GIoU loss, float32 [N].

    Logits are [N, C], the labels of the objects int64 [N], predicted boxes and those of the objects xyxy [N, 4].
    """
    logits = logits.float()
    one_hot = F.one_hot(labels, logits.shape[1]).to(logits.dtype)
    return sigmoid_focal_loss(logits, one_hot).sum(1) + giou_loss(boxes, object_boxes)


def choose_positives(
    losses: Tensor, owner: Tensor, level: Tensor, *, num_objects: int, num_levels: int, top_k: int = 9
) -> Tensor:
    """Probabilistic Anchor Assignment, for all objects of a batch at once.

    The `top_k` candidates of an object with the lowest loss on each level are kept. Two Gaussians are fitted to their losses. The
    members of the lower one, up to the loss of the most likely member, are positive. An object with a single candidate has no
    positives.

    Args:
        losses: losses of the candidates, [N].
        owner: int64 [N], the object of each, 0..num_objects-1; objects may have no candidates.
        level: int64 [N], the pyramid level of each, 0..num_levels-1.
        num_objects: G.
        num_levels: L.
        top_k: candidates for each level and object.

    Returns:
        int64 [P], which of the candidates are positive.
    """
    # A single sort by object and level, then loss: the bits of floats >= 0 have the same order as the floats.
    group = owner * num_levels + level
    keys, order = ((group << 32) | losses.float().clamp(min=0).view(torch.int32)).sort()
    group = keys >> 32
    best = torch.cat([order[:top_k], order[top_k:][group[top_k:] != group[:-top_k]]])

    row = owner[best]
    before = torch.searchsorted(row, row)  # number of candidates of the objects before its own
    column = torch.arange(len(row), device=row.device) - before
    exact = torch.float32 if losses.device.type == "mps" else torch.float64  # MPS has no float64
    table = torch.full((num_objects, num_levels * top_k), torch.inf, dtype=exact, device=losses.device)
    table[row, column] = losses[best].to(exact)

    low, likelihood = low_component(table)
    likeliest = likelihood.masked_fill(~low, -torch.inf).argmax(1, keepdim=True)
    several = table[:, 1:2] < torch.inf
    positive = low & (table <= table.gather(1, likeliest)) & several
    return best[positive[row, column]]
