"""Pictures of detections."""

import base64
import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
from PIL import Image
from pycocotools import mask as mask_utils
from torch import Tensor
from torchvision.utils import draw_bounding_boxes, draw_segmentation_masks

from .data.coco import CocoDataset
from .data.ids import sort_key
from .evaluation import Report
from .evaluation.analysis import IMAGES
from .evaluation.confusion import BOTH, CLASS, NAMES
from .evaluation.results import decode_masks

_FONT = str(Path(matplotlib.get_data_path()) / "fonts/ttf/DejaVuSans.ttf")
CLASS_PICTURES = 5
_PAGE_SIDE = 560  # pixels, of the pictures in a report's page
RIGHT, MISSED, FALSE = (68, 136, 220), (220, 50, 90), (240, 170, 30)


def draw_detections(
    image: Tensor,
    boxes: np.ndarray,
    labels: np.ndarray,
    scores: np.ndarray,
    class_names: Sequence[str],
    masks: Iterable[Tensor] | None = None,
) -> Tensor:
    """Draw boxes with class names and scores, and masks if there are any.

    Args:
        image: uint8 RGB, [3, H, W].
        boxes: [D, 4] xyxy in pixels of the image.
        labels: [D].
        scores: [D] in 0..1.
        class_names: names of the labels.
        masks: masks of the D detections, bool [H, W] each; one at a time, because all masks of a large image need much memory.

    Returns:
        A new image, uint8 [3, H, W].
    """
    image = image.clone()
    if not len(boxes):
        return image
    texts = [f"{class_names[k]} {score:.2f}" for k, score in zip(labels.tolist(), scores.tolist(), strict=True)]
    colors = [_color(label) for label in labels.tolist()]
    for mask, color in zip(() if masks is None else masks, colors, strict=masks is not None):
        _paint(image, mask, color)
    # Keep lines thin for small objects in a large image, but text legible.
    object_side = float(np.median(np.sqrt((boxes[:, 2:] - boxes[:, :2]).prod(1).clip(0))))
    side = min(image.shape[1], image.shape[2], 5 * object_side)
    return draw_bounding_boxes(
        image,
        torch.from_numpy(boxes),
        labels=texts,
        colors=colors,
        width=max(1, round(side / 200)),
        font=_FONT,
        font_size=max(9, round(side / 36)),
        label_colors=["black"] * len(texts),
        fill_labels=True,
    )


def _paint(image: Tensor, mask: Tensor, color: tuple[int, int, int]) -> None:
    """Colour the pixels of a mask, bool [H, W], half transparently."""
    y, x = mask.nonzero(as_tuple=True)
    image[:, y, x] = ((image[:, y, x].float() + torch.tensor(color)[:, None]) / 2).to(torch.uint8)


def report_pictures(dataset: CocoDataset, report: Report, limit: int) -> list[dict[str, Any]]:
    """`worst_and_best_images`, and images that a report's page shows for a class or a pair of confused classes (`is_worst` is None).

    There are at most `CLASS_PICTURES` times `limit` of the latter: first the worst of each pair and class, then the second worst, and
    so on.
    """
    shown = worst_and_best_images(dataset, report, limit)
    known = {picture["id"] for picture in shown}
    errors = report.analysis.errors_as_dict(report)
    by_error = sorted(range(len(report.per_class)), key=lambda n: -report.per_class[n]["oLRP"])
    candidates = [pair["images"] for pair in errors["pairs"]]
    candidates += [[id for id, *_ in errors["worst_images"][n]] for n in by_error]
    ids = [images[n] for n in range(IMAGES) for images in candidates if n < len(images)]
    others = [id for id in dict.fromkeys(ids) if id not in known][: CLASS_PICTURES * limit]
    position = {image.id: n for n, image in enumerate(report.matched.ground_truth.images)}
    error, false, missed = report.image_errors().T
    return shown + [
        {"is_worst": None, "error": error[i], "false": int(false[i]), "missed": int(missed[i])}
        | _compare(dataset, report, i)
        for i in (position[id] for id in others)
    ]


