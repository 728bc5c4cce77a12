"""The paper's recipe for LVIS v1.

The data is COCO's images, in `train2017/` and `val2017/` of a folder that also has `annotations/lvis_v1_{train,val}.json`.
"""

from .coco import ranksort_mask_rcnn_r50_fpn_1x_coco
from .recipe import Recipe


def ranksort_mask_rcnn_r50_fpn_1x_lvis_v1() -> Recipe:
    """RS-Mask R-CNN, ResNet-50, multi-scale, 12 epochs; the paper, on LVIS: mask AP 25.2, box AP 25.9."""
    recipe = ranksort_mask_rcnn_r50_fpn_1x_coco()
    recipe.data.train_min_sizes = tuple(range(640, 801, 32))
    recipe.data.repeat_threshold = 1e-3
    recipe.model.num_classes = 1203
    recipe.model.score_threshold, recipe.model.detections_per_image = 0.6, 300
    recipe.evaluation.style = "lvis"
    return recipe
