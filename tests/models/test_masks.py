import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from ranksort.models.masks import boxes_around, centres_and_areas, quarter_masks, resize_masks


def _blobs(count: int, height: int, width: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(count, 1, height, width, generator=generator)
    return F.avg_pool2d(noise, 5, 1, 2)[:, 0] > 0.1


@pytest.mark.parametrize("size", [(8, 12), (10, 16)])
def test_quarter_masks_are_resized_bilinearly(size: tuple[int, int]) -> None:
    masks = _blobs(7, 32, 48)
    ours = quarter_masks(masks, size)
    expected = F.interpolate(masks[None].float(), (8, 12), mode="bilinear")[0] >= 0.5
    assert torch.equal(ours[:, :8, :12], expected)
    assert int(ours.sum()) == int(expected.sum())
    assert bool(expected.any())


def test_quarter_masks_of_odd_sizes() -> None:
    masks = _blobs(3, 30, 45)
    padded = torch.zeros(3, 32, 48, dtype=torch.bool)
    padded[:, :30, :45] = masks
    assert torch.equal(quarter_masks(masks, (9, 12)), quarter_masks(padded, (9, 12)))
    assert quarter_masks(masks[:0], (9, 12)).shape == (0, 9, 12)


def test_boxes_and_centres() -> None:
    masks = torch.zeros(4, 10, 20, dtype=torch.bool)
    masks[0, 2:5, 3:12] = True
    masks[1, 9, 19] = True
    masks[3] = True
    assert boxes_around(masks).tolist() == [[3, 2, 12, 5], [19, 9, 20, 10], [0, 0, 0, 0], [0, 0, 20, 10]]
    centres, areas = centres_and_areas(masks)
    assert centres.tolist() == [[7, 3], [19, 9], [0, 0], [9.5, 4.5]]
    assert areas.tolist() == [27, 1, 0, 200]
    assert boxes_around(masks[:0]).shape == (0, 4)
    assert centres_and_areas(masks[:0])[0].shape == (0, 2)


def test_resize_masks() -> None:
    soft = torch.zeros(1, 4, 4)
    soft[0, 1:3, 1:3] = 0.9
    large = resize_masks(soft, (16, 16))
    assert large.dtype == torch.bool
    assert bool(large[0, 5:11, 5:11].all())
    assert int(large.sum()) < 100
    assert resize_masks(soft[:0], (5, 7)).shape == (0, 5, 7)
