"""RS-ATSS and RS-PAA end to end, small: ResNet-18, 64 channels, 64 to 128 pixels."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from samples import batch, detections_of, fit, losses_and_gradients, positives, sample, two_images
from torch import Tensor
from torchvision.ops import box_iou
from torchvision.tv_tensors import BoundingBoxes, Image

from ranksort.models import ATSS, PAA
from ranksort.recipes import create_model

Make = Callable[..., ATSS | PAA]


@pytest.fixture(params=["atss", "paa"])
def make(request: pytest.FixtureRequest) -> Make:
    return partial(_model, f"ranksort_{request.param}_r50_fpn_1x_coco")


def _model(recipe: str, **overrides: Any) -> ATSS | PAA:
    torch.manual_seed(0)
    small = {"backbone": "timm/test_resnet", "channels": 64, "head_convs": 1, "min_size": 64, "max_size": 128}
    return create_model(recipe, num_classes=3, **(small | overrides))


def test_learns_two_images(make: Make) -> None:
    model = make(backbone="resnet18", frozen_stages=-1)
    images, targets = batch(
        sample(64, 96, [[8, 8, 44, 40, 0], [52, 22, 84, 58, 1]]), sample(96, 64, [[12, 24, 50, 80, 2]])
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
    history = fit(model, images, targets, optimizer, steps=20)
    assert positives(model, images, targets) > 10
    assert history[0] > 2  # half is the box loss, scaled to the value of the others
    assert sum(history[-3:]) / 3 < 1
    for d, target in zip(detections_of(model, images), targets, strict=True):
        iou = box_iou(target["boxes"], d["boxes"][:5])
        assert bool((iou.amax(1) > 0.5).all())
        assert torch.equal(d["labels"][iou.argmax(1)], target["labels"])


def test_losses_are_balanced(make: Make) -> None:
    losses = losses_and_gradients(make(), *two_images())
    torch.testing.assert_close(losses["box"], losses["ranking"] + losses["sorting"])


def test_image_without_objects_among_others(make: Make) -> None:
    model = make()
    images, targets = batch(sample(64, 80, [[10, 10, 50, 60, 1]]), sample(64, 96, []))
    with_empty = losses_and_gradients(model, images, targets)
    assert positives(model, images, targets) > 0
    assert with_empty["ranking"] > 0
    alone = model(images[:1], targets[:1])
    assert with_empty["ranking"] > alone["ranking"]  # its anchors are negatives


def test_padding_of_the_batch_has_no_part_in_the_ranking(make: Make) -> None:
    """At the start all logits are near one another, so that every anchor which takes part has a gradient."""
    model = make().train()
    images, targets = batch(sample(64, 64, [[10, 10, 50, 60, 1]]), sample(64, 128, []))
    outputs = {}

    def keep(_: Any, __: Any, output: tuple[list[Tensor], list[Tensor]]) -> None:
        outputs["logits"] = output[0]
        for level in output[0]:
            level.retain_grad()

    model.head.register_forward_hook(keep)
    sum(model(images, targets).values()).backward()
    for level, stride in zip(outputs["logits"], (8, 16, 32, 64, 128), strict=True):
        small, large = level.grad.abs().sum(-1).reshape(2, -(-64 // stride), -(-128 // stride), 3) > 0
        assert bool(small[:, : -(-64 // stride)].all())
        assert not small[:, -(-64 // stride) :].any()
        assert bool(large.all())


def test_detections_do_not_depend_on_the_order_of_thebatch(make: Make) -> None:
    model = make(score_threshold=0.005)
    images, _ = two_images()
    forward, backward = detections_of(model, images), detections_of(model, images[::-1])[::-1]
    for a, b in zip(forward, backward, strict=True):
        assert len(a["scores"]) > 5
        torch.testing.assert_close(a, b)


def test_detections_are_in_pixels_of_the_original_image(make: Make) -> None:
    """An image and itself at double size, where the model sees both at one size."""
    model = make(score_threshold=0.005)
    image, _ = sample(64, 96, [[10, 10, 50, 60, 1]])
    (small,) = detections_of(model, [image])
    (large,) = detections_of(model, [image.repeat_interleave(2, 1).repeat_interleave(2, 2)])
    assert len(small["scores"]) > 5
    found = box_iou(small["boxes"] * 2, large["boxes"])[:, : len(small["boxes"])].amax(1)
    assert found[:5].min() > 0.8


def test_thresholds_and_limit_are_those_given(make: Make) -> None:
    images, _ = two_images()
    everything = detections_of(make(score_threshold=0.001, detections_per_image=1000), images)
    assert all(len(d["scores"]) > 20 for d in everything)
    limited = detections_of(make(score_threshold=0.001, detections_per_image=7), images)
    assert [len(d["scores"]) for d in limited] == [7, 7]
    for a, b in zip(everything, limited, strict=True):
        torch.testing.assert_close({k: v[:7] for k, v in a.items()}, b)
    assert [len(d["scores"]) for d in detections_of(make(score_threshold=0.9), images)] == [0, 0]


@pytest.mark.parametrize("objects", [[[10, 10, 50, 60, 1]], []])
def test_mixed_precision(make: Make, objects: list[list[float]]) -> None:
    model = make()
    images, targets = batch(sample(64, 80, objects))
    exact = {k: v.item() for k, v in model(images, targets).items()}
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = losses_and_gradients(model, images, targets)
        detections_of(model, images)
    assert all(x.dtype == torch.float32 for x in losses.values())
    assert {k: v.item() for k, v in losses.items()} == pytest.approx(exact, rel=0.05)


def test_uint8_images_and_tv_tensors(make: Make) -> None:
    model = make(min_size=96)
    images, targets = two_images()
    images = [(x * 255).round().to(torch.uint8) for x in images]
    wrapped = [
        {**t, "boxes": BoundingBoxes(t["boxes"], format="XYXY", canvas_size=tuple(x.shape[-2:]))}
        for x, t in zip(images, targets, strict=True)
    ]
    ours = model([Image(x) for x in images], wrapped)
    torch.testing.assert_close(ours, model([x / 255 for x in images], targets))


def test_targets_are_left_alone(make: Make) -> None:
    images, targets = two_images()
    before = [{k: v.clone() for k, v in t.items()} for t in targets], [x.clone() for x in images]
    make()(images, targets)
    torch.testing.assert_close((targets, images), before, rtol=0, atol=0)


def test_training_without_targets_is_explained(make: Make) -> None:
    images, _ = two_images()
    with pytest.raises(ValueError, match=r"call model.eval\(\) to predict"):
        make()(images)


def test_label_beyond_the_classes_is_explained(make: Make) -> None:
    images, targets = batch(sample(64, 64, [[1, 1, 30, 30, 2]]))
    targets[0]["labels"] += 1
    with pytest.raises(ValueError, match=r"labels 3\.\.3, but the model has 0\.\.2"):
        make()(images, targets)


def test_only_unfrozen_parameters_change(make: Make) -> None:
    model = make(backbone="resnet18", frozen_stages=2)
    losses_and_gradients(model, *two_images())
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert {n.split(".")[2] for n in trained if n.startswith("backbone.")} == {"layer3", "layer4"}
