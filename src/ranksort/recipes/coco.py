"""The paper's recipes for COCO, and ours for small data sets.

A recipe is a function without arguments; `get_recipe` finds it by its name, where `_plus_` stands for the paper's `+_` (CARAFE).
"""

import dataclasses
import math
from collections.abc import Iterable
from typing import Any

from .recipe import Recipe


def ranksort_faster_rcnn_r50_fpn_1x_coco() -> Recipe:
    """RS-Faster R-CNN, ResNet-50, 12 epochs; the paper: box AP 39.6, box oLRP 67.9."""
    recipe = Recipe()
    recipe.model.detector = "faster_rcnn"
    # As published, for speed: for the published models, .05 would not change AP.
    recipe.model.score_threshold, recipe.model.nms_threshold = 0.4, 0.5
    recipe.optimizer.lr = 0.012
    return recipe


def ranksort_faster_rcnn_plus_r50_fpn_1x_coco() -> Recipe:
    """RS-Faster R-CNN with CARAFE, ResNet-50, 12 epochs; the paper: box AP 40.8, box oLRP 66.9."""
    return _with_model(ranksort_faster_rcnn_r50_fpn_1x_coco(), upsampling="carafe")


def ranksort_faster_rcnn_r101_fpn_1x_coco() -> Recipe:
    """RS-Faster R-CNN, ResNet-101, 12 epochs; base of the next two."""
    return _with_model(ranksort_faster_rcnn_r50_fpn_1x_coco(), backbone="resnet101")


def ranksort_faster_rcnn_r101_fpn_mstrain_dcn_3x_coco() -> Recipe:
    """RS-Faster R-CNN, ResNet-101 with DCNv2, multi-scale, 36 epochs; the paper: box AP 47.6, box oLRP 61.1."""
    longer = _longer(ranksort_faster_rcnn_r101_fpn_1x_coco(), train_min_sizes=range(480, 961, 80))
    return _with_model(longer, deformable_convs=True)


def ranksort_faster_rcnn_plus_r101_fpn_mstrain_dcn_3x_coco() -> Recipe:
    """RS-Faster R-CNN with CARAFE, ResNet-101 with DCNv2, multi-scale, 36 epochs; the paper: box AP 47.7, box oLRP 60.9."""
    return _with_model(ranksort_faster_rcnn_r101_fpn_mstrain_dcn_3x_coco(), upsampling="carafe")


def ranksort_cascade_rcnn_r50_fpn_1x_coco() -> Recipe:
    """RS-Cascade R-CNN, ResNet-50, 12 epochs; the paper: box AP 41.3, box oLRP 66.6."""
    return _with_model(ranksort_faster_rcnn_r50_fpn_1x_coco(), detector="cascade_rcnn")


def ranksort_atss_r50_fpn_1x_coco() -> Recipe:
    """RS-ATSS, ResNet-50, 12 epochs; the paper: box AP 39.9, box oLRP 67.9."""
    recipe = Recipe()
    recipe.optimizer.lr = 0.008
    return recipe


def ranksort_paa_r50_fpn_1x_coco() -> Recipe:
    """RS-PAA, ResNet-50, 12 epochs; the paper: box AP 41.0, box oLRP 67.3."""
    return _with_model(ranksort_atss_r50_fpn_1x_coco(), detector="paa")


def ranksort_mask_rcnn_r50_fpn_1x_coco() -> Recipe:
    """RS-Mask R-CNN, ResNet-50, 12 epochs; the paper: box AP 40.0, mask AP 36.4, box oLRP 67.5, mask oLRP 70.1."""
    return _with_model(ranksort_faster_rcnn_r50_fpn_1x_coco(), detector="mask_rcnn")


def ranksort_mask_rcnn_plus_r50_fpn_1x_coco() -> Recipe:
    """RS-Mask R-CNN with CARAFE, ResNet-50, 12 epochs; the paper: box AP 41.1, mask AP 37.3, box oLRP 66.6, mask oLRP 69.4."""
    return _with_model(ranksort_mask_rcnn_r50_fpn_1x_coco(), upsampling="carafe")


def ranksort_mask_rcnn_r101_fpn_mstrain_3x_coco() -> Recipe:
    """RS-Mask R-CNN, ResNet-101, multi-scale, 36 epochs; the paper: box AP 44.7, mask AP 40.3, box oLRP 63.7, mask oLRP 66.9."""
    longer = _longer(ranksort_mask_rcnn_r50_fpn_1x_coco(), train_min_sizes=range(640, 801, 32))
    return _with_model(longer, backbone="resnet101")


def ranksort_mask_rcnn_plus_r101_fpn_mstrain_3x_coco() -> Recipe:
    """RS-Mask R-CNN with CARAFE, ResNet-101, multi-scale, 36 epochs; paper: box AP 46.2, mask AP 41.5, box oLRP 62.6, mask oLRP 65.9."""
    recipe = _with_model(ranksort_mask_rcnn_r101_fpn_mstrain_3x_coco(), upsampling="carafe")
    recipe.data.train_min_sizes = tuple(range(480, 961, 80))  # as published: wider than without CARAFE
    return recipe


def ranksort_mask_rcnn_plus_r101_dcn_fpn_mstrain_3x_coco() -> Recipe:
    """The same with DCNv2; the paper: box AP 48.8, mask AP 43.6, box oLRP 60.2, mask oLRP 64.0."""
    return _with_model(ranksort_mask_rcnn_plus_r101_fpn_mstrain_3x_coco(), deformable_convs=True)


