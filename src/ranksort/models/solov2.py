"""RS-SOLOv2: instance segmentation without boxes (Wang et al., NeurIPS 2020) trained with RS Loss.

    images -> backbone C2..C5 -> FPN P2..P6
           -> head: on each level a grid over the image; at every cell class logits, and the weights of a 1x1 convolution, its kernel
           -> mask features, one map at stride 4
    the mask of a cell is its kernel applied to the mask features
    training: match cells to objects -> RS Loss on all logits, Dice on the masks of the positives
    testing:  cells above the score threshold -> masks -> score times maskness -> Matrix NMS

Unlike the published SOLOv2, it has no focal loss and no task weights. The localisation quality of a positive is the Dice coefficient of
its own mask; the authors' code uses that of another positive of its level and image.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..losses.detection import DetectionLosses
from ..losses.localization import dice_loss
from .backbones import Backbone
from .detector import Detector
from .fpn import FPN
from .images import ImageBatch, ImageTransform, Size
from .layers import ConvNormReLU, normal_convs, per_anchor, set_prior
from .masks import (
    boxes_around,
    centres_and_areas,
    in_parts,
    losses_in_parts,
    masks_at_once,
    quarter_masks,
    resize_masks,
)
from .matchers import NEGATIVE, collect

GRIDS = (40, 36, 24, 16, 12)  # cells on each side of the image, one per level
STRIDES = (8, 8, 16, 32, 32)  # strides of the maps under the grids; a mask must have more cells than this
RANGES = ((1, 96), (48, 192), (96, 384), (192, 768), (384, 2048))  # √area in pixels of the objects of each level
LIGHT_RANGES = ((1, 56), (28, 112), (56, 224), (112, 448), (224, 896))

_CENTRE = 0.2  # fraction of the box around the centre of mass whose cells are positive
_DICE_EPS = 0.002  # as published: .001 for each of the two sums, which matters for tiny masks
_TESTED_AT_ONCE = 128  # masks in memory at a time in testing
_MATRIX_NMS_LIMIT = 500  # pairs of cell and class
_SIGMA = 2.0
_LEAST_SCORE = 0.05  # after Matrix NMS


class SOLOv2(Detector):
    """RS-SOLOv2: losses `ranking`, `sorting` and `mask`. An object with an empty mask has no positives. Boxes are those around the masks.

    `score_threshold` applies to the class probability; the reported score is this times maskness times the decay of Matrix NMS, and at
    least .05. `nms_threshold` is not used.

    Takes the arguments of `Detector`, and these:

    Args:
        channels: channels of the pyramid, a multiple of 64.
        head_convs: depth of the head's towers.
        prior: class probability at the start of training.

    Examples:
        >>> import torch
        >>> from ranksort import create_model
        >>> model = create_model("ranksort_solov2_r101_fpn_3x", num_classes=3, backbone="resnet18", min_size=64, channels=64)
        >>> target = {"boxes": torch.tensor([[8.0, 8.0, 40.0, 40.0]]), "labels": torch.tensor([1]), "masks": torch.zeros(1, 64, 64)}
        >>> target["masks"][0, 8:40, 8:40] = 1
        >>> sorted(model([torch.rand(3, 64, 64)], [target]))
        ['mask', 'ranking', 'sorting']
    """

    has_boxes = False
    has_masks = True
    backbone_levels = 4
    channel_step = 64  # the mask features have half the channels, in 32 groups
    settings = ("channels", "head_convs", "prior")
    score_threshold = 0.2
    widening = 2  # of the head's towers, in `channels`
    ranges: tuple[tuple[int, int], ...] = RANGES

    def __init__(
        self,
        backbone: Backbone,
        transform: ImageTransform,
        num_classes: int,
        *,
        channels: int = 256,
        head_convs: int = 4,
        prior: float = 0.01,
        **common: Any,
    ):
        super().__init__(backbone, transform, num_classes, **common)
        self.fpn = FPN(backbone.channels[-4:], channels, extra_convs=False)
        width = self.widening * channels
        self.head = SOLOv2Head(channels, width, num_classes, width // 2, head_convs, prior)
        self.mask_features = MaskFeatures(channels, channels // 2, width // 2)

    def outputs(self, pixels: Tensor) -> tuple[list[Tensor], list[Tensor], Tensor]:
        """The predictions of the network for normalised images [B, 3, H, W].

        Returns:
            For each level the class logits [B, S²_l, C] and the kernels [B, S²_l, E] of the cells, by row and column; and the mask
            features [B, E, H / 4, W / 4].
        """
        features = self.fpn(self.backbone(pixels)[-4:])
        logits, kernels = self.head(features)
        return logits, kernels, self.mask_features(features[:4])

    def losses(self, batch: ImageBatch, targets: Sequence[dict[str, Tensor]]) -> DetectionLosses:
        logits, kernels, features = self.outputs(batch.pixels)
        size = batch.pixels.shape[-2], batch.pixels.shape[-1]
        masks = [target["masks"].bool() for target in targets]
        matched = collect(
            [match_cells(t["boxes"], m, size, self.ranges) for t, m in zip(targets, masks, strict=True)], targets
        )
        of_positive = torch.cat(kernels, 1).flatten(0, 1)[matched.positive]
        counts = matched.image.bincount(minlength=len(masks)).tolist()
        of_images = zip(features, of_positive.split(counts), masks, matched.object.split(counts), strict=True)
        dice = torch.cat(
            [mask_losses(f, k, quarter_masks(m, features.shape[-2:]), owner) for f, k, m, owner in of_images]
        )
        all_logits = torch.cat(logits, 1).flatten(0, 1)
        found = self.criterion(all_logits, matched.positive, matched.labels, None, None, quality=1 - dice.detach())
        return found.with_task("mask", dice)

    def detect(self, batch: ImageBatch) -> list[dict[str, Tensor]]:
        """The detections of a batch without boxes, with masks as probabilities at stride 4 of each padded image; see `forward`.

        The grids span the whole input, so the network gets one image at a time: its detections must not depend on the batch.
        """
        return [
            self._detect_one(pixels[None, :, :height, :width])
            for pixels, (height, width) in zip(batch.pixels, batch.padded_sizes, strict=True)
        ]

    def _detect_one(self, pixels: Tensor) -> dict[str, Tensor]:
        logits, kernels, (features,) = self.outputs(pixels)
        all_kernels = torch.cat(kernels, 1)[0]
        scores = torch.cat([peaks(x[0].float().sigmoid(), grid) for x, grid in zip(logits, GRIDS, strict=True)])
        candidates = (scores > self.score_threshold).any(1).nonzero().squeeze(1)
        maskness = scores.new_zeros(len(scores))
        maskness[candidates] = rate_masks(features, all_kernels[candidates], _least_areas(scores.device)[candidates])
        score, cell, label = best_pairs(scores, maskness, self.score_threshold, _MATRIX_NMS_LIMIT)

        masks = in_parts(lambda part: cell_masks(features, part) > 0.5, _TESTED_AT_ONCE, all_kernels[cell])
        score, order = (score * matrix_nms_decay(masks, label)).sort(descending=True, stable=True)
        order = order[score >= _LEAST_SCORE][: self.detections_per_image]
        return {
            "scores": score[: order.shape[0]],
            "labels": label[order],
            "masks": cell_masks(features, all_kernels[cell[order]]),
        }

    def to_original(self, detections: list[dict[str, Tensor]], batch: ImageBatch) -> list[dict[str, Tensor]]:
        """Map the result of `detect` to the original images, with the boxes around the masks."""
        result = []
        for found, (height, width), size in zip(detections, batch.sizes, batch.original_sizes, strict=True):
            # In parts: at stride 1 and in float32, a hundred masks of a photo are 430 MB.
            most = masks_at_once([4 * side for side in found["masks"].shape[1:]])
            masks = in_parts(partial(_full_masks, inside=(height, width), size=size), most, found["masks"])
            result.append({"boxes": boxes_around(masks), **found, "masks": masks})
        return result


class SOLOv2Light(SOLOv2):
    """RS-SOLOv2 with a head of half the width, for images of half the size.

    Examples:
        >>> from ranksort import create_model
        >>> model = create_model("ranksort_solov2_light_448_r34_fpn_3x", num_classes=3, backbone="resnet18")
        >>> type(model).__name__, model.has_masks, model.has_boxes
        ('SOLOv2Light', True, False)
    """

    widening = 1
    ranges = LIGHT_RANGES


class SOLOv2Head(nn.Module):
    """Towers for classes and kernels on a grid over each level; the kernel tower also gets coordinates."""

    def __init__(
        self, in_channels: int, channels: int, num_classes: int, kernel_channels: int, convs: int, prior: float
    ):
        super().__init__()
        self.num_classes, self.kernel_channels = num_classes, kernel_channels
        widths = [channels] * convs
        self.class_tower = nn.Sequential(*map(ConvNormReLU, [in_channels, *widths[1:]], widths))
        self.kernel_tower = nn.Sequential(*map(ConvNormReLU, [in_channels + 2, *widths[1:]], widths))
        class_width, kernel_width = (channels, channels) if convs else (in_channels, in_channels + 2)
        self.class_logits = nn.Conv2d(class_width, num_classes, 3, padding=1)
        self.kernels = nn.Conv2d(kernel_width, kernel_channels, 3, padding=1)
        normal_convs(self)
        set_prior(self.class_logits, prior)

    def forward(self, features: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Map P2..P6 to class logits [B, S²_l, C] and kernels [B, S²_l, E] of each level."""
        p2, *middle, p6 = features
        maps = [
            F.interpolate(p2, scale_factor=0.5, mode="bilinear"),
            *middle,
            F.interpolate(p6, size=middle[-1].shape[-2:], mode="bilinear"),
        ]
        logits, kernels = [], []
        for x, grid in zip(maps, GRIDS, strict=True):
            x = F.interpolate(with_coordinates(x), size=(grid, grid), mode="bilinear")
            logits.append(per_anchor(self.class_logits(self.class_tower(x[:, :-2])), self.num_classes))
            kernels.append(per_anchor(self.kernels(self.kernel_tower(x)), self.kernel_channels))
        return logits, kernels


