"""RS-YOLACT end to end, small: ResNet-18, 64 channels, 96 x 96 pixels."""

from typing import Any

import pytest
import torch
from oracles import yolact as oracle
from samples import batch, fit, losses_and_gradients, peak_bytes, positives, sample
from torchvision.ops import box_iou

from ranksort.models import YOLACT
from ranksort.models.yolact import assemble_masks, mask_losses
from ranksort.recipes import create_model


def _model(**overrides: Any) -> YOLACT:
    torch.manual_seed(0)
    small = {"backbone": "timm/test_resnet", "channels": 64, "min_size": 96}
    return create_model("ranksort_yolact_r50_55e_coco", num_classes=3, **(small | overrides))


def test_learns_two_images() -> None:
    model = _model(backbone="timm/lcnet_035")
    images, targets = batch(
        sample(96, 96, [[8, 8, 50, 44, 0], [52, 40, 92, 90, 1]]), sample(80, 60, [[10, 14, 46, 70, 2]])
    )
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-4)
    fit(model, images, targets, optimizer, steps=60)
    # Two images are too few for the stored statistics of the batch norms to follow.
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = None
            module.reset_running_stats()
    with torch.no_grad():
        model(images, targets)
        detections = model.eval()(images)
    for image, d, target in zip(images, detections, targets, strict=True):
        assert d["masks"].dtype == torch.bool
        assert d["masks"].shape == (len(d["scores"]), *image.shape[-2:])
        best = box_iou(target["boxes"], d["boxes"][:5]).argmax(1)
        assert torch.equal(d["labels"][best], target["labels"])
        both = (d["masks"][best] & target["masks"]).sum((1, 2))
        assert bool((both / (d["masks"][best] | target["masks"]).sum((1, 2)) > 0.6).all())


def test_losses_are_balanced() -> None:
    losses = losses_and_gradients(_model(), *batch(sample(96, 96, [[10, 10, 60, 50, 0], [30, 30, 90, 90, 1]])))
    assert list(losses) == ["ranking", "sorting", "box", "mask"]
    for task in ("box", "mask"):
        torch.testing.assert_close(losses[task], losses["ranking"] + losses["sorting"])


def test_small_object_inside_many_anchors_has_one_positive() -> None:
    """Its IoU with all anchors of one shape around it is the same."""
    model = _model()
    assert positives(model, *batch(sample(96, 96, [[43, 43, 47, 47, 0]]), sample(96, 96, []))) == 1


def test_mixed_precision() -> None:
    model = _model()
    images, targets = batch(sample(64, 80, [[10, 10, 50, 60, 1]]), sample(64, 80, []))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = losses_and_gradients(model, images, targets)
        with torch.no_grad():
            model.eval()(images)
    assert all(x.dtype == torch.float32 for x in losses.values())


def test_every_positive_takes_part_in_the_mask_loss() -> None:
    """The coefficients have gradients from nothing else."""
    generator = torch.Generator().manual_seed(0)
    corner = (torch.rand(80, 2, generator=generator) * 70).round()
    sides = (torch.rand(80, 2, generator=generator) * 60 + 15).round()
    crowd = torch.cat([corner, corner + sides, torch.randint(3, (80, 1), generator=generator)], 1).tolist()
    images, targets = batch(sample(96, 96, crowd), sample(96, 96, []), sample(96, 96, crowd[:2]))
    model = _model().train()
    kept: list[torch.Tensor] = []

    def keep(_: Any, __: Any, output: tuple[list[torch.Tensor], ...]) -> None:
        for level in output[2]:
            level.retain_grad()
            kept.append(level)

    model.head.register_forward_hook(keep)
    found = model(images, targets, with_quality=True)
    found.losses["mask"].backward()
    with_gradient = torch.cat([level.grad for level in kept], 1).abs().sum(2) > 0
    assert int(with_gradient.sum()) == len(found.quality)
    assert int(with_gradient[0].sum()) > 128


