"""RS-ATSS: a one-stage detector whose positives are chosen by ATSS (Zhang et al., CVPR 2020) and ranked by RS Loss.

    images -> backbone C3..C5 -> FPN P3..P7 -> dense head: logits and box deltas for three anchors at every cell
    training: match anchors to objects -> RS Loss on all logits, GIoU on the boxes of the positives
    testing:  1000 best anchors of each level -> decode -> NMS

Next to ATSS as published there is no centreness branch and no focal loss, nor any weight between the tasks.
"""

from collections.abc import Sequence

from torch import Tensor

from ..losses.detection import rank_sort_detection_losses
from .anchors import AnchorGenerator, AnchorPredictions
from .backbones import Backbone
from .dense_head import DenseHead
from .detector import Detector
from .fpn import FPN
from .images import ImageBatch, ImageTransform
from .matchers import collect, match_atss

STRIDES = (8, 16, 32, 64, 128)
ANCHORS = AnchorGenerator(STRIDES, scales=[4 * 2 ** (i / 3) for i in range(3)])


class ATSS(Detector):
    """RS-ATSS: losses `ranking`, `sorting` and `box`.

    Args: as of `Detector`, and these.
        channels: of the pyramid and the head, a multiple of 32 from 64 on.
        head_convs: depth of the head's towers.
        prior: class probability which training starts from.
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
        super().__init__(
            backbone,
            transform,
            num_classes,
            score_threshold=score_threshold,
            nms_threshold=nms_threshold,
            detections_per_image=detections_per_image,
        )
        self.fpn = FPN(backbone.channels[-3:], channels, levels=len(STRIDES))
        self.anchors = ANCHORS
        self.head = DenseHead(channels, num_classes, self.anchors.per_cell, len(STRIDES), head_convs, prior)

    def predict(self, batch: ImageBatch) -> AnchorPredictions:
        """What the network says."""
        features = self.fpn(self.backbone(batch.pixels)[-3:])
        return self.anchors.predictions(features, *self.head(features))

    def losses(self, batch: ImageBatch, targets: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
        """The losses of a batch whose targets are in its coordinates; see `forward`."""
        output = self.predict(batch)
        matches = []
        for target, padded in zip(targets, batch.padded_sizes, strict=True):
            in_image = self.anchors.in_image(output.map_sizes, padded, batch.pixels.device)
            matches.append(match_atss(output.anchors, target["boxes"], in_image))
        matched = collect(matches, targets)
        self.num_positives = len(matched.positive)
        return rank_sort_detection_losses(
            output.all_logits(),
            matched.positive,
            matched.labels,
            output.boxes(matched.positive),
            matched.boxes,
            ignored=matched.ignored,
        )

    def detect(self, batch: ImageBatch) -> list[dict[str, Tensor]]:
        """The detections of a batch, boxes in its coordinates; see `forward`."""
        output = self.predict(batch)
        regions = [output.best_regions(image, size) for image, size in enumerate(batch.sizes)]
        return [self.suppress(boxes, scores) for boxes, scores, _ in regions]
