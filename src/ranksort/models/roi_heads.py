"""RoI heads of two-stage detectors: features from the pyramid, then classes, boxes and masks.

Regions are boxes, xyxy in pixels of the batch, one [R_b, 4] for each image; R is their total number.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torchvision.ops import box_area, clip_boxes_to_image, roi_align

from ..losses.detection import Criterion, DetectionLosses, rank_sort_detection_losses
from .boxes import decode_boxes
from .images import Size
from .layers import set_prior
from .masks import masks_at_once
from .matchers import Matched, collect, match_iou

_STRIDES = (4, 8, 16, 32)
_FINEST_SIDE = 56  # regions with sides below twice this many pixels use P2


def match_regions(
    proposals: Sequence[Tensor],
    targets: Sequence[dict[str, Tensor]],
    *,
    iou_threshold: float = 0.5,
    low_quality: float | None = None,
) -> tuple[list[Tensor], Matched]:
    """The regions to train RoI heads on: the objects of each image, then all its proposals, and their matches.

    Args:
        proposals: xyxy, for each image [R_b, 4].
        targets: the objects of each image.
        iou_threshold: a proposal is positive if its IoU is at least this, else negative.
        low_quality: see `match_iou`.
    """
    regions, matches = [], []
    for boxes, target in zip(proposals, targets, strict=True):
        objects = target["boxes"]
        regions.append(torch.cat([objects, boxes]))
        own = match_iou(boxes, objects, positive=iou_threshold, negative=iou_threshold, low_quality=low_quality)
        matches.append(torch.cat([torch.arange(len(objects), device=boxes.device), own]))
    return regions, collect(matches, targets)


def pool_regions(features: Sequence[Tensor], regions: Sequence[Tensor], side: int) -> Tensor:
    """RoIAlign (He et al., ICCV 2017), each region from a level chosen by its size (Lin et al., CVPR 2017, equation 1).

    Args:
        features: P2..P5 of the pyramid; coarser levels are not used, [B, channels, H_l, W_l].
        regions: for each image [R_b, 4].
        side: cells of the output, [R, channels, side, side].
    """
    rois = torch.cat([torch.cat([torch.full_like(boxes[:, :1], i), boxes], 1) for i, boxes in enumerate(regions)])
    level = (box_area(rois[:, 1:]).sqrt() / _FINEST_SIDE + 1e-6).log2().floor().clamp(0, len(_STRIDES) - 1)
    pooled = features[0].new_zeros(rois.shape[0], features[0].shape[1], side, side)
    for i, (x, stride) in enumerate(zip(features, _STRIDES, strict=False)):
        own = (level == i).nonzero().squeeze(1)
        aligned = roi_align(x.float(), rois[own], side, 1 / stride, aligned=True)  # in the precision of the coordinates
        # Added to zeros: unlike for an assignment, its gradient needs no copy.
        pooled.index_add_(0, own, aligned.to(pooled.dtype))
    return pooled


class BoxHead(nn.Module):
    """RoIAlign 7x7, two fully connected layers, class logits and box deltas.

    Args:
        channels: of the pyramid.
        num_classes: C.
        class_agnostic: whether a region has one box for all classes (K = 1) instead of one for each (K = C).
        prior: class probability at the start of training.
        hidden: width of the layers.
    """

    def __init__(
        self, channels: int, num_classes: int, *, class_agnostic: bool = False, prior: float = 0.01, hidden: int = 1024
    ):
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(channels * 7 * 7, hidden), nn.Linear(hidden, hidden)])
        self.class_logits = nn.Linear(hidden, num_classes)
        self.box_deltas = nn.Linear(hidden, 4 if class_agnostic else 4 * num_classes)
        for layer in self.layers:
            nn.init.xavier_uniform_(layer.weight)  # type: ignore[arg-type]
            nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
        nn.init.normal_(self.class_logits.weight, std=0.01)
        set_prior(self.class_logits, prior)
        nn.init.normal_(self.box_deltas.weight, std=0.001)
        nn.init.zeros_(self.box_deltas.bias)

    def forward(
        self, features: Sequence[Tensor], regions: Sequence[Tensor], boxes_of: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Map the pyramid to class logits [R, C] and box deltas [R, K, 4] of the regions.

        With `boxes_of`, int64 [P], only the deltas of these regions, [P, K, 4]. Training needs no others, and with many classes they
        would be the largest tensor of the network, with an equally large gradient.
        """
        x = pool_regions(features, regions, 7).flatten(1)
        for layer in self.layers:
            x = layer(x).relu_()
        with_boxes = x if boxes_of is None else x[boxes_of]
        return self.class_logits(x), self.box_deltas(with_boxes).unflatten(1, (-1, 4))

    def boxes(self, deltas: Tensor, regions: Sequence[Tensor], sizes: Sequence[Size]) -> list[Tensor]:
        """Convert box deltas [R, K, 4] of regions to boxes xyxy, clipped to the image, for each image [R_b, K, 4]."""
        boxes = decode_boxes(deltas.float(), torch.cat(list(regions))[:, None]).split([r.shape[0] for r in regions])
        return [clip_boxes_to_image(b, size) for b, size in zip(boxes, sizes, strict=True)]

    def detect(
        self, features: Sequence[Tensor], regions: Sequence[Tensor], sizes: Sequence[Size]
    ) -> list[tuple[Tensor, Tensor]]:
        """The predictions for the regions of each image: boxes as from `boxes`, and class probabilities [R_b, C]."""
        logits, deltas = self(features, regions)
        scores = logits.float().sigmoid().split([r.shape[0] for r in regions])
        return list(zip(self.boxes(deltas, regions, sizes), scores, strict=True))

    def losses(
        self,
        logits: Tensor,
        deltas: Tensor,
        regions: Sequence[Tensor],
        matched: Matched,
        criterion: Criterion = rank_sort_detection_losses,
    ) -> DetectionLosses:
        """RS Loss over all regions and classes, GIoU over the boxes of the positives: `ranking`, `sorting` and `box`.

        Args:
            logits: logits of all regions, [R, C].
            deltas: deltas of the positive ones, [P, K, 4].
            regions: for each image [R_b, 4].
            matched: their matches.
            criterion: another criterion.
        """
        positive = matched.positive
        deltas = deltas[torch.arange(len(positive), device=deltas.device), matched.labels if deltas.shape[1] > 1 else 0]
        boxes = decode_boxes(deltas.float(), torch.cat(list(regions))[positive])
        return criterion(logits, positive, matched.labels, boxes, matched.boxes)


