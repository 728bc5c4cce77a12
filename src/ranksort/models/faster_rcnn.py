"""RS-Faster R-CNN: a two-stage detector (Ren et al., NeurIPS 2015; Lin et al., CVPR 2017) trained with RS Loss in both stages.

    images -> backbone C2..C5 -> FPN P2..P6 -> RPN: about 1000 proposals per image -> box head: classes, and a box for each class
    training: match anchors to objects, and proposals to objects -> RS Loss and GIoU in both stages
    testing:  NMS

Nothing is sampled: all anchors are ranked together, and so are the logits of all proposals. There is no background class.
"""

import copy
from collections.abc import Sequence
from typing import Any, ClassVar

from torch import Tensor

from ..losses.detection import DetectionLosses
from .backbones import Backbone
from .carafe import Upsampling, region_pyramid
from .detector import Detector
from .images import ImageBatch, ImageTransform
from .roi_heads import BoxHead, match_regions
from .rpn import RPN


class FasterRCNN(Detector):
    """RS-Faster R-CNN: losses `rpn_ranking`, `rpn_sorting`, `rpn_box`, `ranking`, `sorting` and `box`. Positives are proposals.

    Takes the arguments of `Detector`, and these:

    Args:
        channels: channels of the pyramid.
        upsampling: upsampling of the pyramid, see `region_pyramid`.
        proposals: maximum number of proposals per image for the box head.
        prior: class probability at the start of training.

    Examples:
        >>> import torch
        >>> from ranksort import create_model
        >>> model = create_model("ranksort_faster_rcnn_r50_fpn_1x_coco", num_classes=3, backbone="resnet18", min_size=64, channels=64)
        >>> target = {"boxes": torch.tensor([[8.0, 8.0, 40.0, 40.0]]), "labels": torch.tensor([1])}
        >>> sorted(model([torch.rand(3, 64, 64)], [target]))
        ['box', 'ranking', 'rpn_box', 'rpn_ranking', 'rpn_sorting', 'sorting']
    """

    backbone_levels = 4
    settings = ("channels", "upsampling", "proposals", "prior")
    class_layers: ClassVar = {"class_logits": 1, "box_head.box_deltas": 4}
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

    def losses(self, batch: ImageBatch, targets: Sequence[dict[str, Tensor]]) -> DetectionLosses:
        features = self.fpn(self.backbone(batch.pixels)[-4:])
        anchors = self.rpn(features)
        proposals = self.rpn.proposals(anchors, batch.sizes)
        regions, matched = match_regions(proposals, targets)
        logits, deltas = self.box_head(features, regions, matched.positive)
        found = self.box_head.losses(logits, deltas, regions, matched, self.criterion)
        return found._replace(losses=self.rpn.losses(anchors, batch, targets, self.rpn_criterion) | found.losses)

    def detect(self, batch: ImageBatch) -> list[dict[str, Tensor]]:
        features = self.fpn(self.backbone(batch.pixels)[-4:])
        proposals = self.rpn.proposals(self.rpn(features), batch.sizes)
        return [self.suppress(*found) for found in self.box_head.detect(features, proposals, batch.sizes)]