@pytest.mark.parametrize("positives", [3, 300])
def test_mask_losses_and_gradients_agree_with_those_of_all_masks_at_once(positives: int) -> None:
    generator = torch.Generator().manual_seed(0)
    objects = torch.rand(6, 1, 48, 60, generator=generator)
    objects = torch.nn.functional.avg_pool2d(objects, 9, 1, 4)[:, 0] > 0.5
    owner = torch.randint(6, (positives,), generator=generator)
    prototypes, coefficients = (torch.randn(*shape, generator=generator) for shape in ((8, 24, 30), (positives, 8)))
    corner = torch.rand(positives, 2, generator=generator) * 30
    boxes = torch.cat([corner, corner + torch.rand(positives, 2, generator=generator) * 40 + 1], 1)
    weights = torch.rand(positives, generator=generator)
    wanted = torch.nn.functional.interpolate(objects[None].float(), (24, 30), mode="bilinear")[0] > 0.5

    def losses_and_gradients(losses: Any, dtype: torch.dtype) -> list[torch.Tensor]:
        leaves = [prototypes.to(dtype, copy=True), coefficients.to(dtype, copy=True)]
        result = losses(*[leaf.requires_grad_() for leaf in leaves])
        (result * weights).sum().backward()
        return [x.float() for x in (result.detach(), *[leaf.grad for leaf in leaves])]

    ours = losses_and_gradients(lambda p, c: mask_losses(p, c, boxes, owner, objects, (48, 60)), torch.float32)
    theirs = losses_and_gradients(lambda p, c: oracle.mask_losses(p, c, boxes, wanted[owner], (48, 60)), torch.float64)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_many_positives_take_little_more_memory_than_few() -> None:
    """The masks of 1000 at once would be 38 MB, and several such maps are needed for the gradient."""
    generator = torch.Generator().manual_seed(0)
    objects = torch.rand(20, 400, 400, generator=generator) < 0.3
    prototypes = torch.randn(16, 98, 98, generator=generator).requires_grad_()
    box = torch.tensor([[30.0, 40, 300, 390]])

    def peak(positives: int) -> int:
        coefficients = torch.randn(positives, 16, generator=generator).requires_grad_()
        owner = torch.randint(20, (positives,), generator=generator)
        given = prototypes, coefficients, box.expand(positives, 4), owner, objects, (400, 400)
        return peak_bytes(lambda: mask_losses(*given).sum().backward())

    assert peak(1000) < 1.2 * peak(128)


def test_detections_do_not_depend_on_the_batch() -> None:
    model = _model(score_threshold=0.005).eval()
    images, _ = batch(sample(96, 64, [[10, 10, 60, 50, 0]]), sample(50, 96, []))
    with torch.no_grad():
        together, alone = model(images), [model([image])[0] for image in images]
    for a, b in zip(together, alone, strict=True):
        assert len(a["scores"]) > 5
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-3)


def test_masks_are_asked_for() -> None:
    image, target = sample(64, 64, [[5, 5, 40, 40, 0]])
    with pytest.raises(
        ValueError, match="target 0 of the batch needs boxes and labels and masks, it has boxes, labels"
    ):
        _model()([image], [{k: target[k] for k in ("boxes", "labels")}])
    with pytest.raises(
        ValueError, match=r"masks \[G, H, W\] of the size of its image, \(1, 64, 64\), got \(1, 32, 64\)"
    ):
        _model()([image], [target | {"masks": target["masks"][:, :32]}])


@pytest.mark.parametrize("size", [(60, 90), (41, 33)])
def test_assemble_masks(size: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(0)
    prototypes = torch.randn(4, 11, 17, generator=generator)
    coefficients = torch.randn(3, 4, generator=generator)
    boxes = torch.tensor([[0.0, 0, size[1], size[0]], [7.3, 11.2, 20.1, 30.9], [-5, -9, 12, 8]])
    expected = [
        oracle.mask(prototypes.tolist(), c, b, size) for c, b in zip(coefficients.tolist(), boxes.tolist(), strict=True)
    ]
    torch.testing.assert_close(assemble_masks(prototypes, coefficients, boxes, size), torch.tensor(expected))