class MaskFeatures(nn.Module):
    """One map at stride 4: the sum of P2..P5, each repeatedly convolved and upsampled to that size."""

    def __init__(self, in_channels: int, channels: int, out_channels: int):
        super().__init__()
        self.levels = nn.ModuleList()
        for level in range(4):
            width = in_channels + 2 if level == 3 else in_channels  # the coarsest level also gets coordinates
            convs = [ConvNormReLU(width if i == 0 else channels, channels) for i in range(max(level, 1))]
            self.levels.append(nn.Sequential(*convs))
        self.output = ConvNormReLU(channels, out_channels, kernel_size=1)
        normal_convs(self)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Map P2..P5 to [B, out_channels, H / 4, W / 4]."""
        *fine, coarsest = features
        maps = []
        for level, (convs, x) in enumerate(zip(self.levels, [*fine, with_coordinates(coarsest)], strict=True)):
            for conv in convs.children():
                x = conv(x)
                x = F.interpolate(x, scale_factor=2, mode="bilinear") if level > 0 else x
            maps.append(x)
        return self.output(sum(maps))


def with_coordinates(x: Tensor) -> Tensor:
    """Append two channels, x and y from -1 to 1 over the map; [B, C, H, W] -> [B, C + 2, H, W]."""
    height, width = x.shape[-2:]
    column = _from_minus_1_to_1(width, x).expand(len(x), 1, height, width)
    row = _from_minus_1_to_1(height, x)[:, None].expand(len(x), 1, height, width)
    return torch.cat([x, column, row], 1)


def _from_minus_1_to_1(count: int, like: Tensor) -> Tensor:
    """Like `torch.linspace`, [`count`], which `torch.export` would treat as a constant."""
    place = torch.arange(count, device=like.device)
    step = torch.full((), 2 / torch.sym_max(count - 1, 1), device=like.device)
    from_start, from_end = -1 + step * place, 1 - step * (count - 1 - place)
    return torch.where(place < torch.sym_max(count // 2, 1), from_start, from_end).to(like.dtype)


def _full_masks(soft: Tensor, inside: Size, size: Size) -> Tensor:
    """Crop masks at stride 4 of a padded image, [D, h, w], to the part `inside` the image, and resize to `size`; bool [D, *size]."""
    height, width = inside
    return resize_masks(F.interpolate(soft[:, None], scale_factor=4, mode="bilinear")[:, 0, :height, :width], size)


def match_cells(boxes: Tensor, masks: Tensor, size: Size, ranges: Sequence[tuple[int, int]]) -> Tensor:
    """The object that each cell of the grids has to detect.

    Objects belong to the levels in whose range their √area is. There, cells at most one away from the centre of mass that the middle
    fifth of the box touches are positive. A cell that is positive for several objects goes to the first.

    Args:
        boxes: boxes of the objects, xyxy [G, 4].
        masks: bool [G, h, w], in the same pixels; an object with an empty mask has no cells.
        size: height and width that the grids span, at least h and w.
        ranges: minimum and maximum √area, one pair for each level.

    Returns:
        int64 [ΣS²], index of the object or NEGATIVE; cells by level, row and column.
    """
    device = boxes.device
    grids = torch.tensor(GRIDS, device=device)
    least, greatest = torch.tensor(ranges, device=device).unbind(1)
    sides = boxes[:, 2:] - boxes[:, :2]
    scale = sides.prod(1).sqrt()[:, None]
    centre, area = centres_and_areas(masks)
    in_range = (scale >= least) & (scale <= greatest) & (area > 0)[:, None]  # [G, L]

    extent = boxes.new_tensor([size[1], size[0]])
    half = sides / 2 * _CENTRE
    # Column and row on each level, [G, L, 2].
    first, middle, last = (
        ((point / extent)[:, None] * grids[:, None]).floor().long() for point in (centre - half, centre, centre + half)
    )
    step = torch.tensor([-1, 0, 1], device=device)
    cells = middle[:, :, None] + step[:, None]  # [G, L, 3, 2]
    touched = (cells >= first[:, :, None].clamp(min=0)) & (cells <= torch.minimum(last, grids[:, None] - 1)[:, :, None])
    columns, rows = cells.unbind(-1)
    wanted = touched[:, :, :, None, 1] & touched[:, :, None, :, 0] & in_range[:, :, None, None]  # [G, L, 3, 3]
    start = (grids**2).cumsum(0) - grids**2
    index = start[:, None, None] + rows[:, :, :, None] * grids[:, None, None] + columns[:, :, None]
    owner = torch.arange(len(boxes), device=device)[:, None, None, None].expand_as(index)
    first_owner = torch.full((int((grids**2).sum()),), len(boxes), device=device)
    first_owner = first_owner.scatter_reduce(0, index[wanted], owner[wanted], "amin")
    return torch.where(first_owner < len(boxes), first_owner, NEGATIVE)


def mask_losses(features: Tensor, kernels: Tensor, objects: Tensor, owner: Tensor) -> Tensor:
    """Dice losses of the masks of some cells of one image; [P], in 0..1.

    Args:
        features: mask features, [E, h, w].
        kernels: [P, E].
        objects: masks of the image's objects, bool [G, h, w].
        owner: int64 [P], the object of each cell.
    """

    def of_part(kernels: Tensor, owner: Tensor) -> Tensor:
        return dice_loss(cell_masks(features, kernels), objects[owner], eps=_DICE_EPS)

    return losses_in_parts(of_part, kernels, owner)


def cell_masks(features: Tensor, kernels: Tensor) -> Tensor:
    """Apply kernels [P, E] to mask features [E, h, w]: mask probabilities, float32 [P, h, w]."""
    return torch.einsum("pe,ehw->phw", kernels, features).float().sigmoid()


def _least_areas(device: torch.device) -> Tensor:
    """The number of mask-feature pixels that the mask of each cell has to exceed, int64 [ΣS²]."""
    return torch.tensor(STRIDES, device=device).repeat_interleave(torch.tensor(GRIDS, device=device) ** 2)


def rate_masks(features: Tensor, kernels: Tensor, least_area: Tensor) -> Tensor:
    """The maskness of some cells of one image: the mean probability of the pixels inside their masks.

    Args:
        features: mask features, [E, h, w].
        kernels: [P, E].
        least_area: number of pixels that each mask has to exceed, int64 [P].

    Returns:
        float32 [P], in 1/2..1, or 0 if a mask is too small.
    """

    def rate(kernels: Tensor, least_area: Tensor) -> Tensor:
        masks = cell_masks(features, kernels)
        inside = masks > 0.5
        area = inside.sum((1, 2), dtype=torch.int32)
        return torch.where(area > least_area, (masks * inside).sum((1, 2)) / area, 0.0)

    return in_parts(rate, _TESTED_AT_ONCE, kernels, least_area)


def best_pairs(scores: Tensor, maskness: Tensor, threshold: float, most: int) -> tuple[Tensor, Tensor, Tensor]:
    """The pairs of cell and class with the highest score times maskness, among those with a score above the threshold and maskness > 0.

    Maps scores [S, C] and the maskness of the cells [S] to score times maskness, descending, cell and class, [<= `most`] each.
    """
    cell, label = ((scores > threshold) & (maskness > 0)[:, None]).nonzero(as_tuple=True)
    score, order = (scores[cell, label] * maskness[cell]).sort(descending=True, stable=True)
    order = order[:most]
    return score[:most], cell[order], label[order]


def peaks(scores: Tensor, grid: int) -> Tensor:
    """Keep scores that are the maximum of their cell and its left, upper and upper-left neighbours; [S², C]."""
    heat = scores.T.reshape(1, -1, grid, grid)
    greatest = F.max_pool2d(heat, 2, stride=1, padding=1)[:, :, :-1, :-1]
    return torch.where(greatest == heat, heat, 0.0).flatten(2)[0].T


def matrix_nms_decay(masks: Tensor, labels: Tensor) -> Tensor:
    """Matrix NMS (Wang et al., 2020, section 3.4) with a Gaussian: the factor for the score of each mask.

    Args:
        masks: bool [D, h, w], by descending score.
        labels: int64 [D].

    Returns:
        [D], in 0..1: the minimum of exp(-σ (IoU² - c²)) over all higher-scoring masks of the class, where c is the highest IoU of that
        mask with masks that score higher still. 1 for the best.
    """
    flat = masks.flatten(1).float()
    with torch.autocast(flat.device.type, enabled=False):  # float16 ends at 65,504 pixels
        both = flat @ flat.T
    area = flat.sum(1)
    iou = both / (area[:, None] + area - both)
    iou = torch.where(labels[:, None] == labels, iou, 0.0).triu(diagonal=1)
    # Padded by a row without effect, because there may be no masks. (F.pad of PyTorch 2.9 refuses empty tensors.)
    neutral = torch.zeros_like(area)[None]
    highest = torch.cat([neutral, iou]).amax(0)
    decay = (-_SIGMA * (iou.square() - highest.square()[:, None])).exp()
    return torch.cat([neutral + 1, decay]).amin(0)
