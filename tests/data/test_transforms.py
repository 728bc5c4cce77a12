from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision import tv_tensors
from torchvision.ops import masks_to_boxes

from ranksort.data.coco import CocoDataset
from ranksort.data.transforms import DropEmptyBoxes, ResizeShortSide, ScaleJitter, ssd_transforms, training_transforms

Write = Callable[[Any], tuple[Path, Path]]


def _sample(height: int, width: int, boxes: list[list[float]]) -> tuple[Any, dict[str, Any]]:
    masks = torch.zeros(len(boxes), height, width, dtype=torch.uint8)
    for mask, (x1, y1, x2, y2) in zip(masks, boxes, strict=True):
        mask[max(int(y1), 0) : max(int(y2), 0), max(int(x1), 0) : max(int(x2), 0)] = 1
    target = {
        "boxes": tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=(height, width), dtype=torch.float32),
        "labels": torch.arange(len(boxes)),
        "masks": tv_tensors.Mask(masks),
        "image_id": 5,
    }
    return tv_tensors.Image(torch.randint(0, 256, (3, height, width), dtype=torch.uint8)), target


@pytest.mark.parametrize(
    ("size", "min_size", "max_size", "expected"),
    [
        ((480, 640), 800, 1333, (800, 1067)),
        ((427, 640), 800, 1333, (800, 1199)),
        ((640, 300), 800, 1333, (1333, 625)),
        ((48, 64), 48, 99, (48, 64)),
    ],
)
def test_resize_short_side(size: Any, min_size: int, max_size: int, expected: Any) -> None:
    height, width = size
    image, target = _sample(height, width, [[0, 0, width, height], [10, 20, 30, 40]])
    resized, new = ResizeShortSide([min_size], max_size)(image, target)
    assert resized.shape == (3, *expected)
    assert resized.dtype == torch.uint8
    assert new["masks"].shape == (2, *expected)
    assert new["masks"][0].all()
    scale = torch.tensor([expected[1] / width, expected[0] / height]).repeat(2)
    torch.testing.assert_close(torch.Tensor(new["boxes"]), torch.Tensor(target["boxes"]) * scale)
    assert new["image_id"] == 5
    if size == expected:
        assert torch.equal(resized, image)


def test_resize_draws_every_size() -> None:
    image, _ = _sample(40, 60, [])
    sizes = {ResizeShortSide([20, 30, 50], 100)(image).shape[1] for _ in range(60)}
    assert sizes == {20, 30, 50}


def test_boxes_are_clipped_after_the_transform_and_empty_ones_dropped_with_all_they_have() -> None:
    image, target = _sample(40, 60, [[-10, -5, 20, 10], [-20, 0, -5, 10], [50, 30, 80, 90], [60, 0, 70, 10]])
    resized, new = training_transforms([80], 1000, flip=0)(image, target)
    assert resized.shape == (3, 80, 120)
    assert new["boxes"].tolist() == [[0, 0, 40, 20], [100, 60, 120, 80]]
    assert new["labels"].tolist() == [0, 2]
    assert new["masks"].flatten(1).sum(1).tolist() == [40 * 20, 20 * 20]
    assert isinstance(new["boxes"], tv_tensors.BoundingBoxes)
    assert isinstance(new["masks"], tv_tensors.Mask)


def test_flip_turns_image_boxes_and_masks_alike() -> None:
    image, target = _sample(40, 60, [[5, 10, 20, 30]])
    flipped, new = training_transforms([40], 1000, flip=1)(image, target)
    assert torch.equal(flipped, image.flip(-1))
    assert new["boxes"].tolist() == [[40, 10, 55, 30]]
    assert torch.equal(new["masks"], target["masks"].flip(-1))


def test_images_without_objects_pass(content: dict[str, Any], write: Write) -> None:
    files = write({**content, "annotations": []})
    transform = training_transforms([32], 64)
    dataset = CocoDataset(*files, training=True, masks=True, keep_empty_images=True, transform=transform)
    image, target = dataset[0]
    assert image.shape == (3, 32, 43)
    assert target["boxes"].shape == (0, 4)
    assert target["masks"].shape == (0, 32, 43)
    assert DropEmptyBoxes()(image, target)[1]["labels"].shape == (0,)


