"""RS-Cascade R-CNN (Cai and Vasconcelos, CVPR 2018): three box heads, each of which starts from the boxes of the previous one.

    images -> backbone C2..C5 -> FPN P2..P6 -> RPN: proposals -> box head 0 -> boxes -> box head 1 -> boxes -> box head 2
    training: match objects to the regions of each head at a higher IoU than before -> RS Loss and GIoU in the RPN and each head
    testing:  the boxes of the last head, with the mean of the logits of all three -> NMS

The heads predict one box for all classes. Nothing is sampled. As published, and unlike other Cascade R-CNNs, the heads' losses are not
weighted and all heads use the same scale of box deltas.
"""

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..losses.detection import DetectionLosses
from .backbones import Backbone
from .carafe import Upsampling, region_pyramid
from .detector import Detector
from .images import ImageBatch, ImageTransform
from .roi_heads import BoxHead, match_regions
from .rpn import RPN

IOU_THRESHOLDS = (0.5, 0.6, 0.7)


class CascadeRCNN(Detector):
    """RS-Cascade R-CNN: losses as for `FasterRCNN`, where those of the three box heads start with `stage0_`, `stage1_` and `stage2_`.

    Positives are regions of the last head. For the arguments see `FasterRCNN`.

    Examples:
        >>> import torch
        >>> from ranksort import create_model
        >>> model = create_model("ranksort_cascade_rcnn_r50_fpn_1x_coco", num_classes=3, backbone="resnet18", min_size=64, channels=64)
        >>> target = {"boxes": torch.tensor([[8.0, 8.0, 40.0, 40.0]]), "labels": torch.tensor([1])}
        >>> losses = model([torch.rand(3, 64, 64)], [target])
        >>> sorted(name for name in losses if name.startswith("stage2"))
        ['stage2_box', 'stage2_ranking', 'stage2_sorting']
    """

    backbone_levels = 4
    settings = ("channels", "upsampling", "proposals", "prior")
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
        # Each classifier has its own state of the criterion, if it has any.
        self.rpn_criterion, self.criterion0, self.criterion1 = (copy.deepcopy(self.criterion) for _ in range(3))
        self.fpn = region_pyramid(backbone.channels[-4:], channels, upsampling)
        self.rpn = RPN(channels, ignore_crossing=True, limit=proposals)
        self.box_head: Sequence[BoxHead] = nn.ModuleList(  # type: ignore[assignment]
            BoxHead(channels, num_classes, class_agnostic=True, prior=prior) for _ in IOU_THRESHOLDS
        )

    def losses(self, batch: ImageBatch, targets: Sequence[dict[str, Tensor]]) -> DetectionLosses:
        features = self.fpn(self.backbone(batch.pixels)[-4:])
        anchors = self.rpn(features)
        losses = self.rpn.losses(anchors, batch, targets, self.rpn_criterion)
        regions = self.rpn.proposals(anchors, batch.sizes)
        criteria = (self.criterion0, self.criterion1, self.criterion)
        for stage, (head, criterion, iou_threshold) in enumerate(
            zip(self.box_head, criteria, IOU_THRESHOLDS, strict=True)
        ):
            regions, matched = match_regions(regions, targets, iou_threshold=iou_threshold)
            logits, deltas = head(features, regions)
            found = head.losses(logits, deltas[matched.positive], regions, matched, criterion)
            losses |= {f"stage{stage}_{name}": loss for name, loss in found.losses.items()}
            boxes = head.boxes(deltas.detach(), regions, batch.sizes)
            # The refined boxes of the objects themselves are not used: the next head gets the original ones.
            regions = [b[len(target["boxes"]) :, 0] for b, target in zip(boxes, targets, strict=True)]
        return found._replace(losses=losses)

    def detect(self, batch: ImageBatch) -> list[dict[str, Tensor]]:
        features = self.fpn(self.backbone(batch.pixels)[-4:])
        regions = self.rpn.proposals(self.rpn(features), batch.sizes)
        all_logits = []
        for head in self.box_head:
            logits, deltas = head(features, regions)
            all_logits.append(logits.float())
            regions = [b.squeeze(1) for b in head.boxes(deltas, regions, batch.sizes)]
        scores = torch.stack(all_logits).mean(0).sigmoid().split([r.shape[0] for r in regions])
        return [self.suppress(b, s) for b, s in zip(regions, scores, strict=True)]
