"""The paper's recipes for COCO, and ours for small data sets. A recipe is a function without arguments; its name is its name."""

from .recipe import Recipe


def ranksort_atss_r50_fpn_1x_coco() -> Recipe:
    """RS-ATSS, ResNet-50, 12 epochs; the paper: box AP 39.9, box oLRP 67.9."""
    recipe = Recipe("ranksort_atss_r50_fpn_1x_coco")
    recipe.optimizer.lr = 0.008
    return recipe


def ranksort_paa_r50_fpn_1x_coco() -> Recipe:
    """RS-PAA, ResNet-50, 12 epochs; the paper: box AP 41.0, box oLRP 67.3."""
    recipe = ranksort_atss_r50_fpn_1x_coco()
    recipe.name = "ranksort_paa_r50_fpn_1x_coco"
    recipe.model.detector = "paa"
    return recipe


def ranksort_yolact_r50_55e_coco() -> Recipe:
    """RS-YOLACT, ResNet-50, 55 epochs; the paper: box AP 33.8, box oLRP 71.8, mask AP 29.9, mask oLRP 74.7."""
    recipe = Recipe("ranksort_yolact_r50_55e_coco")
    recipe.data.augmentation, recipe.data.min_box_size = "ssd", 4.0
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
    recipe = Recipe("ranksort_solov2_r101_fpn_3x")
    recipe.data.train_min_sizes = tuple(range(640, 801, 32))
    recipe.model.detector, recipe.model.backbone = "solov2", "resnet101"
    recipe.model.score_threshold = 0.2
    recipe.optimizer.lr, recipe.optimizer.milestones, recipe.optimizer.clip_norm = 0.006, (27, 33), 35.0
    recipe.training.epochs = 36
    return recipe


def ranksort_solov2_light_448_r34_fpn_3x() -> Recipe:
    """RS-SOLOv2 for images of half the size, ResNet-34, 36 epochs; the paper: mask AP 32.6, mask oLRP 72.7."""
    recipe = ranksort_solov2_r101_fpn_3x()
    recipe.name = "ranksort_solov2_light_448_r34_fpn_3x"
    recipe.data.train_min_sizes = tuple(range(352, 513, 32))
    recipe.model.detector, recipe.model.backbone, recipe.model.head_convs = "solov2_light", "resnet34", 2
    recipe.model.min_size, recipe.model.max_size = 448, 768
    recipe.optimizer.lr, recipe.optimizer.lr_batch_size, recipe.training.batch_size = 0.012, 32, 32
    return recipe


def ranksort_atss_lite0_small() -> Recipe:
    """RS-ATSS for small data sets on small machines: EfficientNet-Lite0 at 320 pixels, minutes on two CPU cores."""
    recipe = ranksort_atss_r50_fpn_1x_coco()
    recipe.name = "ranksort_atss_lite0_small"
    recipe.model.backbone = "timm/tf_efficientnet_lite0"
    recipe.model.frozen_stages = 2
    recipe.model.pixel_mean = recipe.model.pixel_std = (127.5, 127.5, 127.5)
    recipe.model.channels, recipe.model.head_convs = 64, 2
    recipe.model.min_size, recipe.model.max_size = 320, 512
    # The few steps of a short training leave scores near where they start: start higher, and cut little.
    recipe.model.prior, recipe.model.score_threshold = 0.1, 0.02
    recipe.data.workers = 2
    # AdamW, because a small data set allows few steps.
    recipe.optimizer.algorithm, recipe.optimizer.weight_decay = "adamw", 0.05
    recipe.optimizer.lr, recipe.optimizer.lr_batch_size = 0.001, 4
    recipe.optimizer.warmup_steps, recipe.optimizer.clip_norm = 50, 10.0
    recipe.optimizer.milestones = (9, 11)
    recipe.training.batch_size, recipe.training.epochs = 4, 12
    return recipe
