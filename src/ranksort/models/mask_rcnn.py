"""RS-Mask R-CNN: RS-Faster R-CNN with a mask head (He et al., ICCV 2017).

    images -> backbone C2..C5 -> FPN P2..P6 -> RPN: proposals -> box head: classes and boxes
    training: ... and the mask head, on positive proposals -> Dice loss
    testing:  NMS -> the mask head, on the detections -> masks pasted into the original image

The mask head does not change the ranking, whose targets remain box IoUs. Its loss is weighted and balanced like the box loss.
"""

import copy
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..losses.detection import DetectionLosses
from ..losses.localization import dice_loss
from .backbones import Backbone
from .carafe import Upsampling, region_pyramid
from .detector import Detector
from .images import ImageBatch, ImageTransform
from .masks import paste_masks
from .roi_heads import BoxHead, MaskHead, mask_targets, match_regions
from .rpn import RPN

MOST_MASKS = 200  # in a training batch


class MaskRCNN(Detector):
    """RS-Mask R-CNN: losses as for `FasterRCNN`, and `mask`. For the arguments see `FasterRCNN`.

    Examples:
        >>> import torch
        >>> from ranksort import create_model
        >>> model = create_model("ranksort_mask_rcnn_r50_fpn_1x_coco", num_classes=3, backbone="resnet18", min_size=64, channels=64)
        >>> target = {"boxes": torch.tensor([[8.0, 8.0, 40.0, 40.0]]), "labels": torch.tensor([1]), "masks": torch.zeros(1, 64, 64)}
        >>> target["masks"][0, 8:40, 8:40] = 1
        >>> sorted(model([torch.rand(3, 64, 64)], [target]))
        ['box', 'mask', 'ranking', 'rpn_box', 'rpn_ranking', 'rpn_sorting', 'sorting']
    """

    has_masks = True
    backbone_levels = 4
    settings = ("channels", "upsampling", "proposals", "prior")
    class_layers: ClassVar = {"class_logits": 1, "box_head.box_deltas": 4, "mask_head.logits": 1}
    score_threshold, nms_threshold = 0.4, 0.5

    def __init__(
        self,
        backbone: Backbone,
        transform: ImageTransform,
        num_classes: int,
        *,
        channels: int = 256,
        upsampling: Upsampling = "nearest",
        proposals: int = 1000,
        prior: float = 0.01,
        **common: Any,
    ):
        super().__init__(backbone, transform, num_classes, **common)
        self.rpn_criterion = copy.deepcopy(self.criterion)  # its state, if any, belongs to the RPN
        self.fpn = region_pyramid(backbone.channels[-4:], channels, upsampling)
        self.rpn = RPN(channels, limit=proposals)
        self.box_head = BoxHead(channels, num_classes, prior=prior)
        self.mask_head = MaskHead(channels, num_classes)

    def losses(self, batch: ImageBatch, targets: Sequence[dict[str, Tensor]]) -> DetectionLosses:
        features = self.fpn(self.backbone(batch.pixels)[-4:])
        anchors = self.rpn(features)
        proposals = self.rpn.proposals(anchors, batch.sizes)
        # Here the best proposal of an object belongs to it even if it fits another object better.
        regions, matched = match_regions(proposals, targets, low_quality=0.5)
        logits, deltas = self.box_head(features, regions, matched.positive)
        found = self.box_head.losses(logits, deltas, regions, matched, self.criterion)

        count = len(matched.positive)
        chosen = torch.arange(min(count, MOST_MASKS), device=logits.device)
        if count > MOST_MASKS and self.training:
            chosen = torch.randperm(count, device=logits.device)[:MOST_MASKS].sort().values
        elif count > MOST_MASKS:  # losses on validation images are not random
            chosen = chosen * count // MOST_MASKS
        positive, image = matched.positive[chosen], matched.image[chosen]
        boxes = torch.cat(regions)[positive]
        of_image = [boxes[image == i] for i in range(len(targets))]
        predicted = self.mask_head(features, of_image, matched.labels[chosen]).float().sigmoid()
        expected = mask_targets([target["masks"] for target in targets], of_image, matched.object[chosen])
        found = found.with_task("mask", dice_loss(predicted, expected), chosen)
        return found._replace(losses=self.rpn.losses(anchors, batch, targets, self.rpn_criterion) | found.losses)

    def detect(self, batch: ImageBatch) -> list[dict[str, Tensor]]:
        """The detections of a batch, with boxes in its coordinates; `masks` are probabilities inside the boxes, [D, 28, 28]."""
        features = self.fpn(self.backbone(batch.pixels)[-4:])
        proposals = self.rpn.proposals(self.rpn(features), batch.sizes)
        detections = [self.suppress(*found) for found in self.box_head.detect(features, proposals, batch.sizes)]
        labels = [d["labels"] for d in detections]
        masks = self.mask_head(features, [d["boxes"] for d in detections], torch.cat(labels)).float().sigmoid()
        of_image = masks.split([x.shape[0] for x in labels])
        return [{**d, "masks": m} for d, m in zip(detections, of_image, strict=True)]

    def to_original(self, detections: list[dict[str, Tensor]], batch: ImageBatch) -> list[dict[str, Tensor]]:
        """Map the result of `detect` to the original images: `boxes` in their pixels, `masks` bool [D, H, W]."""
        return [
            {**d, "masks": paste_masks(d["masks"], d["boxes"], size)}
            for d, size in zip(super().to_original(detections, batch), batch.original_sizes, strict=True)
        ]
