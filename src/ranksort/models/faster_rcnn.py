"""RS-Faster R-CNN: a two-stage detector (Ren et al., NeurIPS 2015; Lin et al., CVPR 2017) both of whose stages RS Loss trains.

    images -> backbone C2..C5 -> FPN P2..P6 -> RPN: about 1000 proposals an image -> box head: classes, and a box for each class
    training: match anchors to objects, and proposals to objects -> RS Loss and GIoU in both stages
    testing:  NMS

Nothing is sampled: all anchors are ranked with one another, and so are the logits of all proposals. There is no background class.
"""

from collections.abc import Sequence

from torch import Tensor, nn

from .backbones import Backbone
from .carafe import CarafeFPN
from .fpn import FPN
from .images import ImageBatch, ImageTransform, check_input
from .postprocess import non_maximum_suppression
from .roi_heads import BoxHead, match_regions
from .rpn import RPN


class FasterRCNN(nn.Module):
    """RS-Faster R-CNN, called as torchvision's detectors are.

    Attributes:
        num_positives: positive proposals of the last training batch, for the logs.

    Args:
        backbone: gives features of strides 4, 8, 16 and 32.
        fpn: takes them to levels of strides 4, 8, 16, 32 and 64.
        transform: resizing and normalisation.
        num_classes: C; labels are 0..C-1, there is no background class.
        prior: class probability which training starts from.
        score_threshold: least score of a detection, in 0..1.
        nms_threshold: IoU above which the lower of two detections of a class is dropped.
        detections_per_image: most detections reported.
    """

    def __init__(
        self,
        backbone: Backbone,
        fpn: FPN | CarafeFPN,
        transform: ImageTransform,
        num_classes: int,
        *,
        prior: float = 0.01,
        score_threshold: float = 0.4,
        nms_threshold: float = 0.5,
        detections_per_image: int = 100,
    ):
        super().__init__()
        self.transform = transform
        self.backbone = backbone
        self.fpn = fpn
        self.rpn = RPN(fpn.channels)
        self.box_head = BoxHead(fpn.channels, num_classes, prior=prior)
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
            In training mode `rpn_ranking`, `rpn_sorting`, `rpn_box`, `ranking`, `sorting` and `box`, to be summed. In evaluation mode
            one dict an image with `boxes` [D, 4] xyxy in pixels of the original image, `scores` [D] in 0..1, falling, and `labels` [D].

        Raises:
            ValueError: in training mode without targets, or where an image or target has the wrong shape or a box has no area.
        """
        check_input(images, targets, self.num_classes, self.training)
        batch, targets = self.transform(images, targets)
        if self.training:
            return self.losses(batch, targets)
        return self.transform.to_original(self.detect(batch), batch)

    def losses(self, batch: ImageBatch, targets: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
        """The losses of a batch whose targets are in its coordinates; see `forward`."""
        features = self.fpn(self.backbone(batch.pixels)[-4:])
        anchors = self.rpn(features)
        proposals = self.rpn.proposals(anchors, batch.sizes)
        regions, matched = match_regions(proposals, targets)
        self.num_positives = len(matched.positive)
        logits, deltas = self.box_head(features, regions)
        return self.rpn.losses(anchors, batch, targets) | self.box_head.losses(logits, deltas, regions, matched)

    def detect(self, batch: ImageBatch) -> list[dict[str, Tensor]]:
        """The detections of a batch, boxes in its coordinates; see `forward`."""
        features = self.fpn(self.backbone(batch.pixels)[-4:])
        proposals = self.rpn.proposals(self.rpn(features), batch.sizes)
        logits, deltas = self.box_head(features, proposals)
        boxes = self.box_head.boxes(deltas, proposals, batch.sizes)
        scores = logits.float().sigmoid().split([len(p) for p in proposals])
        return [
            non_maximum_suppression(
                b,
                s,
                score_threshold=self.score_threshold,
                nms_threshold=self.nms_threshold,
                detections_per_image=self.detections_per_image,
            )
            for b, s in zip(boxes, scores, strict=True)
        ]
