"""RS-Faster R-CNN: a two-stage detector (Ren et al., NeurIPS 2015; Lin et al., CVPR 2017) both of whose stages RS Loss trains.

    images -> backbone C2..C5 -> FPN P2..P6 -> RPN: about 1000 proposals an image -> box head: classes, and a box for each class
    training: match anchors to objects, and proposals to objects -> RS Loss and GIoU in both stages
    testing:  NMS

Nothing is sampled: all anchors are ranked with one another, and so are the logits of all proposals. There is no background class.
"""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from .images import ImageBatch
from .roi_heads import BoxHead, match_regions
from .two_stage import TwoStageDetector


class FasterRCNN(TwoStageDetector):
    """RS-Faster R-CNN: losses `rpn_ranking`, `rpn_sorting`, `rpn_box`, `ranking`, `sorting` and `box`. Positives are proposals.

    Args: as of `TwoStageDetector`, and this.
        prior: class probability which training starts from.
    """

    def __init__(self, *args: Any, prior: float = 0.01, **options: Any):
        super().__init__(*args, **options)
        self.box_head = BoxHead(self.fpn.channels, self.num_classes, prior=prior)

    def losses(self, batch: ImageBatch, targets: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
        features, anchors, proposals = self.propose(batch)
        regions, matched = match_regions(proposals, targets)
        self.num_positives = len(matched.positive)
        logits, deltas = self.box_head(features, regions, matched.positive)
        return self.rpn.losses(anchors, batch, targets) | self.box_head.losses(logits, deltas, regions, matched)

    def detect(self, batch: ImageBatch) -> list[dict[str, Tensor]]:
        features, _, proposals = self.propose(batch)
        return [self.suppress(*found) for found in self.box_head.detect(features, proposals, batch.sizes)]
