"""Run a detector on images: in batches, whole or in tiles."""

import contextlib
import os
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import islice
from numbers import Integral, Real
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from ..evaluation.model_scores import least_scores
from ..evaluation.results import encode_masks
from ..evaluation.thresholds import Wish, parse_threshold
from ..models import Detector
from ..models.images import resized_size
from .images import VIDEOS, find_images, load_image, read_ahead
from .result import Prediction
from .tiles import cover, join, place

DEFAULT_THRESHOLD = 0.3  # if there are no better ones
_BATCH = 8  # images per batch on accelerators
_WINDOW = 4  # batches that are sorted by shape together

T = TypeVar("T")


def predict(
    model: Detector,
    source: Any,
    *,
    score_threshold: float | str | None = None,
    batch_size: int | None = None,
    tile: int | None = None,
    overlap: float = 0.2,
) -> Prediction | list[Prediction]:
    """Detect objects in one image or several.

    Args:
        model: any detector; its training or evaluation mode is restored afterwards.
        source: an image: a file, a PIL image, an array, uint8 [H, W, 3] **RGB** (OpenCV's are BGR: pass `image[..., ::-1]`) or [H, W]
            grey, or a tensor [3, H, W]. Or several: a list of images, a folder (searched recursively), a .txt file with one path per
            line, or a pattern such as "photos/*.jpg".
        score_threshold: minimum score of a detection; "lrp": for each class, the threshold with its best LRP error (oLRP) in the run's
            report; "precision:.9" or "recall:.8": the threshold that reaches this precision or recall there. None: "lrp" if the model
            comes with such a report, else .3.
        batch_size: images or tiles per batch; None: 1 on a CPU, else 8. Reduced if they do not fit into memory.
        tile: side in pixels of square tiles to detect in one by one, besides the whole image: for objects that are too small when the
            whole image is resized for the model. Choose a size at which objects are as large in a tile as in the training images.
        overlap: overlap of neighbouring tiles, as a fraction of their side. Objects smaller than the overlap are complete in at least
            one tile.

    Returns:
        A `Prediction` for one image, a list of them for several.

    Raises:
        FileNotFoundError: an image does not exist.
        ValueError: an image or a setting cannot be used.

    Warns:
        UserWarning: a class does not reach the precision or recall asked for.

    Examples:
        >>> import numpy as np
        >>> from ranksort import create_model
        >>> from ranksort.prediction import predict
        >>> model = create_model("ranksort_atss_r50_fpn_1x_coco", class_names=["cat", "dog"], backbone="resnet18", channels=64, min_size=64)
        >>> prediction = predict(model, np.zeros((48, 64, 3), dtype=np.uint8), score_threshold=0.9)  # an untrained model
        >>> prediction.size, len(prediction), prediction.class_names
        ((48, 64), 0, ('cat', 'dog'))
    """
    predictor = Predictor(model, score_threshold, batch_size=batch_size, tile=tile, overlap=overlap)
    for remark in predictor.remarks if score_threshold is not None else ():
        warnings.warn(remark, stacklevel=3)  # where `model.predict` is called
    several = isinstance(source, list | tuple)
    if isinstance(source, str | os.PathLike):
        files, _ = find_images([Path(source)])
        several = files != [Path(source)]
        sources: Sequence[Any] = files
        if not files:
            raise ValueError(f"there are no images in {source}")
    else:
        sources = source if several else [source]
    films = [s for s in sources if isinstance(s, str | os.PathLike) and Path(s).suffix.lower() in VIDEOS]
    if films:
        raise ValueError(f"{films[0]} is a video: use `ranksort predict`, or pass its frames as arrays")
    results = []
    for one, result in predictor.files(sources):
        if isinstance(result, Exception):
            raise result
        results.append(replace(result, image=None) if isinstance(one, str | os.PathLike) else result)
    return results if several else results[0]


