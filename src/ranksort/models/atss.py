"""RS-ATSS: a one-stage detector with positives from ATSS (Zhang et al., CVPR 2020), ranked by RS Loss.

    images -> backbone C3..C5 -> FPN P3..P7 -> dense head: logits and box deltas for three anchors at every cell
    training: match anchors to objects -> RS Loss on all logits, GIoU on the boxes of the positives
    testing:  1000 best anchors of each level -> decode -> NMS

Unlike the published ATSS, it has no centreness branch, no focal loss and no task weights.
"""

from collections.abc import Sequence

from torch import Tensor

from ..losses.detection import DetectionLosses
from .dense_head import DenseDetector
from .images import ImageBatch
from .matchers import collect, match_atss


class ATSS(DenseDetector):
    """RS-ATSS: losses `ranking`, `sorting` and `box`. For the arguments see `DenseDetector`.

    Examples:
        >>> import torch
        >>> from ranksort import create_model
        >>> model = create_model("ranksort_atss_r50_fpn_1x_coco", num_classes=3, backbone="resnet18", min_size=64, channels=64)
        >>> target = {"boxes": torch.tensor([[8.0, 8.0, 40.0, 40.0]]), "labels": torch.tensor([1])}
        >>> sorted(model([torch.rand(3, 64, 64)], [target]))
        ['box', 'ranking', 'sorting']
    """

    def losses(self, batch: ImageBatch, targets: Sequence[dict[str, Tensor]]) -> DetectionLosses:
        output = self.outputs(batch)
        matches = []
        for target, padded in zip(targets, batch.padded_sizes, strict=True):
            in_image = self.anchors.in_image(output.map_sizes, padded, batch.pixels.device)
            matches.append(match_atss(output.anchors, target["boxes"], in_image))
        matched = collect(matches, targets)
        return self.criterion(
            output.all_logits(),
            matched.positive,
            matched.labels,
            output.boxes(matched.positive),
            matched.boxes,
            ignored=matched.ignored,
        )

    def detect(self, batch: ImageBatch) -> list[dict[str, Tensor]]:
        output = self.outputs(batch)
        regions = [output.best_regions(image, size) for image, size in enumerate(batch.sizes)]
        return [self.suppress(boxes, scores) for boxes, scores, _ in regions]
