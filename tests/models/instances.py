"""Small images with objects and their masks."""

import torch
from torch import Tensor

NUM_CLASSES = 3
Sample = tuple[Tensor, dict[str, Tensor]]


def sample(height: int, width: int, objects: list[list[float]]) -> Sample:
    """A noisy dark image with a bright ellipse for each (x1, y1, x2, y2, label), in the channel of its label, cut by the border."""
    image = torch.rand(3, height, width) * 0.2
    y, x = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    boxes, masks = torch.tensor(objects, dtype=torch.float32).reshape(-1, 5)[:, :4], []
    for x1, y1, x2, y2, label in objects:
        mask = ((2 * x - x1 - x2) / (x2 - x1)) ** 2 + ((2 * y - y1 - y2) / (y2 - y1)) ** 2 < 1
        image[int(label), mask] = 0.9
        masks.append(mask)
    boxes = torch.stack([boxes[:, i].clamp(0, (width, height)[i % 2]) for i in range(4)], 1)
    labels = torch.tensor([int(o[4]) for o in objects], dtype=torch.int64)
    return image, {
        "boxes": boxes,
        "labels": labels,
        "masks": torch.stack(masks) if masks else torch.zeros(0, height, width, dtype=torch.bool),
    }


def batch(*samples: Sample) -> tuple[list[Tensor], list[dict[str, Tensor]]]:
    return [image for image, _ in samples], [target for _, target in samples]
