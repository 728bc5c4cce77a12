"""RS-YOLACT: one-stage instance segmentation (Bolya et al., ICCV 2019) trained with RS Loss.

    images -> backbone C3..C5 -> FPN P3..P7 -> head: logits, box deltas and 32 mask coefficients for three anchors at every cell
                              -> P3 -> 32 prototypes, maps at stride 4
    a mask is the sigmoid of the prototypes' sum, weighted by the coefficients of its anchor, within its box
    training: match anchors to objects by IoU -> RS Loss on all logits, GIoU on the boxes and Dice on the masks of the positives
    testing:  1000 best anchors of each level -> decode -> Fast NMS -> masks

Unlike the published YOLACT, it has no sampling of negatives, no semantic segmentation branch and no task weights.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..losses.detection import DetectionLosses
from ..losses.localization import dice_loss
from .anchors import AnchorGenerator, AnchorPredictions
from .backbones import Backbone
from .detector import Detector
from .fpn import FPN
from .images import ImageBatch, ImageTransform, Size
from .layers import per_anchor, set_prior, xavier_convs
from .masks import losses_in_parts, resize_masks
from .matchers import collect, match_iou
from .postprocess import fast_non_maximum_suppression

STRIDES = (8, 16, 32, 64, 128)


class YOLACT(Detector):
    """RS-YOLACT: losses `ranking`, `sorting`, `box` and `mask`.

    Takes the arguments of `Detector`, and these:

    Args:
        transform: resizes images to squares.
        channels: channels of the pyramid and the head.
        prototypes: number of prototypes.
        prior: class probability at the start of training.

    Examples:
        >>> import torch
        >>> from ranksort import create_model
        >>> model = create_model("ranksort_yolact_r50_55e_coco", num_classes=3, backbone="resnet18", min_size=64, max_size=64, channels=64)
        >>> target = {"boxes": torch.tensor([[8.0, 8.0, 40.0, 40.0]]), "labels": torch.tensor([1]), "masks": torch.zeros(1, 64, 64)}
        >>> target["masks"][0, 8:40, 8:40] = 1
        >>> sorted(model([torch.rand(3, 64, 64)], [target]))
        ['box', 'mask', 'ranking', 'sorting']
    """

    has_masks = True
    keeps_ratio = False
    nms_threshold = 0.5

    def __init__(
        self,
        backbone: Backbone,
        transform: ImageTransform,
        num_classes: int,
        *,
        channels: int = 256,
        prototypes: int = 32,
        prior: float = 0.01,
        **common: Any,
    ):
        super().__init__(backbone, transform, num_classes, **common)
        self.fpn = FPN(backbone.channels[-3:], channels, levels=len(STRIDES), from_input=True, upsampling="bilinear")
        side = transform.min_size  # divided evenly into cells, whether or not it is a multiple of their stride
        cells = [height for height, _ in backbone.map_sizes((side, side))[-3:]]
        while len(cells) < len(STRIDES):
            cells.append(math.ceil(cells[-1] / 2))
        self.anchors = AnchorGenerator(
            [side / n for n in cells],
            scales=[3],
            ratios=[0.5, 1, 2],
            base_sizes=STRIDES,
            offset=0.5,
        )
        self.head = YOLACTHead(channels, num_classes, self.anchors.per_cell, prototypes, prior)
        self.prototypes = _prototype_branch(channels, prototypes)

    def outputs(self, batch: ImageBatch) -> tuple[AnchorPredictions, Tensor, Tensor]:
        """The predictions for the anchors; their mask coefficients [B, ΣA_l, K]; the prototypes [B, K, H / 4, W / 4]."""
        features = self.fpn(self.backbone(batch.pixels)[-3:])
        logits, deltas, coefficients = self.head(features)
        output = self.anchors.predictions(features, logits, deltas)
        return output, torch.cat(coefficients, 1), self.prototypes(features[0])

    def losses(self, batch: ImageBatch, targets: Sequence[dict[str, Tensor]]) -> DetectionLosses:
        output, coefficients, prototypes = self.outputs(batch)
        anchors = torch.cat(output.anchors)
        matches = [
            match_iou(anchors, target["boxes"], positive=0.5, negative=0.4, low_quality=0, one_best=True)
            for target in targets
        ]
        matched = collect(matches, targets)
        found = self.criterion(
            output.all_logits(),
            matched.positive,
            matched.labels,
            output.boxes(matched.positive),
            matched.boxes,
            ignored=matched.ignored,
        )

        counts = matched.image.bincount(minlength=len(targets)).tolist()
        of_images = zip(
            prototypes,
            coefficients.flatten(0, 1)[matched.positive].split(counts),
            matched.boxes.split(counts),
            matched.object.split(counts),
            [target["masks"] for target in targets],
            batch.sizes,
            strict=True,
        )
        dice = torch.cat([mask_losses(*of_image) for of_image in of_images])
        return found.with_task("mask", dice)

    def detect(self, batch: ImageBatch) -> list[dict[str, Tensor]]:
        """The detections of a batch, boxes in its coordinates, masks as probabilities at the stride of the prototypes."""
        output, coefficients, prototypes = self.outputs(batch)
        detections = []
        for image, size in enumerate(batch.sizes):
            boxes, scores, anchor = output.best_regions(image, size)
            kept, region = fast_non_maximum_suppression(
                boxes,
                scores,
                score_threshold=self.score_threshold,
                nms_threshold=self.nms_threshold,
                detections_per_image=self.detections_per_image,
            )
            masks = assemble_masks(prototypes[image], coefficients[image, anchor[region]], kept["boxes"], size)
            detections.append({**kept, "masks": masks})
        return detections

    def to_original(self, detections: list[dict[str, Tensor]], batch: ImageBatch) -> list[dict[str, Tensor]]:
        """See `Detector`; masks become bool, of the original image's size."""
        return [
            {**d, "masks": resize_masks(d["masks"], size)}
            for d, size in zip(super().to_original(detections, batch), batch.original_sizes, strict=True)
        ]


