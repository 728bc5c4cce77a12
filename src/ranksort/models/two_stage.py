"""The network which RS-Faster, RS-Cascade and RS-Mask R-CNN have in common: backbone, pyramid and region proposals."""

from typing import Any

from torch import Tensor

from .anchors import AnchorPredictions
from .backbones import Backbone
from .carafe import CarafeFPN
from .detector import Detector
from .fpn import FPN
from .images import ImageBatch, ImageTransform
from .rpn import RPN


class TwoStageDetector(Detector):
    """Backbone, pyramid P2..P6 and RPN; what is in the regions which it proposes, its detectors know.

    Args: as of `Detector`, and these. Published with a `score_threshold` of .4 and an `nms_threshold` of .5, as the recipes set them.
        fpn: takes the backbone's features to levels of strides 4, 8, 16, 32 and 64.
        proposals: most regions of an image which the box head looks into.
        ignore_crossing: as of `RPN`.
    """

    def __init__(
        self,
        backbone: Backbone,
        fpn: FPN | CarafeFPN,
        transform: ImageTransform,
        num_classes: int,
        *,
        proposals: int = 1000,
        ignore_crossing: bool = False,
        **postprocessing: Any,
    ):
        super().__init__(backbone, transform, num_classes, **postprocessing)
        self.fpn = fpn
        self.rpn = RPN(fpn.channels, ignore_crossing=ignore_crossing, limit=proposals)

    def propose(self, batch: ImageBatch) -> tuple[list[Tensor], AnchorPredictions, list[Tensor]]:
        """The pyramid, what the RPN says of the anchors on it, and the proposals of each image."""
        features = self.fpn(self.backbone(batch.pixels)[-4:])
        anchors = self.rpn(features)
        return features, anchors, self.rpn.proposals(anchors, batch.sizes)
