"""RS-Faster, Cascade and Mask R-CNN end to end, small: ResNet-18, 64 channels, 64 to 128 pixels."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from samples import Batch, batch, detections_of, fit, losses_and_gradients, positives, sample, two_images
from torch import Tensor
from torchvision.ops import box_iou, masks_to_boxes

from ranksort.models import CascadeRCNN, FasterRCNN, MaskRCNN, mask_rcnn
from ranksort.recipes import create_model

RCNN = FasterRCNN | CascadeRCNN | MaskRCNN
Make = Callable[..., RCNN]
RPN_LOSSES = ["rpn_ranking", "rpn_sorting", "rpn_box"]
BOX_LOSSES = ["ranking", "sorting", "box"]
LOSSES = {
    FasterRCNN: RPN_LOSSES + BOX_LOSSES,
    CascadeRCNN: RPN_LOSSES + [f"stage{stage}_{name}" for stage in range(3) for name in BOX_LOSSES],
    MaskRCNN: [*RPN_LOSSES, *BOX_LOSSES, "mask"],
}


def _model(recipe: str, **overrides: Any) -> RCNN:
    torch.manual_seed(0)
    small = {"backbone": "timm/test_resnet", "channels": 64, "min_size": 64, "max_size": 128, "score_threshold": 0.009}
    model = create_model(recipe, num_classes=3, **(small | overrides))
    model.rpn.limit = 100  # proposals, for the sake of time
    return model


@pytest.fixture(params=["faster", "cascade", "mask"])
def make(request: pytest.FixtureRequest) -> Make:
    return partial(_model, f"ranksort_{request.param}_rcnn_r50_fpn_1x_coco")


make_mask_rcnn = partial(_model, "ranksort_mask_rcnn_r50_fpn_1x_coco")


def _two_small_images() -> Batch:
    return batch(sample(64, 96, [[8, 8, 44, 40, 0], [52, 22, 84, 58, 1]]), sample(96, 64, [[12, 24, 50, 80, 2]]))


def test_learns_two_images() -> None:
    model = make_mask_rcnn(backbone="resnet18", frozen_stages=-1, train_batch_norm=True, score_threshold=0.02)
    images, targets = _two_small_images()
    history = fit(model, images, targets, torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9), steps=40)
    assert sum(history[-3:]) / 3 < history[0] / 3
    for d, target in zip(detections_of(model, images), targets, strict=True):
        iou, best = box_iou(target["boxes"], d["boxes"][:5]).max(1)
        assert bool((iou > 0.5).all())
        assert torch.equal(d["labels"][best], target["labels"])
        masks = d["masks"][best]
        assert bool(((masks & target["masks"]).sum((1, 2)) > 0.4 * (masks | target["masks"]).sum((1, 2))).all())


def test_cascade_learns() -> None:
    model = _model(
        "ranksort_cascade_rcnn_r50_fpn_1x_coco", backbone="resnet18", frozen_stages=-1, train_batch_norm=True
    )
    images, targets = _two_small_images()
    history = fit(model, images, targets, torch.optim.SGD(model.parameters(), lr=0.005, momentum=0.9), steps=15)
    assert sum(history[-3:]) / 3 < history[0] / 2
    # A head whose boxes have all left their objects has no positives, and so no loss: that would not be learning.
    assert all(value > 0 for name, value in model(images, targets).items() if name.endswith("box"))


def test_losses_are_balanced(make: Make) -> None:
    model = make()
    losses = losses_and_gradients(model, *two_images())
    assert list(losses) == LOSSES[type(model)]
    for name, value in losses.items():
        if name.endswith(("box", "mask")):
            prefix = name.rpartition("_")[0]
            prefix = prefix and f"{prefix}_"
            torch.testing.assert_close(value, losses[f"{prefix}ranking"] + losses[f"{prefix}sorting"])


def test_losses_of_the_rpn_count_a_fifth(make: Make) -> None:
    """At the start all logits are near one another: every ranking error is near 1, and near .2 in the RPN."""
    losses = losses_and_gradients(make(), *two_images())
    assert 0.15 < losses["rpn_ranking"] <= 0.2
    assert all(value > 0.8 for name, value in losses.items() if name.endswith("ranking") and "rpn" not in name)


def test_image_without_objects_among_others(make: Make) -> None:
    model = make()
    images, targets = batch(sample(64, 80, [[10, 10, 50, 60, 1]]), sample(64, 96, []))
    losses = losses_and_gradients(model, images, targets)
    assert positives(model, images, targets) > 0
    assert all(value > 0 for name, value in losses.items() if name.endswith(("ranking", "box", "mask")))


@pytest.mark.parametrize("count", [1, 2])
def test_batch_without_any_object(make: Make, count: int) -> None:
    model = make()
    data = batch(*[sample(64, 80, [])] * count)
    losses = losses_and_gradients(model, *data)
    assert all(value == 0 for value in losses.values())
    assert positives(model, *data) == 0
    assert all(p.grad is None or not p.grad.any() for p in model.parameters())


@pytest.mark.parametrize("objects", [[[10, 10, 50, 60, 1]], []])
def test_no_proposals(make: Make, monkeypatch: pytest.MonkeyPatch, objects: list[list[float]]) -> None:
    """In training there are then the objects alone; in evaluation there is nothing to look at."""
    model = make()
    monkeypatch.setattr(model.rpn, "proposals", lambda output, sizes: [torch.zeros(0, 4) for _ in sizes])
    images, targets = batch(sample(64, 80, objects), sample(64, 64, []))
    losses_and_gradients(model, images, targets)
    assert positives(model, images, targets) == len(objects)
    assert all(len(d["scores"]) == 0 for d in detections_of(model, images))


@pytest.mark.parametrize(
    "objects",
    [
        [[0, 0, 80, 64, 0], [0, 0, 79, 63, 1]],  # the whole image, twice
        [[0, 40, 9, 64, 0], [76, 0, 80, 64, 1]],  # cut by the border
        [[30, 20, 31, 21, 2], [0, 0, 1, 64, 0]],  # a pixel, and a line
        [[10, 10, 40, 40, 1], [10, 10, 40, 40, 1], [10, 10, 40, 40, 2]],  # one box, three objects
    ],
)
def test_hard_objects(make: Make, objects: list[list[float]]) -> None:
    model = make()
    data = batch(sample(64, 80, objects))
    losses_and_gradients(model, *data)
    assert positives(model, *data) >= len(objects)


def test_predictions_which_have_all_left_their_objects(make: Make) -> None:
    """Of positives whose boxes have IoU 0 none is ranked, and later stages of a cascade start from boxes without area."""
    model = make()
    for head in model.box_head if isinstance(model, CascadeRCNN) else [model.box_head]:
        with torch.no_grad():
            head.box_deltas.bias[0::4] = 1000.0  # a hundred widths to the right
    images, targets = batch(sample(64, 80, [[10, 10, 50, 60, 1]]))
    losses = losses_and_gradients(model, images, targets)
    assert all(value == 0 for name, value in losses.items() if "rpn" not in name)
    assert positives(model, images, targets) > 0
    detections_of(model, images)


def test_batch_of_very_different_sizes(make: Make) -> None:
    model = make()
    images, targets = batch(
        sample(20, 200, [[5, 2, 60, 18, 0]]), sample(300, 30, [[2, 40, 28, 200, 1]]), sample(7, 7, [[1, 1, 6, 6, 2]])
    )
    losses_and_gradients(model, images, targets)
    detections_of(model, images)


def test_detections_do_not_depend_on_the_order_of_the_batch(make: Make) -> None:
    model = make()
    images, _ = two_images()
    forward, backward = detections_of(model, images), detections_of(model, images[::-1])[::-1]
    for a, b in zip(forward, backward, strict=True):
        assert len(a["scores"]) > 5
        torch.testing.assert_close(a["boxes"], b["boxes"], rtol=1e-4, atol=1e-3)
        assert torch.equal(a["labels"], b["labels"])


@pytest.mark.parametrize("variant", [{}, {"backbone": "resnet18", "upsampling": "carafe", "deformable_convs": True}])
@pytest.mark.parametrize("objects", [[[10, 10, 50, 60, 1]], []])
def test_mixed_precision(make: Make, objects: list[list[float]], variant: dict[str, Any]) -> None:
    model = make(**variant)
    images, targets = batch(sample(64, 80, objects))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = losses_and_gradients(model, images, targets)
        detections_of(model, images)
    assert all(x.dtype == torch.float32 for x in losses.values())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_weights_of_other_precision(make: Make, dtype: torch.dtype) -> None:
    """Not by autocast: the whole model is converted. Boxes and losses are in float32 nevertheless."""
    model = make().to(dtype)
    images, targets = _two_small_images()
    assert all(len(d["scores"]) > 0 and d["boxes"].dtype == torch.float32 for d in detections_of(model, images))
    losses = losses_and_gradients(model, images, targets)
    assert all(loss.dtype == torch.float32 for loss in losses.values())


def test_masks_come_in_pixels_of_the_original_image() -> None:
    model = make_mask_rcnn().eval()
    image_batch, _ = model.transform([torch.rand(3, 32, 48)])
    assert image_batch.sizes == [(64, 96)]
    found = {"boxes": torch.tensor([[20.0, 10, 60, 30], [90, 60, 96, 64]]), "masks": torch.ones(2, 28, 28)}
    (d,) = model.to_original([found], image_batch)
    assert d["masks"].shape == (2, 32, 48)
    assert masks_to_boxes(d["masks"]).tolist() == [[10, 5, 29, 14], [45, 30, 47, 31]]  # the last pixels, not the ends
    assert d["masks"].sum((1, 2)).tolist() == [200, 6]


def test_masks_stay_inside_their_boxes() -> None:
    (d,) = detections_of(make_mask_rcnn(), [sample(64, 96, [[10, 10, 50, 60, 1]])[0]])
    seen = d["masks"].any((1, 2))
    assert int(seen.sum()) > 3
    extent, boxes = masks_to_boxes(d["masks"][seen]), d["boxes"][seen]
    assert bool((extent[:, :2] >= boxes[:, :2] - 1).all())
    assert bool((extent[:, 2:] <= boxes[:, 2:]).all())


def test_of_many_positives_some_go_to_the_mask_head(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mask_rcnn, "MOST_MASKS", 3)
    model = make_mask_rcnn()
    seen: list[Tensor] = []
    model.mask_head.register_forward_pre_hook(lambda _, inputs: seen.append(torch.cat(inputs[1])))
    images, targets = two_images()
    for _ in range(2):
        losses_and_gradients(model, images, targets)
    assert [len(boxes) for boxes in seen] == [3, 3]
    assert not torch.equal(*seen)
    assert positives(model, images, targets) > 6
    # Losses on validation images are not random.
    model.eval()
    batch_and_targets = model.transform(images, targets)
    with torch.no_grad():
        for _ in range(2):
            model.losses(*batch_and_targets)
    assert len(seen[-1]) == 3
    assert torch.equal(seen[-2], seen[-1])


def test_mask_loss_reaches_the_mask_head_alone_with_what_it_is_for() -> None:
    """Better masks, lower Dice loss, before balancing; boxes and ranking do not see it."""
    model = make_mask_rcnn()
    images, targets = two_images()
    losses = model.train()(images, targets)
    losses["mask"].backward()
    assert model.mask_head.logits.weight.grad.any()
    assert model.box_head.class_logits.weight.grad is None
    assert model.rpn.objectness.weight.grad is None


@pytest.mark.parametrize("shape", [None, (1, 60, 80), (2, 64, 80)])
def test_masks_which_do_not_fit_are_explained(shape: tuple[int, ...] | None) -> None:
    images, targets = batch(sample(64, 80, [[10, 10, 50, 60, 1]]))
    del targets[0]["masks"]
    if shape:
        targets[0]["masks"] = torch.zeros(shape, dtype=torch.bool)
    with pytest.raises(ValueError, match=r"target 0 of the batch needs .*masks"):
        make_mask_rcnn()(images, targets)


def test_uint8_masks_are_the_same() -> None:
    model = make_mask_rcnn()
    images, targets = two_images()
    expected = model(images, targets)
    torch.testing.assert_close(model(images, [{**t, "masks": t["masks"].to(torch.uint8)} for t in targets]), expected)
