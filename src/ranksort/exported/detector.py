"""A detector in an ONNX file, run by onnxruntime."""

import json
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ..prediction.images import load_pixels

DEFAULT_THRESHOLD = 0.3  # if there are no better ones
_FORMAT = 1


@dataclass(eq=False)
class Found:
    """The D detections in an image, by descending score.

    Attributes:
        boxes: float32 [D, 4], x1, y1, x2, y2 in pixels of the image.
        scores: float32 [D], in 0..1; float64 if calibrated.
        labels: int64 [D], positions in `OnnxDetector.class_names`.
        masks: bool [D, H, W], None if the model predicts none.

    Examples:
        >>> import numpy as np
        >>> from ranksort.exported import Found
        >>> found = Found(np.zeros((2, 4), np.float32), np.array([0.9, 0.4], np.float32), np.array([0, 1]))
        >>> len(found.select(found.scores > 0.5))
        1
    """

    boxes: np.ndarray
    scores: np.ndarray
    labels: np.ndarray
    masks: np.ndarray | None = None

    def select(self, kept: np.ndarray) -> "Found":
        """Select detections, by a mask, bool [D], or by their positions in the desired order."""
        masks = None if self.masks is None else self.masks[kept]
        return Found(self.boxes[kept], self.scores[kept], self.labels[kept], masks)

    def __len__(self) -> int:
        return len(self.scores)


