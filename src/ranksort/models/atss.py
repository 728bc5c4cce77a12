"""RS-ATSS: a one-stage detector whose positives are chosen by ATSS (Zhang et al., CVPR 2020) and ranked by RS Loss.

    images -> backbone C3..C5 -> FPN P3..P7 -> dense head: logits and box deltas for three anchors at every cell
    training: match anchors to objects -> RS Loss on all logits, GIoU on the boxes of the positives
    testing:  1000 best anchors of each level -> decode -> NMS

Next to ATSS as published there is no centreness branch and no focal loss, nor any weight between the tasks.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..losses.detection import rank_sort_detection_losses
from .anchors import AnchorGenerator
from .backbones import Backbone
from .boxes import decode_chosen
from .dense_head import DenseHead
from .fpn import FPN
from .images import ImageBatch, ImageTransform, Size, check_input
from .matchers import collect, match_atss
from .postprocess import best_regions, non_maximum_suppression

STRIDES = (8, 16, 32, 64, 128)


class ATSS(nn.Module):
    """RS-ATSS, called as torchvision's detectors are.

    Attributes:
        num_positives: positives of the last training batch, for the logs.

    Args:
        backbone: gives features of strides 8, 16 and 32 as the last three of its levels.
        transform: resizing and normalisation.
        num_classes: C; labels are 0..C-1, there is no background class.
        channels: of the pyramid and the head, a multiple of 32 from 64 on.
        head_convs: depth of the head's towers.
        prior: class probability which training starts from.
        score_threshold: least score of a detection, in 0..1.
        nms_threshold: IoU above which the lower of two detections of a class is dropped.
        detections_per_image: most detections reported.
    """

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
        """Losses in training mode, detections in evaluation mode.

        Args:
            images: RGB, float in 0..1 (or uint8), [3, H, W] each, of any sizes.
            targets: for training; one dict an image with `boxes` [G, 4] xyxy in pixels and `labels` int64 [G] in 0..C-1. G may be 0.

        Returns:
            In training mode `ranking`, `sorting` and `box`, to be summed. In evaluation mode one dict an image with `boxes` [D, 4] xyxy in
            pixels of the original image, `scores` [D] in 0..1, falling, and `labels` [D].

        Raises:
            ValueError: in training mode without targets, or where an image or target has the wrong shape or a box has no area.
        """
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
        matched = collect(
            [
                match_atss(anchors, target["boxes"], self.anchors.in_image(sizes, padded, device))
                for target, padded in zip(targets, batch.padded_sizes, strict=True)
            ],
            targets,
        )
        self.num_positives = len(matched.positive)
        return rank_sort_detection_losses(
            torch.cat(logits, 1).flatten(0, 1),
            matched.positive,
            matched.labels,
            decode_chosen(deltas, anchors, matched.positive),
            matched.boxes,
            ignored=matched.ignored,
        )

    def detect(self, batch: ImageBatch) -> list[dict[str, Tensor]]:
        """The detections of a batch, boxes in its coordinates; see `forward`."""
        logits, deltas, sizes = self.predict(batch)
        anchors = self.anchors(sizes, batch.pixels.device)
        detections = []
        for image, size in enumerate(batch.sizes):
            boxes, scores, _ = best_regions([x[image] for x in logits], [x[image] for x in deltas], anchors, size)
            detections.append(
                non_maximum_suppression(
                    boxes,
                    scores,
                    score_threshold=self.score_threshold,
                    nms_threshold=self.nms_threshold,
                    detections_per_image=self.detections_per_image,
                )
            )
        return detections