class MaskHead(nn.Module):
    """Four 3x3 convolutions, an upsampling one, and one mask for each class.

    Args:
        channels: of the pyramid and the convolutions.
        num_classes: C.
    """

    side = 14  # side of the regions' features, in cells; masks have twice that

    def __init__(self, channels: int, num_classes: int):
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(channels, channels, 3, padding=1) for _ in range(4))
        self.upsample = nn.ConvTranspose2d(channels, channels, 2, stride=2)
        self.logits = nn.Conv2d(channels, num_classes, 1)
        for layer in (*self.convs, self.upsample, self.logits):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
            nn.init.zeros_(layer.bias)

    def forward(self, features: Sequence[Tensor], regions: Sequence[Tensor], labels: Tensor) -> Tensor:
        """Map the pyramid to the mask of each region's own class: logits [R, 28, 28]; labels are int64 [R]."""
        x = pool_regions(features, regions, self.side)
        for conv in self.convs:
            x = conv(x).relu_()
        x = self.upsample(x).relu_()
        # Most of the C masks of the last convolution would be thrown away.
        weight, bias = self.logits.weight[labels, :, 0, 0], self.logits.bias[labels]  # type: ignore[index]
        return torch.einsum("rchw,rc->rhw", x, weight) + bias[:, None, None]


def mask_targets(masks: Sequence[Tensor], regions: Sequence[Tensor], objects: Tensor, side: int = 28) -> Tensor:
    """The targets of the mask head: the masks of objects, cropped to regions and resized.

    Args:
        masks: bool or 0 and 1, for each image [G, H, W].
        regions: for each image [R_b, 4].
        objects: the object of each region, an index in its image, int64 [R].
        side: side of the output, float [R, side, side] of 0 and 1.
    """
    targets = []
    for of_image, boxes, index in zip(masks, regions, objects.split([len(r) for r in regions]), strict=True):
        cut = boxes.new_zeros(len(boxes), side, side)
        used, place = index.unique(return_inverse=True)
        # In parts, because masks are four times as large as floats.
        number = masks_at_once(of_image.shape[1:])
        for part, some in enumerate(used.split(number)):
            own = (place // number == part).nonzero().squeeze(1)
            rois = torch.cat([place[own, None] % number, boxes[own]], 1)
            cut[own] = roi_align(of_image[some, None].to(rois.dtype), rois, side, aligned=True).squeeze(1)
        targets.append(cut)
    return (torch.cat(targets) >= 0.5).float()
