"""A model's detections in the form in which COCO exchanges results."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from pycocotools import mask as coco_mask
from torch import Tensor

from ..data.ids import Id


def to_coco_results(
    detections: Sequence[dict[str, Tensor]], image_ids: Sequence[Id], category_ids: Sequence[Id]
) -> list[dict[str, Any]]:
    """Turns the detections of some images into COCO results.

    Args:
        detections: for each image `boxes` [D, 4] xyxy in pixels of the original image, `scores` [D] and `labels` [D], and perhaps `masks`
            bool [D, H, W].
        image_ids: of these images.
        category_ids: the category id of each label.

    Returns:
        One `{image_id, category_id, bbox: [x, y, width, height], score}` a detection, with `segmentation` where there are masks.
    """
    results = []
    for found, image_id in zip(detections, image_ids, strict=True):
        boxes = found["boxes"].float().cpu().clone()
        boxes[:, 2:] -= boxes[:, :2]
        columns = found["labels"].tolist(), boxes.tolist(), found["scores"].tolist()
        of_image = [
            {"image_id": image_id, "category_id": category_ids[label], "bbox": box, "score": score}
            for label, box, score in zip(*columns, strict=True)
        ]
        if "masks" in found:
            for result, rle in zip(of_image, encode_masks(found["masks"]), strict=True):
                result["segmentation"] = rle
        results += of_image
    return results


def encode_masks(masks: Tensor) -> list[dict[str, Any]]:
    """Masks, bool [D, H, W], as COCO's compressed RLE, in a form that JSON can hold."""
    encoded = coco_mask.encode(np.asfortranarray(masks.permute(1, 2, 0).cpu().numpy().astype(np.uint8)))
    return [{"size": rle["size"], "counts": rle["counts"].decode("ascii")} for rle in encoded]


def decode_masks(rles: Sequence[dict[str, Any]], height: int, width: int) -> Tensor:
    """The inverse of `encode_masks`, for an image of that size."""
    masks = coco_mask.decode(list(rles)) if rles else np.zeros((height, width, 0), np.uint8)
    return torch.from_numpy(masks).permute(2, 0, 1).bool()
