from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor
from torchvision import tv_tensors

from ranksort.models.images import ImageBatch, ImageTransform, check_input, resized_size

MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)


def _transform(*min_sizes: int, max_size: int = 1333) -> ImageTransform:
    return ImageTransform(min_sizes[-1], max_size, MEAN, STD, min_sizes)


def _normalised(image: Tensor) -> Tensor:
    return (image * 255 - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)


def _target(boxes: list[list[float]], **more: Tensor) -> dict[str, Tensor]:
    return {"boxes": torch.tensor(boxes).reshape(-1, 4), "labels": torch.zeros(len(boxes), dtype=torch.int64), **more}


@pytest.mark.parametrize(
    ("size", "min_size", "max_size", "expected"),
    [
        ((480, 640), 800, 1333, (800, 1067)),  # 1066.67 is rounded up
        ((640, 425), 800, 1333, (1205, 800)),  # 1204.7
        ((427, 640), 800, 1333, (800, 1199)),  # 1199.06 down
        ((400, 1000), 800, 1333, (533, 1333)),  # bound by the long side
        ((5, 1000), 800, 100, (1, 100)),  # never without pixels
        ((30, 20), 30, 45, (45, 30)),
    ],
)
def test_resized_size(size: tuple[int, int], min_size: int, max_size: int, expected: tuple[int, int]) -> None:
    assert resized_size(*size, min_size, max_size) == expected


@given(st.integers(1, 3000), st.integers(1, 3000), st.integers(32, 1200), st.integers(0, 1200))
def test_resized_size_keeps_to_its_bounds(height: int, width: int, min_size: int, more: int) -> None:
    new = resized_size(height, width, min_size, min_size + more)
    assert min(new) <= min_size
    assert max(new) <= min_size + more
    assert min(new) == min_size or max(new) == min_size + more
    assert resized_size(*new, min_size, min_size + more) == new


def test_image_of_the_right_size_is_not_resampled() -> None:
    image = torch.rand(3, 48, 70)
    batch, _ = _transform(48)([image])
    assert batch.sizes == batch.original_sizes
    assert batch.sizes == [(48, 70)]
    torch.testing.assert_close(batch.pixels[0, :, :48, :70], _normalised(image), rtol=1e-5, atol=1e-5)


def test_batch_is_padded_with_zeros_to_a_multiple_of_32() -> None:
    images = [torch.rand(3, 40, 80), torch.rand(3, 70, 40), torch.rand(3, 40, 40)]
    batch, targets = _transform(40)(images)
    assert batch.pixels.shape == (3, 3, 96, 96)
    assert batch.sizes == [(40, 80), (70, 40), (40, 40)]
    assert batch.padded_sizes == [(64, 96), (96, 64), (64, 64)]
    assert targets == []
    for pixels, (height, width), image in zip(batch.pixels, batch.sizes, images, strict=True):
        torch.testing.assert_close(pixels[:, :height, :width], _normalised(image), rtol=1e-5, atol=1e-5)
        assert not pixels[:, height:].any()
        assert not pixels[:, :, width:].any()


def test_uint8_is_the_same_as_float() -> None:
    image = torch.randint(0, 256, (3, 30, 50), dtype=torch.uint8)
    batch, _ = _transform(30)([image])
    expected, _ = _transform(30)([image / 255])
    torch.testing.assert_close(batch.pixels, expected.pixels, rtol=1e-5, atol=1e-5)
    resized, _ = _transform(64)([image])
    expected, _ = _transform(64)([image / 255])
    torch.testing.assert_close(resized.pixels, expected.pixels, rtol=1e-5, atol=1e-5)


def test_resizing_takes_boxes_and_masks_along() -> None:
    mask = torch.zeros(1, 20, 40, dtype=torch.bool)
    mask[0, 4:10, 10:30] = True
    image = torch.zeros(3, 20, 40)
    image[:, mask[0]] = 1
    batch, (target,) = _transform(60)([image], [_target([[10.0, 4, 30, 10]], masks=mask)])
    assert batch.sizes == [(60, 120)]
    assert batch.original_sizes == [(20, 40)]
    assert target["boxes"].tolist() == [[30, 12, 90, 30]]
    assert target["masks"].dtype == torch.bool
    y, x = target["masks"][0].nonzero().T
    assert [x.min().item(), y.min().item(), x.max().item() + 1, y.max().item() + 1] == [30, 12, 90, 30]
    inside = batch.pixels[0, :, 15:27, 33:87]  # away from the edge
    torch.testing.assert_close(inside, _normalised(torch.ones(3, 1, 1)).expand_as(inside), rtol=1e-4, atol=1e-4)


def test_image_without_objects_keeps_its_empty_target() -> None:
    target = _target([], masks=torch.zeros(0, 20, 40, dtype=torch.bool))
    _, (new,) = _transform(32)([torch.rand(3, 20, 40)], [target])
    assert new["boxes"].shape == (0, 4)
    assert new["masks"].shape == (0, 32, 64)


def test_tv_tensors_come_out_plain() -> None:
    target = {
        "boxes": tv_tensors.BoundingBoxes([[1, 2, 3, 4]], format="XYXY", canvas_size=(20, 40)),
        "labels": torch.tensor([0]),
        "masks": tv_tensors.Mask(torch.ones(1, 20, 40, dtype=torch.uint8)),
    }
    batch, (new,) = _transform(40)([tv_tensors.Image(torch.rand(3, 20, 40))], [target])
    assert type(batch.pixels) is type(new["boxes"]) is type(new["masks"]) is Tensor
    assert new["boxes"].tolist() == [[2, 4, 6, 8]]