def worst_and_best_images(dataset: CocoDataset, report: Report, limit: int) -> list[dict[str, Any]]:
    """The images with the highest and the lowest LRP error, with objects and detections, for the report's page.

    Detections count if their score reaches the LRP-optimal threshold of their class. Masks are drawn if the report is on masks.

    Args:
        dataset: images and objects.
        report: report on detections of these objects.
        limit: number of images; the first half are the worst.

    Returns:
        For each image: `is_worst`, its LRP `error`, the numbers of `false` positives and `missed` objects; `id`, `name`, `width` and
        `height`; `objects` and `detections` as [x, y, width, height, is_right, text, class, what is wrong], the class as a position in
        `per_class`; `pictures` of both (one if they are equal), as data URIs.
    """
    error, false, missed = report.image_errors().T
    order = np.lexsort((-false - missed, -error))[: np.count_nonzero(~np.isnan(error))].tolist()
    worst, others = order[: (limit + 1) // 2], order[(limit + 1) // 2 :]
    best = others[::-1][: limit // 2]
    return [
        {"is_worst": is_worst, "error": error[i], "false": int(false[i]), "missed": int(missed[i])}
        | _compare(dataset, report, i)
        for is_worst, chosen in ((True, worst), (False, best))
        for i in chosen
    ]


def _compare(dataset: CocoDataset, report: Report, position: int) -> dict[str, Any]:
    """The objects and detections of the image at this position among the sorted ids."""
    matches, thresholds = report.matches, report.thresholds()
    class_names = [row["class"] for row in report.per_class]
    shown = np.unique(matches.object_category).tolist()
    names = dict(zip(shown, class_names, strict=True))
    rows = {category: n for n, category in enumerate(shown)}
    index = sorted(range(len(dataset)), key=lambda n: sort_key(dataset.image_ids[n]))[position]
    image, target = dataset[index]

    of_image = matches.object_image == position
    categories = matches.object_category[of_image]
    is_found = (matches.object_score[of_image] >= thresholds[categories]).tolist()
    objects = [
        [x, y, x2 - x, y2 - y, right, names[category], rows[category], "" if right else "missed"]
        for (x, y, x2, y2), right, category in zip(target["boxes"].tolist(), is_found, categories.tolist(), strict=True)
    ]

    counted = (matches.image == position) & (matches.outcome >= 0) & (matches.score >= thresholds[matches.category])
    places = matches.place[counted]
    found, size = report.matched.candidates.detections, list(image.shape[-2:])
    rles: list[Any] = []
    if report.iou_type == "segm":
        assert found.masks is not None
        rles = [{"size": size, "counts": found.masks[place]} for place in places.tolist()]
    columns = (
        mask_utils.toBbox(rles).reshape(-1, 4) if found.boxes is None else found.boxes[places],
        *(c[counted] for c in (matches.score, matches.category, matches.outcome, matches.iou)),
        *(c[counted] for c in (report.analysis.errors.kind, report.analysis.errors.object)),
    )
    category_of = report.matched.ground_truth.category
    detections = [
        [
            *box,
            outcome == 1,
            f"{names[category]} {score:.2f}" + (f", IoU {iou:.2f}" if outcome else ""),
            rows[category],
            "" if outcome else _what(kind, names.get(int(category_of[about]), "")),
        ]
        for box, score, category, outcome, iou, kind, about in zip(*(c.tolist() for c in columns), strict=True)
    ]

    pictures = [image]
    if report.iou_type == "segm":
        masks = decode_masks(rles, *size)
        pictures = [_draw_masks(image, target["masks"], objects, MISSED), _draw_masks(image, masks, detections, FALSE)]
    return {
        "id": dataset.image_ids[index],
        "name": dataset.file_name(index),
        "width": image.shape[2],
        "height": image.shape[1],
        "objects": objects,
        "detections": detections,
        "pictures": [_data_uri(picture) for picture in pictures],
    }


def _what(kind: int, name: str) -> str:
    """The kind of a false positive, with the class of the object if that is another one."""
    return f"{NAMES[kind]}: {name}" if kind in (CLASS, BOTH) else NAMES[kind]


def _draw_masks(image: Tensor, masks: Tensor, shapes: list[list[Any]], wrong: tuple[int, int, int]) -> Tensor:
    colors = [RIGHT if is_right else wrong for _, _, _, _, is_right, *_ in shapes]
    if not colors:
        return image
    return draw_segmentation_masks(image.as_subclass(Tensor), masks.as_subclass(Tensor).bool(), 0.5, colors)


def _data_uri(image: Tensor) -> str:
    """A uint8 RGB image [3, H, W] as a small JPEG within a page."""
    picture = Image.fromarray(image.permute(1, 2, 0).numpy())
    picture.thumbnail((_PAGE_SIDE, _PAGE_SIDE))
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=75)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode("ascii")


def _color(label: int) -> tuple[int, int, int]:
    """A light colour; neighbouring labels differ."""
    r, g, b, _ = matplotlib.colormaps["tab20"](label % 20)
    return tuple(int(127 + 128 * c) for c in (r, g, b))  # type: ignore[return-value]