class Predictor:
    """Run a model on images; see `predict` for the arguments.

    Attributes:
        batch_size: images or tiles per batch; reduced once they do not fit into memory.
        thresholds: score threshold of each label, [C].
        wish: what the thresholds reach; None: a number was given, or there is no report.
        remarks: remarks about the thresholds, in sentences.

    Examples:
        >>> import torch
        >>> from ranksort import create_model
        >>> from ranksort.prediction import Predictor
        >>> model = create_model("ranksort_atss_r50_fpn_1x_coco", class_names=["cat", "dog"], backbone="resnet18", channels=64, min_size=64)
        >>> predictor = Predictor(model, 0.9, batch_size=2)
        >>> predictor.threshold_text(), predictor.thresholds
        ('with a score of 0.9 or more', tensor([0.9000, 0.9000], dtype=torch.float64))
        >>> [prediction.size for _, prediction in predictor.images((n, torch.zeros(3, 48, 64).byte()) for n in range(3))]
        [(48, 64), (48, 64), (48, 64)]
    """

    def __init__(
        self,
        model: Detector,
        score_threshold: float | str | None = None,
        *,
        batch_size: int | None = None,
        tile: int | None = None,
        overlap: float = 0.2,
    ) -> None:
        asked = None if score_threshold is None else parse_threshold(score_threshold)
        if batch_size is not None and not _is_whole(batch_size, 1):
            raise ValueError(f"the batch size must be a whole number, 1 or more, got {batch_size!r}")
        if tile is not None and not _is_whole(tile, 32):
            raise ValueError(f"tiles must have a whole number of pixels, 32 or more, got {tile!r}")
        if not _is_within(overlap, 0, 0.9):
            raise ValueError(f"the overlap of tiles must be within 0..0.9, got {overlap!r}")
        self.model, self.tile, self.overlap = model, tile, overlap
        self.device = model.transform.mean.device
        self.batch_size = batch_size or (1 if self.device.type == "cpu" else _BATCH)
        if asked is None:
            asked = DEFAULT_THRESHOLD if model.thresholds is None else Wish("lrp")
        values, self.remarks = least_scores(asked, model)
        self.wish = asked if isinstance(asked, Wish) else None
        self.thresholds = torch.tensor(values, dtype=torch.float64)

    def threshold_text(self) -> str:
        """The score threshold in words, and its reason."""
        low, high = float(self.thresholds.min()), float(self.thresholds.max())
        if self.wish is None:
            return f"with a score of {low:g} or more"
        values = f"{low:.3f} to {high:.3f}" if high > low else f"{low:.3f}"
        if self.wish.kind == "lrp":
            return f"above the best threshold of their class in the run's report (the one that reaches oLRP): {values}"
        return f"above the threshold at which their class reaches {self.wish} in the run's report: {values}"

    def files(self, sources: Sequence[Any]) -> Iterator[tuple[Any, Prediction | Exception]]:
        """Iterate over image files, which are read ahead in threads: each with its prediction, or the error that prevented one."""
        ahead = self._window + 2
        load = partial(load_image, white=self.model.white)
        for source, found in self.images(read_ahead(sources, load, ahead)):
            path = Path(source) if isinstance(source, str | os.PathLike) else None
            yield source, found if isinstance(found, Exception) else replace(found, path=path, white=self.model.white)

    def images(self, images: Iterable[tuple[T, Tensor | Exception]]) -> Iterator[tuple[T, Prediction | Exception]]:
        """Iterate over images, uint8 [3, H, W], in order; exceptions in place of images are passed on.

        Each prediction holds its image. Images of similar shape share a batch, which is padded to the largest.
        """
        for window in _chunks(images, self._window):
            tensors = {n: image for n, (_, image) in enumerate(window) if isinstance(image, Tensor)}
            order = iter(sorted(tensors, key=lambda n: tensors[n].shape[2] / tensors[n].shape[1]))
            found: dict[int, Prediction | Exception] = {}
            while numbers := list(islice(order, self.batch_size)):  # which may have become smaller
                found |= zip(numbers, self._find([tensors[n] for n in numbers]), strict=True)
            for n, (source, image) in enumerate(window):
                yield source, image if isinstance(image, Exception) else _with_image(found[n], image)

    @property
    def _window(self) -> int:
        """Group images into batches."""
        return 1 if self.tile or self.batch_size == 1 else _WINDOW * self.batch_size

    def _find(self, images: Sequence[Tensor]) -> list[Prediction | Exception]:
        """The predictions for some images, or the errors that prevented them."""
        if not self.tile:
            return self._find_whole(images)
        return [self._find_in_tiles(image, self.tile) for image in images]

    def _find_whole(self, images: Sequence[Tensor]) -> list[Prediction | Exception]:
        """Predict on a batch of images; if that fails, for lack of memory or because of one image, on its halves."""
        try:
            return list(self._run(images))
        except Exception as error:
            if len(images) == 1:
                return [error.with_traceback(None)]  # it would hold references to what fills the memory
            if isinstance(error, torch.OutOfMemoryError) or "out of memory" in str(error):
                self.batch_size = len(images) // 2
        half = len(images) // 2
        return self._find_whole(images[:half]) + self._find_whole(images[half:])

    def _find_in_tiles(self, image: Tensor, side: int) -> Prediction | Exception:
        height, width = image.shape[-2:]
        if max(height, width) <= side:
            return self._find_whole([image])[0]
        tiles = cover(height, width, side, self.overlap)
        parts: list[Prediction] = []
        rows = iter(tiles.boxes.tolist())
        while boxes := list(islice(rows, self.batch_size)):
            for box, found in zip(
                boxes, self._find_whole([image[:, y:y2, x:x2] for x, y, x2, y2 in boxes]), strict=True
            ):
                if isinstance(found, Exception):
                    return found
                parts.append(place(found, box, (height, width)))
        # Shrunk here, as bytes: the model would copy the full image to the device, as floats.
        transform = self.model.transform
        size = resized_size(height, width, transform.min_size, transform.max_size)
        (whole,) = self._find_whole([F.resize(image, list(size), antialias=True)])
        if isinstance(whole, Exception):
            return whole
        return join(parts, tiles, place(whole, (0, 0, width, height), (height, width)))

    @property
    def _least(self) -> float:
        """The lowest score that the model has to report; with thresholds from its report, its own, with which they were found."""
        return float(self.thresholds.min()) if self.wish is None else 1.0

    def _run(self, images: Sequence[Tensor]) -> Iterator[Prediction]:
        with torch.inference_mode(), _evaluating(self.model, self._least):
            detections = self.model([image.to(self.device) for image in images])
        for image, of_image in zip(images, detections, strict=True):
            kept = of_image["scores"] >= self.thresholds.to(of_image["scores"])[of_image["labels"]]
            of_image = {key: value[kept].cpu() for key, value in of_image.items()}
            yield Prediction(
                of_image["boxes"].float().numpy(),
                of_image["scores"].to(torch.float32 if self.model.calibration is None else torch.float64).numpy(),
                of_image["labels"].numpy(),
                self.model.class_names,
                (image.shape[1], image.shape[2]),
                encode_masks(of_image["masks"]) if "masks" in of_image else None,
            )


@contextlib.contextmanager
def _evaluating(model: Detector, least: float) -> Iterator[None]:
    """Within this context, the model is in evaluation mode and reports scores from `least` on."""
    modes = [(module, module.training) for module in model.modules()]
    own = model.score_threshold
    try:
        model.eval()
        model.score_threshold = min(own, least)
        yield
    finally:
        model.score_threshold = own
        for module, mode in modes:
            module.training = mode


def _is_whole(number: Any, least: int) -> bool:
    return isinstance(number, Integral) and int(number) >= least


def _is_within(number: Any, least: float, most: float) -> bool:
    return isinstance(number, Real) and least <= float(number) <= most


def _with_image(found: Prediction | Exception, image: Tensor) -> Prediction | Exception:
    return found if isinstance(found, Exception) else replace(found, image=image)


def _chunks(items: Iterable[T], size: int) -> Iterator[list[T]]:
    iterator = iter(items)
    while chunk := list(islice(iterator, size)):
        yield chunk