class OnnxDetector:
    """What `ranksort export` wrote.

    Args:
        path: of the file.
        threads: for an image; None: as many as the machine has cores.

    Attributes:
        about: the metadata, see `docs/export.md`.
        class_names: of the labels.
        category_ids: of the labels, in COCO results.
        has_masks: whether it predicts masks.

    Raises:
        FileNotFoundError, ValueError: there is no such file, or it is none that `ranksort export` wrote.
    """

    def __init__(self, path: str | os.PathLike[str], threads: int | None = None) -> None:
        try:
            import onnxruntime
        except ModuleNotFoundError:
            raise ValueError(f"{path} needs onnxruntime: pip install onnxruntime") from None
        if not Path(path).is_file():
            raise FileNotFoundError(f"there is no model {path}")
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3  # without warnings about the optional threshold input
        if threads is not None:
            options.intra_op_num_threads = threads
        try:
            self._session = onnxruntime.InferenceSession(os.fspath(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime has many exception classes
            raise ValueError(f"{path} cannot be read as an ONNX model ({str(error).splitlines()[0]})") from None
        self.about: dict[str, Any] = _about(self._session.get_modelmeta().custom_metadata_map, path)
        self.class_names = tuple(category["name"] for category in self.about["categories"])
        self.category_ids = [category["id"] for category in self.about["categories"]]
        self.has_masks: bool = self.about["masks"]
        self._outputs = [output.name for output in self._session.get_outputs()]

    def __call__(self, image: np.ndarray, score_threshold: float | None = None) -> Found:
        """Find the objects in an image, uint8 RGB [H, W, 3].

        Args:
            image: the image; OpenCV's are BGR: pass `image[..., ::-1]`.
            score_threshold: scores above it are reported; None: the model's own, which is low. For SOLOv2 it applies to the class
                probability, before maskness and Matrix NMS.

        Raises:
            ValueError: it is not such an image.
        """
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
            raise ValueError(f"an image must be uint8 RGB of shape [H, W, 3], got {image.dtype} of shape {image.shape}")
        given = {"image": np.ascontiguousarray(image)}
        if score_threshold is not None:
            given["score_threshold"] = np.array(score_threshold, np.float32)
        return Found(**dict(zip(self._outputs, self._session.run(None, given), strict=True)))

    def load(self, source: Any) -> np.ndarray:
        """Load an image as `predict` does, uint8 RGB [H, W, 3]; see `load_pixels`."""
        return load_pixels(source, self.about["preprocessing"]["white"])

    def predict(self, source: Any, score_threshold: float | str | None = None, *, scores: str = "raw") -> Found:
        """Detect objects in an image.

        Args:
            source: a file, a PIL image, or an array, uint8 [H, W, 3] RGB or [H, W] grey.
            score_threshold: minimum score of a detection; "lrp": for each class, the threshold with its best LRP error (oLRP) in the
                run's report. None: "lrp" if the model has these thresholds, else .3.
            scores: "raw": as the network gives them; "calibrated": the expected IoU; "precision": the probability of an IoU of .5 or
                more. A numeric threshold applies to these scores.

        Raises:
            FileNotFoundError: there is no such image.
            ValueError: the image or a setting cannot be used.
        """
        thresholds, curves = self.thresholds(score_threshold), self.curves(scores)
        found = self(self.load(source), self._least(score_threshold, thresholds))
        is_number = self.is_number(score_threshold)
        if not is_number:
            found = _above(found, thresholds)
        if curves is not None:
            found = _calibrated(found, curves)
        return _above(found, thresholds) if is_number else found

    def thresholds(self, score_threshold: float | str | None = None) -> np.ndarray:
        """The score threshold of each label, float64 [C]; see `predict`."""
        known = self.about["lrp_thresholds"]
        if score_threshold == "lrp" and known is None:
            raise ValueError("the model was exported without a report, which --score-threshold lrp needs: set a number")
        if score_threshold == "lrp" or (score_threshold is None and known is not None):
            return np.array(known, np.float64)
        try:
            least = DEFAULT_THRESHOLD if score_threshold is None else float(score_threshold)
        except ValueError:
            least = -1
        if not 0 <= least <= 1:
            needs_run = str(score_threshold).startswith(("precision", "recall"))
            hint = ": predict with the run folder for a precision or recall" if needs_run else ""
            raise ValueError(
                f'the score threshold of an ONNX model must be within 0..1 or "lrp", got {score_threshold}{hint}'
            )
        return np.full(len(self.class_names), least, np.float64)

    def _least(self, score_threshold: float | str | None, thresholds: np.ndarray) -> float:
        """The lowest score that the graph has to report; with LRP-optimal thresholds, the one used when they were found."""
        own = float(self.about["score_threshold"])
        return min(own, float(thresholds.min(initial=1))) if self.is_number(score_threshold) else own

    def is_number(self, score_threshold: float | str | None) -> bool:
        """Whether a threshold is a number, which applies to calibrated scores; the model's own are for raw ones."""
        return score_threshold != "lrp" and (score_threshold is not None or self.about["lrp_thresholds"] is None)

    def curves(self, scores: str) -> list[dict[str, list[float]]] | None:
        """The piecewise linear calibration of each label, by its corners; None for raw scores.

        Raises:
            ValueError: the model was exported without it, or there is no such kind of scores.
        """
        if scores == "raw":
            return None
        target = {"calibrated": "iou"}.get(scores, scores)
        if target not in self.about["calibrations"]:
            raise ValueError(
                f"the model was exported without a calibration for scores={scores!r}: it has raw scores only"
            )
        return self.about["calibrations"][target]


def _above(found: Found, thresholds: np.ndarray) -> Found:
    """The detections at or above the threshold of their label, [C], rounded like the scores."""
    return found.select(found.scores >= thresholds.astype(found.scores.dtype)[found.labels])


def _calibrated(found: Found, curves: list[dict[str, list[float]]]) -> Found:
    scores = found.scores.astype(np.float64)  # in float32, calibrated scores that differ by little would become equal
    for label in np.unique(found.labels).tolist():
        of_label = found.labels == label
        scores[of_label] = np.interp(scores[of_label], curves[label]["scores"], curves[label]["values"])
    return replace(found, scores=scores).select(np.argsort(-scores, kind="stable"))


def _about(metadata: dict[str, str], path: str | os.PathLike[str]) -> dict[str, Any]:
    try:
        about = json.loads(metadata["ranksort"])
        version = about["format"]
    except (KeyError, ValueError, TypeError, RecursionError):
        raise ValueError(f"{path} was not written by `ranksort export`: its metadata is incomplete") from None
    if version != _FORMAT:
        raise ValueError(f"{path} has format {version}, but this ranksort reads format {_FORMAT}: export it again")
    return about
