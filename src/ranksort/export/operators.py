"""Operators for the parts of a detector that are data-dependent Python loops.

`class_nms` is ONNX's NonMaxSuppression: all classes in one call but independently, without offsetting boxes as `batched_nms` does,
which rounds coordinates.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torchvision.ops import nms


@torch.library.custom_op("ranksort::class_nms", mutates_args=())
def class_nms(boxes: Tensor, scores: Tensor, score_threshold: Tensor, iou_threshold: float, most: int) -> Tensor:
    """Non-maximum suppression within each set and class.

    Args:
        boxes: xyxy boxes of S sets, [S, R, 4].
        scores: scores of K classes, [S, K, R].
        score_threshold: scores above it take part, [].
        iou_threshold: a box is dropped if its IoU with a higher-scoring one is above this.
        most: maximum number kept per set and class.

    Returns:
        Set, class and index of each kept box, int64 [N, 3]; within each set and class by descending score, ties in the given order.
    """
    found = []
    for s, k in ((s, k) for s in range(scores.shape[0]) for k in range(scores.shape[1])):
        place = (scores[s, k] > score_threshold).nonzero().squeeze(1)
        kept = place[nms(boxes[s, place], scores[s, k, place], iou_threshold)[:most]]
        found.append(torch.stack([torch.full_like(kept, s), torch.full_like(kept, k), kept], 1))
    return torch.cat(found) if found else boxes.new_zeros(0, 3, dtype=torch.int64)


@class_nms.register_fake
def _(boxes: Tensor, scores: Tensor, score_threshold: Tensor, iou_threshold: float, most: int) -> Tensor:
    count = torch.library.get_ctx().new_dynamic_size()
    return boxes.new_empty(count, 3, dtype=torch.int64)


def suppress(
    boxes: Tensor, scores: Tensor, *, score_threshold: Tensor, nms_threshold: float, detections_per_image: int
) -> dict[str, Tensor]:
    """`non_maximum_suppression` for all pairs of region and class in one call, with the same results."""
    if boxes.ndim == 2:
        _, label, region = class_nms(
            boxes[None], scores.T[None], score_threshold, nms_threshold, detections_per_image
        ).unbind(1)
    else:
        of_classes = boxes.transpose(0, 1), scores.T[:, None]
        label, _, region = class_nms(*of_classes, score_threshold, nms_threshold, detections_per_image).unbind(1)
    order = (region * scores.shape[1] + label).sort().indices
    order = order[scores[region, label][order].sort(descending=True, stable=True).indices][:detections_per_image]
    region, label = region[order], label[order]
    kept = boxes[region] if boxes.ndim == 2 else boxes[region, label]
    return {"boxes": kept, "scores": scores[region, label], "labels": label}


def translations() -> dict[Any, Callable[..., Any]]:
    """Translations of operators that `torch.onnx.export` does not know."""
    from onnxscript import opset20

    op: Any = opset20

    def nms_of_classes(boxes: Any, scores: Any, score_threshold: Any, iou_threshold: float, most: int) -> Any:
        return op.NonMaxSuppression(boxes, scores, most, iou_threshold, score_threshold)

    def stable_sort(x: Any, stable: bool | None = None, dim: int = -1, descending: bool = False) -> Any:
        # TopK keeps ties in the given order, the lower index first, in both directions.
        size = op.Reshape(op.Gather(op.Shape(x), dim), [1])
        return op.TopK(x, size, axis=dim, largest=int(descending), sorted=1)

    return {torch.ops.ranksort.class_nms.default: nms_of_classes, torch.ops.aten.sort.stable: stable_sort}