def test_training_draws_among_the_sizes_and_testing_takes_the_last() -> None:
    transform = _transform(32, 40, 48)
    images = [torch.rand(3, 100, 130)]
    assert {transform.train()(images)[0].sizes[0][0] for _ in range(40)} == {32, 40, 48}
    assert {transform.eval()(images)[0].sizes[0][0] for _ in range(5)} == {48}


def test_training_leaves_an_image_which_has_one_of_the_sizes() -> None:
    image = torch.rand(3, 40, 60)
    transform = _transform(32, 40, 48)
    assert all(transform.train()([image])[0].sizes == [(40, 60)] for _ in range(10))
    assert transform.eval()([image])[0].sizes == [(48, 72)]


@given(st.integers(8, 90), st.integers(8, 90), st.integers(16, 70))
def test_to_original_is_the_inverse(height: int, width: int, min_size: int) -> None:
    boxes = [[0.0, 0, width, height], [1.5, 2.0, 7.0, 6.5]]
    transform = _transform(min_size, max_size=100)
    batch, (target,) = transform([torch.rand(3, height, width)], [_target(boxes)])
    new_height, new_width = batch.sizes[0]
    assert target["boxes"][0].tolist() == pytest.approx([0, 0, new_width, new_height])
    scores = torch.tensor([0.5, 0.4])
    (back,) = transform.to_original([{"boxes": target["boxes"], "scores": scores}], batch)
    torch.testing.assert_close(back["boxes"], torch.tensor(boxes))
    assert back["scores"] is scores


def test_padded_sizes_follow_the_divisor() -> None:
    assert ImageBatch(torch.zeros(1, 3, 64, 64), [(33, 64)], [(33, 64)], divisor=16).padded_sizes == [(48, 64)]


def test_statistics_are_not_part_of_the_weights() -> None:
    assert _transform(32).state_dict() == {}


IMAGE = torch.rand(3, 20, 30)
GOOD = _target([[1.0, 2, 3, 4]])


@pytest.mark.parametrize(
    ("image", "target", "sentence"),
    [
        (torch.rand(20, 30), GOOD, r"image 1 of the batch must be RGB of shape \[3, H, W\], got \(20, 30\)"),
        (torch.rand(1, 20, 30), GOOD, r"image 1 .* got \(1, 20, 30\)"),
        (torch.zeros(3, 20, 30, dtype=torch.int64), GOOD, r"image 1 .* float in 0\.\.1 or uint8, got torch.int64"),
        (
            IMAGE,
            {**GOOD, "boxes": torch.zeros(4)},
            r"target 1 .* boxes \[G, 4\] and labels \[G\], got \(4,\) and \(1,\)",
        ),
        (IMAGE, {**GOOD, "labels": torch.zeros(2, dtype=torch.int64)}, r"target 1 .* got \(1, 4\) and \(2,\)"),
        (IMAGE, {"boxes": torch.zeros(0, 4), "labels": torch.tensor([])}, r"target 1 .* type int64, got torch.float32"),
        (IMAGE, _target([[1.0, 2, 1, 4]]), r"target 1 .* an empty or non-finite box, xyxy \[1.0, 2.0, 1.0, 4.0\]"),
        (IMAGE, _target([[1.0, 2, float("nan"), 4]]), r"target 1 .* an empty or non-finite box"),
        (IMAGE, {**GOOD, "labels": torch.tensor([3])}, r"target 1 .* labels 3\.\.3, but the model has 0\.\.2"),
        (IMAGE, {**GOOD, "labels": torch.tensor([-1])}, r"target 1 .* labels -1\.\.-1"),
    ],
)
def test_what_a_model_cannot_take(image: Tensor, target: dict[str, Tensor], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        check_input([IMAGE, image], [GOOD, target], num_classes=3, training=True)


@pytest.mark.parametrize(
    "images",
    ["photo.jpg", Image.new("RGB", (9, 9)), torch.zeros(1, 3, 9, 9), [], ["photo.jpg"], [Image.new("L", (9, 9))]],
)
def test_what_is_no_list_of_tensors(images: Any) -> None:
    with pytest.raises(ValueError, match=r"tensor \[3, H, W\].*; files, PIL images and arrays are for model.predict"):
        check_input(images, None, num_classes=3, training=False)


@pytest.mark.parametrize("targets", [None, [], [GOOD]])
def test_training_needs_a_target_for_each_image(targets: list[dict[str, Tensor]] | None) -> None:
    with pytest.raises(ValueError, match=r"one target for each image; call model.eval\(\) to predict"):
        check_input([IMAGE, IMAGE], targets, num_classes=3, training=True)


def test_targets_are_not_looked_at_in_evaluation() -> None:
    check_input([IMAGE], None, num_classes=3, training=False)
    check_input([IMAGE], [_target([[1.0, 2, 1, 4]])], num_classes=3, training=False)


def test_squares_without_padding() -> None:
    transform = ImageTransform(55, 55, (0.0, 0, 0), (255.0, 255, 255), keep_ratio=False)
    target = {
        "boxes": torch.tensor([[10.0, 20, 30, 40]]),
        "labels": torch.tensor([0]),
        "masks": torch.ones(1, 110, 220, dtype=torch.bool),
    }
    batch, (new,) = transform([torch.rand(3, 110, 220)], [target])
    assert batch.pixels.shape == (1, 3, 55, 55)
    assert batch.padded_sizes == batch.sizes == [(55, 55)]
    assert new["boxes"].tolist() == [[2.5, 10, 7.5, 20]]
    assert new["masks"].shape == (1, 55, 55)
    (back,) = transform.to_original([{"boxes": new["boxes"]}], batch)
    assert torch.equal(back["boxes"], target["boxes"])
