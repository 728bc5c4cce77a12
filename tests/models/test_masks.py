import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import rcnn as oracle
from samples import peak_bytes
from torch import Tensor
from torch.nn import functional as F

from ranksort.models import masks as masks_module
from ranksort.models.masks import boxes_around, centres_and_areas, paste_masks, quarter_masks, resize_masks


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


coordinates = st.floats(-20, 60, width=32)


@settings(max_examples=60, deadline=None)
@given(
    coordinates,
    coordinates,
    st.floats(0.5, 80),
    st.floats(0.5, 80),
    st.integers(1, 40),
    st.integers(1, 40),
    st.integers(0),
)
def test_paste_masks(x: float, y: float, width: float, height: float, rows: int, columns: int, seed: int) -> None:
    mask = torch.rand(28, 28, generator=torch.Generator().manual_seed(seed % 2**31))
    box = [x, y, x + width, y + height]
    expected = oracle.paste_mask(mask, box, rows, columns)
    pasted = paste_masks(mask[None], torch.tensor([box]), (rows, columns))[0]
    clear = (expected - 0.5).abs() > 1e-4
    assert pasted.shape == (rows, columns)
    assert torch.equal(pasted[clear], (expected > 0.5)[clear])


def test_resize_in_parts_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    masks = torch.rand(7, 12, 20)
    expected = resize_masks(masks, (30, 45))
    monkeypatch.setattr(masks_module, "_PIXELS_AT_ONCE", 3 * 30 * 45)
    assert torch.equal(resize_masks(masks, (30, 45)), expected)


def test_paste_in_parts_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    masks, corners = torch.rand(7, 28, 28), torch.rand(7, 2) * 40
    boxes = torch.cat([corners, corners + 30], 1)
    expected = paste_masks(masks, boxes, (64, 80))
    monkeypatch.setattr(masks_module, "_PIXELS_AT_ONCE", 3 * 64 * 80)
    assert torch.equal(paste_masks(masks, boxes, (64, 80)), expected)
    assert paste_masks(masks[:0], boxes[:0], (64, 80)).shape == (0, 64, 80)
    assert not paste_masks(masks[:1], torch.tensor([[9.0, 9, 9, 9]]), (64, 80)).any()


def test_resizing_takes_memory_for_a_part_of_the_masks(monkeypatch: pytest.MonkeyPatch) -> None:
    """As floats the masks of 230 objects at 550 x 550 pixels would be 280 MB."""
    monkeypatch.setattr(masks_module, "_PIXELS_AT_ONCE", 8 * 128 * 128)
    masks = torch.rand(100, 128, 128) < 0.5
    assert peak_bytes(lambda: resize_masks(masks, (32, 32))) < masks.nbytes
