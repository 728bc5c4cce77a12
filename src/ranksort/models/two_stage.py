"""The network which RS-Faster, RS-Cascade and RS-Mask R-CNN have in common: backbone, pyramid and region proposals."""

from functools import partial
from typing import Any, Literal

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
        channels: of the pyramid, whose strides are 4, 8, 16, 32 and 64.
        upsampling: of its top-down path.
        proposals: most regions of an image which the box head looks into.
        ignore_crossing: as of `RPN`.
    """

    def __init__(
        self,
        backbone: Backbone,
        transform: ImageTransform,
        num_classes: int,
        *,
        channels: int = 256,
        upsampling: Literal["nearest", "carafe"] = "nearest",
        proposals: int = 1000,
        ignore_crossing: bool = False,
        **postprocessing: Any,
    ):
        super().__init__(backbone, transform, num_classes, **postprocessing)
        pyramid = CarafeFPN if upsampling == "carafe" else partial(FPN, extra_convs=False)
        self.fpn = pyramid(backbone.channels[-4:], channels)
        self.rpn = RPN(channels, ignore_crossing=ignore_crossing, limit=proposals)

    def propose(self, batch: ImageBatch) -> tuple[list[Tensor], AnchorPredictions, list[Tensor]]:
        """The pyramid, what the RPN says of the anchors on it, and the proposals of each image."""
        features = self.fpn(self.backbone(batch.pixels)[-4:])
        anchors = self.rpn(features)
        return features, anchors, self.rpn.proposals(anchors, batch.sizes)
