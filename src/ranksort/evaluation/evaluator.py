"""Evaluate a model while it runs: detections come image by image, on one process or several."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from ..data.coco_columns import Category, CocoFile
from ..data.ids import Id
from ..data.segmentations import Packed
from .coco import evaluate
from .inputs import Detections, read_ground_truth
from .report import Report
from .results import encode_masks


class Evaluator:
    """Collect detections (`update`), gather those of all processes (`merge`), and evaluate them (`compute`).

    A detection takes 32 bytes; with a mask 40, plus about a hundred for the compressed runs of a COCO mask.

    Args:
        file: the ground truth, with segmentations if masks are evaluated.
        categories: the model's classes, in the order of their labels. Those that the file lacks do not count.
        masks: evaluate masks as well as boxes.
        style: as in `evaluate_detections`.
        max_detections: as in `evaluate_detections`.

    Attributes:
        thresholds: [C] score thresholds of the model's labels; detections with lower scores are left out. None: no thresholds.

    Raises:
        ValueError: the contents of the file cannot be evaluated like this.
    """

    def __init__(
        self,
        file: CocoFile,
        categories: Sequence[Category],
        *,
        masks: bool = False,
        style: str = "coco",
        max_detections: int | None = None,
    ) -> None:
        self.style, self.max_detections = style, max_detections
        self.truths = {kind: read_ground_truth(file, kind, style) for kind in ("bbox", *(["segm"] if masks else []))}
        truth = self.truths["bbox"]
        self._image = {image.id: n for n, image in enumerate(truth.images)}
        known = {category.id: n for n, category in enumerate(truth.categories)}
        self._category = np.array([known.get(category.id, -1) for category in categories], dtype=np.int32)
        self.thresholds: Tensor | None = None
        self.reset()

    def reset(self) -> None:
        """Forget all detections."""
        names = ["image", "category", "score", "box"] + ["mask_area", "runs", "run_bytes"] * ("segm" in self.truths)
        self._parts: dict[str, list[np.ndarray]] = {name: [] for name in names}

    def update(self, detections: Sequence[dict[str, Tensor]], image_ids: Sequence[Id]) -> None:
        """Add the detections in some images, as from `Detector.forward`, and the ids of the images."""
        for found, image_id in zip(detections, image_ids, strict=True):
            boxes = found["boxes"].float().cpu().clone()
            boxes[:, 2:] -= boxes[:, :2]
            category = self._category[found["labels"].cpu().numpy()]
            kept = category >= 0
            if self.thresholds is not None:
                least = self.thresholds.to(found["scores"])[found["labels"]]
                kept &= (found["scores"] >= least).cpu().numpy()
            columns = {
                "image": np.full(int(kept.sum()), self._image[image_id], dtype=np.int32),
                "category": category[kept],
                "score": found["scores"].cpu().double().numpy()[kept],
                "box": boxes.numpy()[kept],
            }
            if "runs" in self._parts:
                masks = found["masks"][torch.from_numpy(kept).to(found["masks"].device)]
                rles = encode_masks(masks)
                columns["mask_area"] = masks.flatten(1).sum(1).cpu().numpy().astype(np.int32)
                columns["runs"] = np.frombuffer("".join(rle["counts"] for rle in rles).encode("ascii"), np.uint8)
                columns["run_bytes"] = np.array([len(rle["counts"]) for rle in rles], dtype=np.int32)
            for name, column in columns.items():
                self._parts[name].append(column)

    def merge(self, device: torch.device) -> None:
        """Gather the detections of all processes on the first one, as arrays; with one process, do nothing.

        All processes have to call it. `device` is a device whose tensors they can exchange.
        """
        if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
            columns = self._columns()
            self._parts = {name: [_gather(column, device)] for name, column in columns.items()}

    def compute(self) -> dict[str, Report]:
        """The reports of boxes ("bbox") and of masks ("segm"), on the first process."""
        return {
            kind: evaluate(truth, self.detections(kind), self.style, self.max_detections)
            for kind, truth in self.truths.items()
        }

    def detections(self, iou_type: str) -> Detections:
        """All detections as columns, to which the matches of the report of that type refer."""
        columns = self._columns()
        boxes = columns["box"].astype(np.float64)
        areas, mask_areas, masks = boxes[:, 2] * boxes[:, 3], None, None
        if iou_type == "segm":
            ends = np.cumsum(columns["run_bytes"], dtype=np.int64)
            masks = Packed([columns["runs"].tobytes()], np.zeros(1, dtype=np.int64), ends)
            mask_areas = columns["mask_area"].astype(np.int64)
            # Small and large masks are distinguished by their own areas, not by those of their boxes.
            areas = mask_areas.astype(np.float64)
        return Detections(columns["image"], columns["category"], areas, boxes, mask_areas, masks, columns["score"])

    def __len__(self) -> int:
        """The number of detections."""
        return sum(map(len, self._parts["score"]))

    def missing(self, limit: int) -> int:
        """How many more objects than detections there are in images with `limit` detections or more."""
        truth = self.truths["bbox"]
        found = np.bincount(self._columns()["image"], minlength=len(truth.images))
        lacking = np.maximum(np.bincount(truth.image[~truth.crowd], minlength=len(truth.images)) - found, 0)
        return int(lacking[found >= limit].sum())

    def _columns(self) -> dict[str, np.ndarray]:
        empty = {"score": np.zeros(0), "box": np.zeros((0, 4), np.float32), "runs": np.zeros(0, np.uint8)}
        for name, parts in self._parts.items():
            self._parts[name] = [np.concatenate([empty.get(name, np.zeros(0, np.int32)), *parts])]
        return {name: parts[0] for name, parts in self._parts.items()}


def _gather(column: np.ndarray, device: torch.device) -> np.ndarray:
    """One column of all processes, in order, on the first one; on the others, their own."""
    content = torch.from_numpy(np.ascontiguousarray(column).view(np.uint8).reshape(-1).copy()).to(device)
    rank, size = dist.get_rank(), dist.get_world_size()
    gathered = list(torch.empty(size, 1, dtype=torch.int64, device=device))
    dist.all_gather(gathered, torch.tensor([len(content)], device=device))
    lengths: list[int] = torch.cat(gathered).tolist()
    padded = content.new_zeros(max(lengths))
    padded[: len(content)] = content
    received = [torch.empty_like(padded) for _ in range(size)] if rank == 0 else None
    dist.gather(padded, received, dst=0)
    if received is None:
        return column
    parts: list[Any] = [part[:length].cpu().numpy() for part, length in zip(received, lengths, strict=True)]
    return np.concatenate(parts).view(column.dtype).reshape(-1, *column.shape[1:])
