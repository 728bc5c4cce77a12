"""RS-RPN: the region proposal network (Ren et al., NeurIPS 2015) on a pyramid, trained with RS Loss without sampling."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torchvision.ops import nms

from ..losses.detection import Criterion, rank_sort_detection_losses
from .anchors import AnchorGenerator, AnchorPredictions
from .images import ImageBatch, Size
from .layers import normal_convs, per_anchor
from .matchers import collect, match_iou
from .postprocess import nms_by_group

STRIDES = (4, 8, 16, 32, 64)
_LOSS_WEIGHT = 0.2


class RPN(nn.Module):
    """A 3x3 convolution, then objectness and box deltas of three anchors at every cell, shared by all levels.

    Args:
        channels: of the pyramid.
        ignore_crossing: whether anchors that cross the border of their image take no part in training.
        nms_threshold: IoU above which the lower-scoring of two proposals of a level is dropped.
        limit: maximum number of proposals per image.
    """

    def __init__(self, channels: int, *, ignore_crossing: bool = False, nms_threshold: float = 0.7, limit: int = 1000):
        super().__init__()
        self.anchors = AnchorGenerator(STRIDES, scales=[8.0], ratios=(0.5, 1.0, 2.0))
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)
        self.objectness = nn.Conv2d(channels, self.anchors.per_cell, 1)
        self.box_deltas = nn.Conv2d(channels, self.anchors.per_cell * 4, 1)
        normal_convs(self)
        self.ignore_crossing = ignore_crossing
        self.nms_threshold = nms_threshold
        self.limit = limit

    def forward(self, features: Sequence[Tensor]) -> AnchorPredictions:
        """Map the pyramid P2..P6, [B, channels, H_l, W_l], to logits and deltas of all anchors."""
        hidden = [self.conv(x).relu_() for x in features]
        logits = [per_anchor(self.objectness(x), 1) for x in hidden]
        return self.anchors.predictions(features, logits, [per_anchor(self.box_deltas(x), 4) for x in hidden])

    def losses(
        self,
        output: AnchorPredictions,
        batch: ImageBatch,
        targets: Sequence[dict[str, Tensor]],
        criterion: Criterion = rank_sort_detection_losses,
    ) -> dict[str, Tensor]:
        """`rpn_ranking` and `rpn_sorting` over the anchors that belong to an image of the batch, `rpn_box` over the positives.

        With another `criterion`, the names of its losses after `rpn_`.
        """
        anchors = torch.cat(output.anchors)
        matches = []
        for target, (height, width), padded_size in zip(targets, batch.sizes, batch.padded_sizes, strict=True):
            usable = torch.cat(self.anchors.in_image(output.map_sizes, padded_size, anchors.device))
            if self.ignore_crossing:
                usable &= (anchors[:, :2] >= 0).all(1) & (anchors[:, 2:] < anchors.new_tensor([width, height])).all(1)
            matches.append(
                match_iou(anchors, target["boxes"], positive=0.7, negative=0.3, low_quality=0.3, usable=usable)
            )
        matched = collect(matches, targets)
        found = criterion(
            output.all_logits(),
            matched.positive,
            torch.zeros_like(matched.labels),
            output.boxes(matched.positive),
            matched.boxes,
            ignored=matched.ignored,
        )
        return {f"rpn_{name}": _LOSS_WEIGHT * loss for name, loss in found.losses.items()}

    @torch.no_grad()
    def proposals(self, output: AnchorPredictions, image_sizes: Sequence[Size]) -> list[Tensor]:
        """The proposals of each image, xyxy in pixels of the batch, [<= limit, 4].

        As published, those without area after clipping to the image are kept.
        """
        proposals = []
        for image, size in enumerate(image_sizes):
            limit = 2000 if self.training else 1000
            boxes, scores, anchor = output.best_regions(image, size, limit=limit)
            if boxes.device.type == "cpu":  # which can be exported
                counts = [torch.sym_min(limit, level.shape[0]) for level in output.anchors]
                levels = zip(
                    torch.arange(boxes.shape[0]).split(counts),
                    boxes.float().split(counts),
                    scores[:, 0].float().split(counts),
                    strict=True,
                )
                kept = torch.cat([place[nms(b, s, self.nms_threshold)] for place, b, s in levels])
                kept = kept[scores[kept, 0].sort(descending=True, stable=True).indices]
            else:
                kept = nms_by_group(boxes, scores[:, 0], output.level(anchor), self.nms_threshold)
            proposals.append(boxes[kept[: self.limit]])
        return proposals
