"""A detector whose right answers are known."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ranksort.models import Detector
from ranksort.models.images import ImageTransform
from ranksort.models.masks import boxes_around


class Colours(Detector):
    """Finds what has the colour of an object, number 1 to 80: its class is the number modulo 3, its score (90 - number) / 100.

    What is cut off by the border of an image is found as far as it is seen, as detectors do; from 3 px on. Colours that are mixed where an
    image is shrunk are none of an object.
    """

    has_masks = True

    def __init__(self, most_pixels: int = 10**9):
        super().__init__(nn.Identity(), ImageTransform(64, 64, [0] * 3, [1] * 3), num_classes=3)  # type: ignore[arg-type]
        self.most_pixels, self.batches = most_pixels, []

    def forward(self, images: Sequence[Tensor], *_: object) -> list[dict[str, Tensor]]:  # type: ignore[override]
        assert not self.training
        self.batches.append(len(images))
        if sum(image[0].numel() for image in images) > self.most_pixels:
            raise torch.OutOfMemoryError("CUDA out of memory.\nTried")
        found = [self.find(image) for image in images]
        return found if self.calibration is None else list(map(self.calibration, found))

    @staticmethod
    def find(image: Tensor) -> dict[str, Tensor]:
        code = image[0].int() * 65536 + image[1].int() * 256 + image[2].int()
        present = set(code.unique().tolist())
        numbers = [n for n in range(1, 81) if code_of(n) in present]
        masks = torch.stack([code == code_of(n) for n in numbers]) if numbers else torch.zeros(0, *code.shape).bool()
        boxes, number = boxes_around(masks), torch.tensor(numbers, dtype=torch.long)
        seen = ((boxes[:, 2:] - boxes[:, :2]) >= 3).all(1)
        found = {"boxes": boxes, "scores": (90 - number) / 100, "labels": number % 3, "masks": masks}
        return {key: value[seen] for key, value in found.items()}


def code_of(number: int) -> int:
    return number * 37 % 97 * 65536 + number * 256 + 90 - number


def paint(image: Tensor, box: Sequence[int], number: int) -> None:
    """Put an object into an image, uint8 [3, H, W]; box xyxy."""
    x, y, x2, y2 = box
    colour = torch.tensor(list(code_of(number).to_bytes(3, "big")), dtype=torch.uint8)
    image[:, y:y2, x:x2] = colour[:, None, None]
