"""Pictures of detections."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.utils import draw_bounding_boxes, draw_segmentation_masks

from .data.coco import CocoDataset
from .evaluation.results import decode_masks

_FONT = str(Path(matplotlib.get_data_path()) / "fonts/ttf/DejaVuSans.ttf")
_SHOWN = 0.3


def draw_detections(
    image: Tensor, detections: dict[str, Tensor], class_names: Sequence[str], score_threshold: float = _SHOWN
) -> Tensor:
    """Draws boxes with class names, and with scores and masks where there are any.

    Args:
        image: uint8 RGB, [3, H, W].
        detections: `boxes` [D, 4] xyxy in pixels of the image, `labels` [D]; `scores` [D] in 0..1 where they are a model's; perhaps `masks`
            [D, H, W].
        class_names: of the labels.
        score_threshold: detections below it are not drawn.

    Returns:
        A new image, uint8 [3, H, W].
    """
    scores = detections.get("scores")
    shown = (
        torch.arange(len(detections["labels"])) if scores is None else (scores >= score_threshold).nonzero()[:, 0].cpu()
    )
    labels = [int(label) for label in detections["labels"][shown]]
    texts = [class_names[label] for label in labels]
    if scores is not None:
        texts = [f"{text} {score:.2f}" for text, score in zip(texts, scores[shown].tolist(), strict=True)]
    boxes = detections["boxes"][shown].as_subclass(Tensor).cpu()
    size = image.shape[-2:]
    if not len(boxes):
        return image.clone()
    image, colors = image.as_subclass(Tensor), [_color(label) for label in labels]
    if "masks" in detections:
        masks = detections["masks"].as_subclass(Tensor)[shown].bool().cpu()
        image = draw_segmentation_masks(image, masks, alpha=0.5, colors=colors)
    return draw_bounding_boxes(
        image,
        boxes,
        labels=texts,
        colors=colors,
        width=max(1, round(min(size) / 200)),
        font=_FONT,
        font_size=max(9, round(min(size) / 36)),
        label_colors=["black"] * len(boxes),
        fill_labels=True,
    )


def save_comparisons(folder: Path, dataset: CocoDataset, results: list[dict[str, Any]], limit: int) -> None:
    """Writes pictures of the objects of an image beside what was detected in it, for evenly spaced images of a data set.

    Args:
        folder: where the pictures go.
        dataset: images and objects.
        results: COCO results with boxes, and with masks where the data set has them.
        limit: how many pictures.
    """
    folder.mkdir(parents=True, exist_ok=True)
    label = {category.id: i for i, category in enumerate(dataset.categories)}
    for index in np.linspace(0, len(dataset) - 1, min(limit, len(dataset))).astype(int).tolist():
        image, target = dataset[index]
        of_image = [r for r in results if r["image_id"] == target["image_id"]]
        boxes = torch.tensor([r["bbox"] for r in of_image], dtype=torch.float32).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        detections = {
            "boxes": boxes,
            "scores": torch.tensor([r["score"] for r in of_image]),
            "labels": torch.tensor([label[r["category_id"]] for r in of_image], dtype=torch.int64),
        }
        if dataset.masks:
            detections["masks"] = decode_masks([r["segmentation"] for r in of_image], *image.shape[-2:])
        truth, found = (draw_detections(image, d, dataset.class_names) for d in (target, detections))
        gap = torch.full((3, truth.shape[1], 8), 255, dtype=torch.uint8)
        save_image(torch.cat([truth, gap, found], 2), folder / f"{target['image_id']}.jpg")


def save_image(image: Tensor, path: Path) -> None:
    """Writes a uint8 RGB image [3, H, W] in the format of the path's suffix."""
    Image.fromarray(image.permute(1, 2, 0).cpu().numpy()).save(path)


def _color(label: int) -> tuple[int, int, int]:
    """Light colours which differ for neighbouring labels."""
    r, g, b, _ = matplotlib.colormaps["tab20"](label % 20)
    return tuple(int(127 + 128 * c) for c in (r, g, b))  # type: ignore[return-value]
