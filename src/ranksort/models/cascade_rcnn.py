"""RS-Cascade R-CNN (Cai and Vasconcelos, CVPR 2018): three box heads, each of which starts from the boxes of the one before.

    images -> backbone C2..C5 -> FPN P2..P6 -> RPN: proposals -> box head 0 -> boxes -> box head 1 -> boxes -> box head 2
    training: match objects to the regions of each head at a higher IoU than before -> RS Loss and GIoU in the RPN and each head
    testing:  the boxes of the last head, with the mean of the logits of all three -> NMS

The heads predict one box for all classes. Nothing is sampled. As published, and unlike in other Cascade R-CNNs, no head's loss is weighted
and all heads have one scale of box deltas.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .images import ImageBatch
from .roi_heads import BoxHead, match_regions
from .two_stage import TwoStageDetector

IOU_THRESHOLDS = (0.5, 0.6, 0.7)


class CascadeRCNN(TwoStageDetector):
    """RS-Cascade R-CNN: losses as of `FasterRCNN`, but that those of the three box heads begin with `stage0_`, `stage1_` and `stage2_`.

    Positives are regions of the last head. Args: as of `FasterRCNN`.
    """

    def __init__(self, *args: Any, prior: float = 0.01, **options: Any):
        super().__init__(*args, ignore_crossing=True, **options)
        self.box_head: Sequence[BoxHead] = nn.ModuleList(  # type: ignore[assignment]
            BoxHead(self.fpn.channels, self.num_classes, class_agnostic=True, prior=prior) for _ in IOU_THRESHOLDS
        )

    def losses(self, batch: ImageBatch, targets: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
        features, anchors, regions = self.propose(batch)
        losses = self.rpn.losses(anchors, batch, targets)
        for stage, (head, iou_threshold) in enumerate(zip(self.box_head, IOU_THRESHOLDS, strict=True)):
            regions, matched = match_regions(regions, targets, iou_threshold=iou_threshold)
            self.num_positives = len(matched.positive)
            logits, deltas = head(features, regions)
            of_stage = head.losses(logits, deltas[matched.positive], regions, matched)
            losses |= {f"stage{stage}_{name}": loss for name, loss in of_stage.items()}
            boxes = head.boxes(deltas.detach(), regions, batch.sizes)
            # What became of the objects' own boxes does not count: the next head gets them as they are.
            regions = [b[len(target["boxes"]) :, 0] for b, target in zip(boxes, targets, strict=True)]
        return losses

    def detect(self, batch: ImageBatch) -> list[dict[str, Tensor]]:
        features, _, regions = self.propose(batch)
        all_logits = []
        for head in self.box_head:
            logits, deltas = head(features, regions)
            all_logits.append(logits.float())
            regions = [b.squeeze(1) for b in head.boxes(deltas, regions, batch.sizes)]
        scores = torch.stack(all_logits).mean(0).sigmoid().split([len(r) for r in regions])
        return [self.suppress(b, s) for b, s in zip(regions, scores, strict=True)]
