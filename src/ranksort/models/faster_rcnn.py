"""RS-Faster R-CNN: a two-stage detector (Ren et al., NeurIPS 2015; Lin et al., CVPR 2017) both of whose stages RS Loss trains.

    images -> backbone C2..C5 -> FPN P2..P6 -> RPN: about 1000 proposals an image -> box head: classes, and a box for each class
    training: match anchors to objects, and proposals to objects -> RS Loss and GIoU in both stages
    testing:  NMS

Nothing is sampled: all anchors are ranked with one another, and so are the logits of all proposals. There is no background class.
"""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from .backbones import Backbone
from .carafe import CarafeFPN
from .detector import Detector
from .fpn import FPN
from .images import ImageBatch, ImageTransform
from .roi_heads import BoxHead, match_regions
from .rpn import RPN


class FasterRCNN(Detector):
    """RS-Faster R-CNN: losses `rpn_ranking`, `rpn_sorting`, `rpn_box`, `ranking`, `sorting` and `box`. Positives are proposals.

    Args: as of `Detector`, and these. Published with a `score_threshold` of .4 and an `nms_threshold` of .5, as the recipes set them.
        fpn: takes the backbone's features to levels of strides 4, 8, 16, 32 and 64.
        proposals: most regions of an image which the box head looks into.
        prior: class probability which training starts from.
    """

    def __init__(
        self,
        backbone: Backbone,
        fpn: FPN | CarafeFPN,
        transform: ImageTransform,
        num_classes: int,
        *,
        proposals: int = 1000,
        prior: float = 0.01,
        **postprocessing: Any,
    ):
        super().__init__(backbone, transform, num_classes, **postprocessing)
        self.fpn = fpn
        self.rpn = RPN(fpn.channels, limit=proposals)
        self.box_head = BoxHead(fpn.channels, num_classes, prior=prior)

    def losses(self, batch: ImageBatch, targets: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
        features = self.fpn(self.backbone(batch.pixels)[-4:])
        anchors = self.rpn(features)
        proposals = self.rpn.proposals(anchors, batch.sizes)
        regions, matched = match_regions(proposals, targets)
        self.num_positives = len(matched.positive)
        logits, deltas = self.box_head(features, regions, matched.positive)
        return self.rpn.losses(anchors, batch, targets) | self.box_head.losses(logits, deltas, regions, matched)

    def detect(self, batch: ImageBatch) -> list[dict[str, Tensor]]:
        features = self.fpn(self.backbone(batch.pixels)[-4:])
        proposals = self.rpn.proposals(self.rpn(features), batch.sizes)
        return [self.suppress(*found) for found in self.box_head.detect(features, proposals, batch.sizes)]