def test_ssd_keeps_objects_and_all_they_have_together() -> None:
    """Whatever is cut out: uint8 squares, at least one object, and boxes which are those of their masks."""
    seen = set()
    for seed in range(40):
        torch.manual_seed(seed)
        image, target = _sample(60, 80, [[10, 10, 70, 50], [0, 0, 30, 20], [50, 30, 80, 60]])
        new_image, new = ssd_transforms(64, (123.0, 117.0, 104.0))(image, target)
        assert (new_image.shape, new_image.dtype) == ((3, 64, 64), torch.uint8)
        assert 1 <= len(new["boxes"]) == len(new["labels"]) == len(new["masks"])
        assert new["masks"].shape[1:] == (64, 64)
        seen.add(tuple(new["labels"].tolist()))
        for box, mask in zip(new["boxes"], new["masks"], strict=True):
            x1, y1, x2, y2 = box.tolist()
            assert 0 <= x1 < x2 <= 64
            assert 0 <= y1 < y2 <= 64
            rows, columns = mask.any(1).nonzero(), mask.any(0).nonzero()
            if len(rows):
                extent = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
                assert [x1, y1, x2, y2] == pytest.approx([float(x) for x in extent], abs=3)
    assert len(seen) > 2


def test_ssd_takes_images_without_objects() -> None:
    torch.manual_seed(0)
    image, target = _sample(60, 80, [])
    target["boxes"] = tv_tensors.BoundingBoxes(torch.zeros(0, 4), format="XYXY", canvas_size=(60, 80))
    assert ssd_transforms(64, (123.0, 117.0, 104.0))(image, target)[0].shape == (3, 64, 64)


def _disc(size: int, x: float, y: float, radius: float) -> torch.Tensor:
    rows, columns = torch.meshgrid(torch.arange(size) + 0.5, torch.arange(size) + 0.5, indexing="ij")
    return ((columns - x) ** 2 + (rows - y) ** 2 < radius**2).to(torch.uint8)


@given(
    discs=st.lists(st.tuples(st.integers(6, 90), st.integers(6, 90), st.integers(2, 30)), min_size=1, max_size=4),
    seed=st.integers(0, 10**6),
)
@settings(deadline=None, max_examples=60)
def test_jitter_keeps_images_boxes_and_masks_together(discs: list[tuple[int, int, int]], seed: int) -> None:
    """Some object remains, each box is that of its mask, and the image has the object's colour where the mask is."""
    masks = torch.stack([_disc(96, *disc) for disc in discs])
    image = torch.full((3, 96, 96), 200, dtype=torch.uint8)
    for value, mask in enumerate(masks, 1):
        image[:, mask.bool()] = 20 * value
    target = {
        "boxes": tv_tensors.BoundingBoxes(
            masks_to_boxes(masks) + torch.tensor([0, 0, 1, 1]), format="XYXY", canvas_size=(96, 96)
        ),
        "labels": torch.arange(len(discs)),
        "masks": tv_tensors.Mask(masks),
        "image_id": 5,
    }
    torch.manual_seed(seed)
    new_image, new = ScaleJitter((1.0, 2.0, 3.0))(tv_tensors.Image(image), target)
    height, width = new_image.shape[-2:]
    assert height == width
    assert 48 <= height <= 192
    assert 1 <= len(new["labels"]) == len(new["boxes"]) == len(new["masks"])
    assert new["masks"].shape[1:] == (height, width)
    assert new["boxes"].canvas_size == (height, width)
    assert torch.equal(torch.Tensor(new["boxes"]), masks_to_boxes(new["masks"]) + torch.tensor([0, 0, 1, 1]))
    for label, mask in zip(new["labels"].tolist(), new["masks"], strict=True):
        shown = new_image[0][mask.bool()]  # objects of later labels lie above it
        assert bool((shown.remainder(20) == 0).all())
        assert bool((shown >= 20 * (label + 1)).all())


def test_jitter_scales_within_its_bounds_and_fills_with_its_colour() -> None:
    seen = []
    for seed in range(60):
        torch.manual_seed(seed)
        image, target = _sample(40, 60, [[5.5, 10, 20, 30.25]])
        new_image, new = ScaleJitter((9.0, 9.0, 9.0))(image, target)
        height, width = new_image.shape[-2:]
        assert abs(width / height - 1.5) < 0.06
        seen.append(height)
        if height > 40:
            assert bool((new_image == 9).all(0).sum() >= height * width - 40 * 60)
            size = new["boxes"][0, 2:] - new["boxes"][0, :2]
            assert size.tolist() == [14.5, 20.25]
    assert min(seen) < 25
    assert max(seen) > 64
    assert 20 <= min(seen) <= max(seen) <= 80


def test_jitter_takes_images_without_objects_and_ends_at_their_size() -> None:
    for seed in range(8):
        torch.manual_seed(seed)
        image, target = _sample(40, 60, [])
        target["boxes"] = tv_tensors.BoundingBoxes(torch.zeros(0, 4), format="XYXY", canvas_size=(40, 60))
        new_image, new = training_transforms([80], 1000, jitter_fill=(9.0, 9.0, 9.0))(image, target)
        assert new_image.shape[1] == 80
        assert abs(new_image.shape[2] - 120) <= 4
        assert new_image.dtype == torch.uint8
        assert len(new["boxes"]) == len(new["masks"]) == 0
