"""What a detector does in Python loops that depend on its data, as operators which a graph can have.

`class_nms` is ONNX's NonMaxSuppression: that of all classes at once, each on its own, without moving boxes apart as `batched_nms` does,
which rounds coordinates.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torchvision.ops import nms


@torch.library.custom_op("ranksort::class_nms", mutates_args=())
def class_nms(boxes: Tensor, scores: Tensor, score_threshold: Tensor, iou_threshold: float, most: int) -> Tensor:
    """Which boxes no better one of their set and class covers.

    Args:
        boxes: xyxy of S sets, [S, R, 4].
        scores: of K classes, [S, K, R].
        score_threshold: scores above it take part, [].
        iou_threshold: a box is dropped where its IoU with a better one is above this.
        most: how many of each set and class are kept at most.

    Returns:
        Set, class and place of each, int64 [N, 3]; of each set and class by falling score, equal ones in the order given.
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
    """`non_maximum_suppression` of all pairs of region and class at once, which has the same results."""
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
    """How `torch.onnx.export` says what it has no words for."""
    from onnxscript import opset20

    op: Any = opset20

    def nms_of_classes(boxes: Any, scores: Any, score_threshold: Any, iou_threshold: float, most: int) -> Any:
        return op.NonMaxSuppression(boxes, scores, most, iou_threshold, score_threshold)

    def stable_sort(x: Any, stable: bool | None = None, dim: int = -1, descending: bool = False) -> Any:
        # TopK has equal ones in the order given, the lower index first, whichever its direction.
        size = op.Reshape(op.Gather(op.Shape(x), dim), [1])
        return op.TopK(x, size, axis=dim, largest=int(descending), sorted=1)

    return {torch.ops.ranksort.class_nms.default: nms_of_classes, torch.ops.aten.sort.stable: stable_sort}