def ranksort_mask_rcnn_plus_x101_dcn_fpn_mstrain_3x_coco() -> Recipe:
    """The same with a ResNeXt-101 64x4d; the paper: box AP 49.9, mask AP 44.4, box oLRP 59.1, mask oLRP 63.1."""
    return _with_model(ranksort_mask_rcnn_plus_r101_dcn_fpn_mstrain_3x_coco(), backbone="resnext101_64x4d")


def ranksort_yolact_r50_55e_coco() -> Recipe:
    """RS-YOLACT, ResNet-50, 55 epochs; the paper: box AP 33.8, box oLRP 71.8, mask AP 29.9, mask oLRP 74.7."""
    recipe = Recipe()
    recipe.data.augmentation = "ssd"
    recipe.data.min_box_size = math.nextafter(4, 5)  # boxes have to be larger than 4 px
    recipe.model.detector = "yolact"
    recipe.model.frozen_stages, recipe.model.train_batch_norm = -1, True
    recipe.model.min_size = recipe.model.max_size = 550
    recipe.model.pixel_mean, recipe.model.pixel_std = (123.68, 116.78, 103.94), (58.40, 57.12, 57.38)
    recipe.model.nms_threshold = 0.5
    recipe.optimizer.lr, recipe.optimizer.lr_batch_size, recipe.optimizer.weight_decay = 0.006, 32, 5e-4
    recipe.optimizer.schedule = "cosine"
    recipe.training.epochs, recipe.training.batch_size = 55, 32
    return recipe


def ranksort_solov2_r101_fpn_3x() -> Recipe:
    """RS-SOLOv2, ResNet-101, multi-scale, 36 epochs; the paper: mask AP 39.7, mask oLRP 66.9."""
    recipe = _longer(Recipe(), train_min_sizes=range(640, 801, 32))
    recipe.model.detector, recipe.model.backbone = "solov2", "resnet101"
    recipe.model.score_threshold = 0.2
    recipe.optimizer.lr, recipe.optimizer.clip_norm = 0.006, 35.0
    return recipe


def ranksort_solov2_light_448_r34_fpn_3x() -> Recipe:
    """RS-SOLOv2 for images of half the size, ResNet-34, 36 epochs; the paper: mask AP 32.6, mask oLRP 72.7."""
    recipe = ranksort_solov2_r101_fpn_3x()
    recipe.data.train_min_sizes = tuple(range(352, 513, 32))
    recipe.model.detector, recipe.model.backbone, recipe.model.head_convs = "solov2_light", "resnet34", 2
    recipe.model.min_size, recipe.model.max_size = 448, 768
    recipe.optimizer.lr, recipe.optimizer.lr_batch_size, recipe.training.batch_size = 0.012, 32, 32
    return recipe


def ranksort_atss_lite0_small() -> Recipe:
    """RS-ATSS for small data sets on small machines: EfficientNet-Lite0 at 320 pixels, minutes on two CPU cores."""
    recipe = _with_model(_small(ranksort_atss_r50_fpn_1x_coco()), head_convs=2)
    # At the full rate, a run of 3,600 steps ended at 6.0 AP instead of 16.9 (benchmarks/losses.md).
    recipe.optimizer.backbone_rate = 0.1
    return recipe


def ranksort_mask_rcnn_lite0_small() -> Recipe:
    """RS-Mask R-CNN for small data sets on small machines: instance masks, EfficientNet-Lite0 at 320 pixels."""
    recipe = _with_model(_small(ranksort_mask_rcnn_r50_fpn_1x_coco()), proposals=200)
    # At .001 every ReLU of the box head, which has no norms, is dead after 250 steps.
    recipe.optimizer.lr = 0.0002
    return recipe


def _with_model(recipe: Recipe, **fields: Any) -> Recipe:
    """The recipe with these fields of its model group replaced."""
    recipe.model = dataclasses.replace(recipe.model, **fields)
    return recipe


def _small(recipe: Recipe) -> Recipe:
    """A light pretrained backbone, small images, and an optimiser that needs few steps."""
    recipe.model.backbone = "timm/tf_efficientnet_lite0"
    recipe.model.frozen_stages = 2
    recipe.model.channels = 64
    recipe.model.min_size, recipe.model.max_size = 320, 512
    # After a short run, scores are still close to their initial value: start higher, and use a low threshold.
    recipe.model.prior, recipe.model.score_threshold = 0.1, 0.02
    recipe.data.workers = 2
    # AdamW, because a small data set allows few steps.
    recipe.optimizer.algorithm, recipe.optimizer.weight_decay = "adamw", 0.05
    recipe.optimizer.lr, recipe.optimizer.lr_batch_size = 0.001, 4
    recipe.optimizer.warmup_steps, recipe.optimizer.clip_norm = 50, 10.0
    recipe.optimizer.milestones = (9, 11)
    recipe.training.batch_size, recipe.training.epochs = 4, 12
    return recipe


def _longer(recipe: Recipe, train_min_sizes: Iterable[int]) -> Recipe:
    """The 3x schedule with multi-scale training."""
    recipe.training.epochs, recipe.optimizer.milestones = 36, (27, 33)
    recipe.data.train_min_sizes = tuple(train_min_sizes)
    return recipe
