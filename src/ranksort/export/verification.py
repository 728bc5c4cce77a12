"""Compare the detections of an ONNX file with those of its model, and their speed."""

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw
from torchvision.ops import box_iou

from ..exported import Found, OnnxDetector
from ..models import Detector

SIZES = ((480, 640), (500, 333), (97, 64))  # height, width
_IOU, _MASK_IOU, _SCORE, _CORNER = 0.999, 0.99, 1e-4, 0.01  # the last in pixels
_DECISIONS = 0.98  # fraction of detections that must agree: at an IoU equal to the NMS threshold, rounding decides
_RUNS = 5


@dataclass
class Verification:
    """The result of a comparison.

    Attributes:
        images: number of images compared.
        detections: number of PyTorch's detections in them.
        missing: how many of them the ONNX file lacks or has in addition; those with the lowest reported score do not count, because
            rounding decides which of them are reported.
        iou: lowest IoU of a detection and its counterpart.
        score: largest difference of their scores.
        torch_ms: PyTorch's median milliseconds for the first image.
        onnx_ms: ONNX Runtime's, with as many threads as PyTorch.
    """

    images: int
    detections: int
    missing: int
    iou: float
    score: float
    torch_ms: float
    onnx_ms: float

    @property
    def is_same(self) -> bool:
        """Whether the ONNX file agrees with the model."""
        return self.missing <= (1 - _DECISIONS) * self.detections

    def __str__(self) -> str:
        if not self.is_same:
            return f"{self.missing} of {self.detections} detections in {self.images} images differ from PyTorch's"
        close = f" (lowest IoU {self.iou:.5f}, scores within {self.score:.1e})" if self.detections else ""
        apart = f", {self.missing} differ" if self.missing else ""
        return (
            f"verified on {self.images} images: {self.detections} detections agree with PyTorch{close}{apart}; "
            f"{self.onnx_ms:.0f} ms per image, PyTorch {self.torch_ms:.0f} ms"
        )


def verify(model: Detector, path: str | Path, images: Sequence[np.ndarray]) -> Verification:
    """Compare an ONNX file with its model, as sets.

    A counterpart has IoU > .999 (or corners within .01 px), the same label, a score within 1e-4, and masks with IoU > .99.

    Args:
        model: the model in evaluation mode, on a CPU.
        path: path of the file.
        images: uint8 RGB [H, W, 3] each, at least one.
    """
    detector = OnnxDetector(path, threads=torch.get_num_threads())
    detections, missing, ious, scores = 0, 0, [1.0], [0.0]
    for image in images:
        ours, theirs = _run(model, image, model.score_threshold), detector(image)
        detections += len(ours)
        for a, b in ((ours, theirs), (theirs, ours)):
            lacking, iou, score = _unmatched(a, b, model.detections_per_image)
            missing += lacking
            ious += iou
            scores += score
    seconds: dict[str, list[float]] = {"torch": [], "onnx": []}
    for _ in range(_RUNS):  # alternating, so that other work on the machine affects both alike
        started_at = time.perf_counter()
        _run(model, images[0], model.score_threshold)
        between = time.perf_counter()
        detector(images[0])
        seconds["torch"].append(between - started_at)
        seconds["onnx"].append(time.perf_counter() - between)
    times = [1000 * statistics.median(seconds[name]) for name in ("torch", "onnx")]
    return Verification(len(images), detections, missing, min(ious), max(scores), *times)


def _run(model: Detector, image: np.ndarray, threshold: float) -> Found:
    own = model.score_threshold
    try:
        model.score_threshold = threshold
        with torch.inference_mode():
            (found,) = model([torch.from_numpy(image.copy()).permute(2, 0, 1)])
    finally:
        model.score_threshold = own
    assert isinstance(found, dict)
    return Found(**{name: value.numpy() for name, value in found.items()})


def _unmatched(found: Found, others: Found, most: int) -> tuple[int, list[float], list[float]]:
    """The number of detections without a counterpart, and the IoUs and score differences of the others."""
    if not len(found):
        return 0, [], []
    decided = found.scores > found.scores[-1] + _SCORE if len(found) == most else np.ones(len(found), bool)
    number = int(decided.sum())
    if not len(others):
        return number, [], []
    iou = box_iou(torch.from_numpy(found.boxes[decided]), torch.from_numpy(others.boxes)).numpy()
    # Boxes without area, which clipping can leave, have no IoU.
    is_close = (iou > _IOU) | (np.abs(found.boxes[decided][:, None] - others.boxes).max(-1) < _CORNER)
    difference = np.abs(found.scores[decided][:, None] - others.scores)
    fits = is_close & (difference <= _SCORE) & (found.labels[decided][:, None] == others.labels)
    if found.masks is not None and others.masks is not None:
        for i, j in np.argwhere(fits).tolist():
            fits[i, j] = _mask_iou(found.masks[decided][i], others.masks[j]) > _MASK_IOU
    best = np.where(fits, iou, -1).argmax(1) if number else np.zeros(0, int)
    rows = np.arange(number)[fits.any(1)]
    best = best[fits.any(1)]
    ious = iou[rows, best]
    return number - len(rows), ious[ious > _IOU].tolist(), difference[rows, best].tolist()


def _mask_iou(a: np.ndarray, b: np.ndarray) -> float:
    both, either = int((a & b).sum()), int((a | b).sum())
    return (both + 1) / (either + 1)


def drawn_images(sizes: Sequence[tuple[int, int]] = SIZES) -> list[np.ndarray]:
    """Images of ellipses and rectangles on noise, uint8 RGB [H, W, 3], for use without photos."""
    rng = np.random.default_rng(0)
    images = []
    for height, width in sizes:
        coarse = Image.fromarray(rng.integers(60, 200, (height // 16 + 2, width // 16 + 2, 3), dtype=np.uint8))
        picture = coarse.resize((width, height), Image.Resampling.BICUBIC)
        pen = ImageDraw.Draw(picture)
        for n in range(12):
            x, y, w, h = (rng.uniform(0, 1, 4) * (width, height, width / 3, height / 3)).tolist()
            shape = pen.ellipse if n % 2 else pen.rectangle
            shape((x, y, x + w, y + h), fill=tuple(rng.integers(0, 256, 3).tolist()))
        images.append(np.asarray(picture))
    return images
