import math

import pytest
import torch

from ranksort.models.anchors import AnchorGenerator, AnchorPredictions

CPU = torch.device("cpu")


def test_hand_computed_anchors() -> None:
    (level,) = AnchorGenerator([8], scales=[1, 2], ratios=[1.0, 4.0])([(2, 3)], CPU)
    assert level.shape == (2 * 3 * 4, 4)
    # A ratio of 4 is twice as high and half as wide as the square.
    of_first_cell = [[-4, -4, 4, 4], [-8, -8, 8, 8], [-2, -8, 2, 8], [-4, -16, 4, 16]]
    assert level[:4].tolist() == of_first_cell


def test_order_is_row_column_anchor() -> None:
    generator = AnchorGenerator([8], scales=[1, 2], ratios=[0.5, 1.0, 2.0])
    (level,) = generator([(2, 3)], CPU)
    centres = (level[:, :2] + level[:, 2:]) / 2
    cells = centres.reshape(2, 3, generator.per_cell, 2)
    for row in range(2):
        for column in range(3):
            assert torch.allclose(cells[row, column], torch.tensor([8.0 * column, 8.0 * row]), atol=1e-5)
    size = (level[:, 2:] - level[:, :2]).reshape(6, generator.per_cell, 2)
    assert torch.allclose(size, size[:1].expand_as(size), atol=1e-5)
    width, height = size[0].unbind(1)
    assert torch.allclose(height / width, torch.tensor([0.5, 0.5, 1, 1, 2, 2]))
    assert torch.allclose((width * height).sqrt(), torch.tensor([8.0, 16, 8, 16, 8, 16]))


def test_anchors_of_atss_are_centred_on_cell_corners_and_not_rounded() -> None:
    """RS-ATSS: three squares a cell with sides 4, 4·2^(1/3) and 4·2^(2/3) times the stride, offset 0."""
    levels = AnchorGenerator([8, 16], scales=[4 * 2 ** (i / 3) for i in range(3)])([(1, 1), (1, 2)], CPU)
    for level, stride in zip(levels, (8, 16), strict=True):
        expected = [4 * stride * 2 ** (i / 3) / 2 for i in range(3)]
        assert level[:3, 2].tolist() == pytest.approx(expected)
        assert torch.equal(level[:3, :2], -level[:3, 2:])
    assert torch.equal(levels[1][3:], levels[1][:3] + torch.tensor([16.0, 0, 16, 0]))


def test_one_feature_size_for_each_level() -> None:
    with pytest.raises(ValueError, match="zip"):
        AnchorGenerator([8, 16], scales=[1])([(2, 2)], CPU)


@pytest.mark.parametrize("padded", [(32, 32), (64, 96), (128, 128), (160, 32)])
def test_in_image_marks_cells_which_begin_inside(padded: tuple[int, int]) -> None:
    strides = (8, 16, 32, 64, 128)
    generator = AnchorGenerator(strides, scales=[1, 2])
    sizes = [(math.ceil(160 / s), math.ceil(128 / s)) for s in strides]
    anchors = generator(sizes, CPU)
    for level, inside, stride in zip(anchors, generator.in_image(sizes, padded, CPU), strides, strict=True):
        centres = (level[:, :2] + level[:, 2:]) / 2
        # A cell belongs to the image if its corner lies in it.
        expected = (centres[:, 0] < padded[1]) & (centres[:, 1] < padded[0])
        assert torch.equal(inside, expected), stride
    assert all(bool(x.all()) for x in generator.in_image(sizes, (160, 128), CPU))


def test_offset_and_base_sizes() -> None:
    generator = AnchorGenerator([550 / 69], scales=[3], ratios=[1.0], base_sizes=[8], offset=0.5)
    (level,) = generator([(2, 2)], CPU)
    half, stride = torch.tensor([-12.0, -12, 12, 12]), 550 / 69
    centres = torch.tensor([[0.5, 0.5], [1.5, 0.5], [0.5, 1.5], [1.5, 1.5]]) * stride
    torch.testing.assert_close(level, centres.repeat(1, 2) + half)


def test_best_regions_goes_by_the_highest_class_of_each_level() -> None:
    first = torch.tensor([[0.0, 3.0], [5.0, -9.0], [1.0, 1.0], [4.0, 0.0]])
    second = torch.tensor([[7.0, 0.0]])
    anchors = [torch.tensor([[10.0 * i, 0, 10 * i + 8, 8] for i in range(4)]), torch.tensor([[-5.0, 2, 70, 90]])]
    # Of the second image; the first one's logits would say otherwise.
    predictions = AnchorPredictions(
        [torch.stack([-x, x]) for x in (first, second)], [torch.zeros(2, *a.shape) for a in anchors], anchors, []
    )
    boxes, scores, anchor = predictions.best_regions(1, (50, 60), limit=3)
    assert boxes.tolist() == [[10, 0, 18, 8], [30, 0, 38, 8], [0, 0, 8, 8], [0, 2, 60, 50]]  # clipped to the image
    assert anchor.tolist() == [1, 3, 0, 4]
    torch.testing.assert_close(scores, torch.cat([first[[1, 3, 0]], second]).sigmoid())
    assert predictions.level(anchor).tolist() == predictions.level(anchor + 5).tolist() == [0, 0, 0, 1]
    assert torch.equal(predictions.all_logits()[5 + anchor].sigmoid(), scores)
    torch.testing.assert_close(predictions.boxes(torch.tensor([1, 5 + 1, 9])), torch.cat(anchors)[[1, 1, 4]])