class YOLACTHead(nn.Module):
    """One shared convolution, then one each for classes, boxes and mask coefficients, the same on all levels."""

    def __init__(self, channels: int, num_classes: int, anchors_per_cell: int, prototypes: int, prior: float):
        super().__init__()
        self.num_classes, self.num_prototypes = num_classes, prototypes
        self.shared = nn.Sequential(nn.Conv2d(channels, channels, 3, padding=1), nn.ReLU(inplace=True))
        self.class_logits = nn.Conv2d(channels, anchors_per_cell * num_classes, 3, padding=1)
        self.box_deltas = nn.Conv2d(channels, anchors_per_cell * 4, 3, padding=1)
        self.coefficients = nn.Conv2d(channels, anchors_per_cell * prototypes, 3, padding=1)
        xavier_convs(self)
        set_prior(self.class_logits, prior)

    def forward(self, features: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """Map the pyramid to class logits, box deltas and mask coefficients in -1..1 of each level; see `YOLACT.outputs`."""
        shared = [self.shared(x) for x in features]
        return (
            [per_anchor(self.class_logits(x), self.num_classes) for x in shared],
            [per_anchor(self.box_deltas(x), 4) for x in shared],
            [per_anchor(self.coefficients(x), self.num_prototypes).tanh() for x in shared],
        )


def _prototype_branch(channels: int, prototypes: int) -> nn.Sequential:
    """Three convolutions on P3, upsampling to stride 4, one more convolution, and the prototypes, which are not negative."""
    layers: list[nn.Module] = []
    for _ in range(3):
        layers += [nn.Conv2d(channels, channels, 3, padding=1), nn.ReLU(inplace=True)]
    layers += [nn.Upsample(scale_factor=2, mode="bilinear")]
    layers += [nn.Conv2d(channels, channels, 3, padding=1), nn.ReLU(inplace=True)]
    layers += [nn.Conv2d(channels, prototypes, 1), nn.ReLU(inplace=True)]
    branch = nn.Sequential(*layers)
    xavier_convs(branch)
    return branch


def mask_losses(
    prototypes: Tensor, coefficients: Tensor, boxes: Tensor, owner: Tensor, objects: Tensor, size: Size
) -> Tensor:
    """Dice losses of the masks of some anchors of one image; [P], in 0..1.

    Takes the arguments of `assemble_masks`, and these:

    Args:
        boxes: boxes of the anchors' objects.
        owner: int64 [P], the object of each anchor.
        objects: masks of the image's objects, bool or 0 and 1, [G, *size].
    """
    wanted = resize_masks(objects, prototypes.shape[-2:])

    def of_part(coefficients: Tensor, boxes: Tensor, owner: Tensor) -> Tensor:
        return dice_loss(assemble_masks(prototypes, coefficients, boxes, size), wanted[owner])

    return losses_in_parts(of_part, coefficients, boxes, owner)


def assemble_masks(prototypes: Tensor, coefficients: Tensor, boxes: Tensor, size: Size) -> Tensor:
    """The masks of some instances of one image: probabilities, float32 [P, h, w].

    Args:
        prototypes: [K, h, w].
        coefficients: [P, K].
        boxes: xyxy in pixels of the image, [P, 4]; masks are 0 more than a pixel outside of them.
        size: height and width of the image.
    """
    height, width = prototypes.shape[-2:]
    masks = torch.einsum("pk,khw->phw", coefficients, prototypes).float().sigmoid()
    scale = boxes.new_tensor([width / size[1], height / size[0]])
    left, top = (boxes[:, :2] * scale - 1).T[:, :, None]
    right, bottom = (boxes[:, 2:] * scale + 1).T[:, :, None]
    x, y = torch.arange(width, device=boxes.device), torch.arange(height, device=boxes.device)
    inside = ((y >= top) & (y < bottom))[:, :, None] & ((x >= left) & (x < right))[:, None]
    return masks * inside
