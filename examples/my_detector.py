"""Your own detector in your own file: RS Loss on a single square at every cell, without anchor shapes to choose.

ranksort train ranksort_atss_lite0_small --model.detector examples/my_detector.py:CentreDetector --data.root DIR
ranksort test RUN --model.detector examples/my_detector.py:CentreDetector           # likewise for `predict` and `--resume`
load_model(RUN, detector=CentreDetector)                                             # checkpoints never execute a file by themselves
"""

import torch
from torch import Tensor, nn

from ranksort.losses.detection import DetectionLosses
from ranksort.models import Detector
from ranksort.models.anchors import AnchorGenerator, AnchorPredictions
from ranksort.models.fpn import FPN
from ranksort.models.layers import ConvNormReLU, per_anchor, set_prior
from ranksort.models.matchers import NEGATIVE, collect


class CentreDetector(Detector):
    settings = ("channels", "prior")  # settings of a recipe that the constructor takes

    def __init__(self, backbone, transform, num_classes: int, *, channels: int = 256, prior: float = 0.01, **common):
        super().__init__(backbone, transform, num_classes, **common)
        self.fpn = FPN(backbone.channels[-3:], channels)
        self.squares = AnchorGenerator((8, 16, 32, 64, 128), scales=[4], offset=0.5)
        self.tower = nn.Sequential(ConvNormReLU(channels, channels), ConvNormReLU(channels, channels))
        self.class_logits = nn.Conv2d(channels, num_classes, 3, padding=1)
        self.box_deltas = nn.Conv2d(channels, 4, 3, padding=1)
        set_prior(self.class_logits, prior)

    def outputs(self, batch) -> AnchorPredictions:
        features = self.fpn(self.backbone(batch.pixels)[-3:])
        hidden = [self.tower(x) for x in features]
        logits = [per_anchor(self.class_logits(x), self.num_classes) for x in hidden]
        return self.squares.predictions(features, logits, [per_anchor(self.box_deltas(x), 4) for x in hidden])

    def losses(self, batch, targets) -> DetectionLosses:
        found = self.outputs(batch)
        squares = torch.cat(found.anchors)
        matched = collect([match_centres(squares, target["boxes"]) for target in targets], targets)
        boxes = found.boxes(matched.positive)
        return self.criterion(found.all_logits(), matched.positive, matched.labels, boxes, matched.boxes)

    def detect(self, batch) -> list[dict[str, Tensor]]:
        found = self.outputs(batch)
        regions = [found.best_regions(image, size) for image, size in enumerate(batch.sizes)]
        return [self.suppress(boxes, scores) for boxes, scores, _ in regions]


def match_centres(squares: Tensor, boxes: Tensor) -> Tensor:
    """Assign each object to the 9 squares most similar in position and size; a square of several objects belongs to the last one."""
    owner = torch.full((len(squares),), NEGATIVE, device=squares.device)
    for i, box in enumerate(boxes):
        difference = (squares - box).abs().sum(1)
        owner[difference.topk(min(9, len(squares)), largest=False).indices] = i
    return owner
