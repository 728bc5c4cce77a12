"""The detections in one image."""

from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from pycocotools import mask as coco_mask
from torch import Tensor

from ..evaluation.results import decode_masks
from ..visualize import draw_detections
from .images import load_image


@dataclass(repr=False, eq=False)
class Prediction:
    """The D detections in one image, by descending score.

    Attributes:
        boxes: float32 [D, 4], x1, y1, x2, y2 in pixels of the image.
        scores: float32 [D], in 0..1; float64 if they are calibrated (see `load_model`), so that no two become equal.
        labels: int64 [D], positions in `class_names`.
        class_names: names of all classes of the model.
        size: height and width of the image in pixels, upright.
        rles: COCO's compressed RLE of the mask of each detection, None if the model predicts no masks.
        path: path of the image file; None if it did not come from a file.
        white: value of white for reading the file, see `load_image`.
        image: uint8 RGB [3, H, W]; None if it can be read from `path`, so that results of many files need little memory.

    Examples:
        >>> import numpy as np
        >>> from ranksort.prediction import Prediction
        >>> boxes = np.array([[1, 2, 5, 6], [3, 3, 9, 9]], dtype=np.float32)
        >>> prediction = Prediction(boxes, np.array([0.9, 0.6]), np.array([1, 0]), ("cat", "dog"), size=(10, 20))
        >>> prediction
        <Prediction 20x10: 1 dog, 1 cat>
        >>> prediction.select(prediction.scores > 0.8).names
        ['dog']
    """

    boxes: np.ndarray
    scores: np.ndarray
    labels: np.ndarray
    class_names: tuple[str, ...]
    size: tuple[int, int]
    rles: list[dict[str, Any]] | None = None
    path: Path | None = None
    image: Tensor | None = None
    white: float = 0.0

    @property
    def names(self) -> list[str]:
        """The class name of each detection."""
        return [self.class_names[label] for label in self.labels.tolist()]

    @property
    def masks(self) -> np.ndarray | None:
        """The masks, bool [D, H, W], decoded at each access; None if the model predicts none."""
        return None if self.rles is None else decode_masks(self.rles, *self.size).numpy()

    def select(self, kept: np.ndarray) -> "Prediction":
        """Select detections, by a mask, bool [D], or by their positions in the desired order."""
        rles = None if self.rles is None else [self.rles[n] for n in np.arange(len(self))[kept].tolist()]
        boxes, scores, labels = self.boxes[kept], self.scores[kept], self.labels[kept]
        return replace(self, boxes=boxes, scores=scores, labels=labels, rles=rles)

    def plot(self) -> Image.Image:
        """Draw the boxes with class names and scores, and masks if there are any, on the image.

        Raises:
            FileNotFoundError: the image file no longer exists.
            ValueError: it cannot be read, or there is no image.
        """
        return Image.fromarray(self.draw().permute(1, 2, 0).numpy())

    def draw(self) -> Tensor:
        """Like `plot`, as uint8 [3, H, W]."""
        if self.image is None and self.path is None:
            raise ValueError("this prediction has neither an image nor a file to draw on")
        image = self._read(self.path) if self.image is None and self.path is not None else self.image
        assert image is not None
        masks = None if self.rles is None else (torch.from_numpy(coco_mask.decode(rle)).bool() for rle in self.rles)
        return draw_detections(image, self.boxes, self.labels, self.scores, self.class_names, masks)

    def save(self, path: str | Path) -> None:
        """Save the picture of `plot`; the suffix gives the format, such as .jpg or .png.

        Raises:
            FileNotFoundError: as for `plot`.
            ValueError: as for `plot`, or the format is unknown.
            OSError: the file cannot be written.
        """
        path = Path(path)
        if Image.registered_extensions().get(path.suffix.lower()) not in Image.SAVE:
            raise ValueError(
                f"the suffix of {path} is not an image format that can be written: use one such as .jpg or .png"
            )
        self.plot().save(path)

    def _read(self, path: Path) -> Tensor:
        if not path.is_file():
            raise FileNotFoundError(
                f"The image {path} no longer exists, but is needed to draw on: put it back, or predict "
                "on the image itself, as in model.predict(PIL.Image.open(...)), which keeps it."
            )
        image = load_image(path, self.white)
        if image.shape[1:] != self.size:
            raise ValueError(f"The image {path} has changed since the prediction: its size is different.")
        return image

    def __len__(self) -> int:
        return len(self.boxes)

    def __repr__(self) -> str:
        """For example `<Prediction photo.jpg, 640x480: 15 RBC, 1 WBC>`."""
        counts = ", ".join(f"{count} {name}" for name, count in Counter(self.names).most_common())
        name = f"{self.path}, " if self.path else ""
        return f"<Prediction {name}{self.size[1]}x{self.size[0]}: {counts or 'nothing found'}>"
