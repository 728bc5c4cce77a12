"""RS-PAA: RS-ATSS with positives which the model's own losses choose (Probabilistic Anchor Assignment, Kim and Lee, ECCV 2020).

    images -> backbone C3..C5 -> FPN P3..P7 -> dense head: logits and box deltas for three anchors at every cell
    training: candidates by IoU -> of each object the best of every level by focal + GIoU loss -> two Gaussians -> positives
              -> RS Loss on all logits, GIoU on the boxes of the positives
    testing:  1000 best anchors of each level -> decode -> NMS -> score voting

Next to PAA as published there is no IoU branch, nor any weight between the tasks.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import sigmoid_focal_loss

from ..losses.detection import rank_sort_detection_losses
from ..losses.localization import giou_loss
from .anchors import AnchorGenerator
from .atss import STRIDES
from .backbones import Backbone
from .boxes import decode_chosen
from .dense_head import DenseHead
from .fpn import FPN
from .images import ImageBatch, ImageTransform, Size, check_input
from .matchers import ANY_OVERLAP, IGNORED, collect, match_iou
from .mixture import low_component
from .postprocess import best_regions, non_maximum_suppression, score_voting


class PAA(nn.Module):
    """RS-PAA, called as torchvision's detectors are; attributes and arguments are those of `ATSS`."""

    def __init__(
        self,
        backbone: Backbone,
        transform: ImageTransform,
        num_classes: int,
        *,
        channels: int = 256,
        head_convs: int = 4,
        prior: float = 0.01,
        score_threshold: float = 0.05,
        nms_threshold: float = 0.6,
        detections_per_image: int = 100,
    ):
        super().__init__()
        self.transform = transform
        self.backbone = backbone
        self.fpn = FPN(backbone.channels[-3:], channels, levels=len(STRIDES))
        self.anchors = AnchorGenerator(STRIDES, scales=[4 * 2 ** (i / 3) for i in range(3)])
        self.head = DenseHead(channels, num_classes, self.anchors.per_cell, len(STRIDES), head_convs, prior)
        self.num_classes = num_classes
        self.num_positives = 0
        self.score_threshold = score_threshold
        self.nms_threshold = nms_threshold
        self.detections_per_image = detections_per_image

    def forward(
        self, images: Sequence[Tensor], targets: Sequence[dict[str, Tensor]] | None = None
    ) -> dict[str, Tensor] | list[dict[str, Tensor]]:
        """Losses in training mode, detections in evaluation mode, with arguments, returns and errors of `ATSS.forward`."""
        check_input(images, targets, self.num_classes, self.training)
        batch, targets = self.transform(images, targets)
        if self.training:
            return self.losses(batch, targets)
        return self.transform.to_original(self.detect(batch), batch)

    def predict(self, batch: ImageBatch) -> tuple[list[Tensor], list[Tensor], list[Size]]:
        """Returns for each level the class logits [B, A_l, C], the box deltas [B, A_l, 4] and the size of its map."""
        features = self.fpn(self.backbone(batch.pixels)[-3:])
        logits, deltas = self.head(features)
        return logits, deltas, [(x.shape[-2], x.shape[-1]) for x in features]

    def losses(self, batch: ImageBatch, targets: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
        """The losses of a batch whose targets are in its coordinates; see `forward`."""
        logits, deltas, sizes = self.predict(batch)
        device = batch.pixels.device
        anchors = self.anchors(sizes, device)
        all_anchors, all_logits = torch.cat(anchors), torch.cat(logits, 1).flatten(0, 1)
        matches = []
        for target, padded in zip(targets, batch.padded_sizes, strict=True):
            in_image = torch.cat(self.anchors.in_image(sizes, padded, device))
            match = torch.full_like(in_image, IGNORED, dtype=torch.int64)
            match[in_image] = match_iou(
                all_anchors[in_image], target["boxes"], positive=0.1, negative=0.1, low_quality=ANY_OVERLAP
            )
            matches.append(match)
        candidates = collect(matches, targets)
        boxes = decode_chosen(deltas, anchors, candidates.positive)
        ends = torch.tensor([len(a) for a in anchors], device=device).cumsum(0)
        most_objects = max(len(target["labels"]) for target in targets)
        chosen = choose_positives(
            candidate_losses(
                all_logits[candidates.positive].detach(), candidates.labels, boxes.detach(), candidates.boxes
            ),
            owner=candidates.image * most_objects + candidates.object,
            level=torch.bucketize(candidates.positive % len(all_anchors), ends, right=True),
            num_objects=len(targets) * most_objects,
            num_levels=len(anchors),
        )
        self.num_positives = len(chosen)
        return rank_sort_detection_losses(
            all_logits,
            candidates.positive[chosen],
            candidates.labels[chosen],
            boxes[chosen],
            candidates.boxes[chosen],
            ignored=candidates.ignored,
        )

    def detect(self, batch: ImageBatch) -> list[dict[str, Tensor]]:
        """The detections of a batch, boxes in its coordinates; see `forward`."""
        logits, deltas, sizes = self.predict(batch)
        anchors = self.anchors(sizes, batch.pixels.device)
        detections = []
        for image, size in enumerate(batch.sizes):
            boxes, scores, _ = best_regions([x[image] for x in logits], [x[image] for x in deltas], anchors, size)
            kept = non_maximum_suppression(
                boxes,
                scores,
                score_threshold=self.score_threshold,
                nms_threshold=self.nms_threshold,
                detections_per_image=self.detections_per_image,
            )
            detections.append(score_voting(kept, boxes, scores, score_threshold=self.score_threshold))
        return detections


def candidate_losses(logits: Tensor, labels: Tensor, boxes: Tensor, object_boxes: Tensor) -> Tensor:
    """How ill each candidate fits its object: focal loss over all classes plus GIoU loss.

    Args:
        logits: [N, C].
        labels: int64 [N], classes of the objects.
        boxes: predicted boxes, xyxy [N, 4].
        object_boxes: xyxy [N, 4].

    Returns:
        float32 [N].
    """
    logits = logits.float()
    wanted = F.one_hot(labels, logits.shape[1]).to(logits.dtype)
    return sigmoid_focal_loss(logits, wanted).sum(1) + giou_loss(boxes, object_boxes)


def choose_positives(
    losses: Tensor, owner: Tensor, level: Tensor, *, num_objects: int, num_levels: int, top_k: int = 9
) -> Tensor:
    """Probabilistic Anchor Assignment, for all objects of a batch at once.

    Of an object's candidates the `top_k` of lowest loss on each level remain. Two Gaussians are fitted to their losses. Positive are the
    members of the lower one up to the loss of the most likely member. An object with a single candidate gets no positive.

    Args:
        losses: of the candidates, [N].
        owner: int64 [N], to which object each belongs, 0..num_objects-1; some may have none.
        level: int64 [N], on which level of the pyramid each is, 0..num_levels-1.
        num_objects: G.
        num_levels: L.
        top_k: candidates for each level and object.

    Returns:
        int64 [P], which of the candidates are positive.
    """
    group = owner * num_levels + level
    # One sort by group, then loss: the bits of floats >= 0 rise as the floats do.
    order = ((group << 32) | losses.float().clamp(min=0).view(torch.int32)).argsort()
    best = order[_place_in_run(group[order], num_objects * num_levels) < top_k]

    row, column = owner[best], _place_in_run(owner[best], num_objects)
    exact = torch.float32 if losses.device.type == "mps" else torch.float64  # MPS has no float64
    table = torch.zeros(num_objects, num_levels * top_k, dtype=exact, device=losses.device)
    table[row, column] = losses[best].to(exact)
    valid = torch.zeros_like(table, dtype=torch.bool)
    valid[row, column] = True

    low, likelihood = low_component(table, valid)
    likeliest = likelihood.masked_fill(~low, -torch.inf).argmax(1, keepdim=True)
    positive = low & (table <= table.gather(1, likeliest)) & (valid.sum(1, keepdim=True) > 1)
    return best[positive[row, column]]


def _place_in_run(values: Tensor, limit: int) -> Tensor:
    """For each of some rising values in 0..limit-1 how many equal ones are before it: [2, 2, 5] -> [0, 1, 0]."""
    counts = values.bincount(minlength=limit)
    return torch.arange(len(values), device=values.device) - (counts.cumsum(0) - counts)[values]
