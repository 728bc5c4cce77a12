"""RS-YOLACT end to end, small: ResNet-18, 64 channels, 96 x 96 pixels."""

from typing import Any

import pytest
import torch
from oracles import yolact as oracle
from samples import batch, fit, losses_and_gradients, sample
from torchvision.ops import box_iou

from ranksort.models import YOLACT, yolact
from ranksort.models.yolact import assemble_masks
from ranksort.recipes import create_model


def _model(**overrides: Any) -> YOLACT:
    torch.manual_seed(0)
    small = {"backbone": "resnet18", "channels": 64, "min_size": 96}
    return create_model("ranksort_yolact_r50_55e_coco", num_classes=3, **(small | overrides))


def test_learns_two_images() -> None:
    model = _model()
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
    losses_and_gradients(model, *batch(sample(96, 96, [[43, 43, 47, 47, 0]]), sample(96, 96, [])))
    assert model.num_positives == 1


def test_mixed_precision() -> None:
    model = _model()
    images, targets = batch(sample(64, 80, [[10, 10, 50, 60, 1]]), sample(64, 80, []))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = losses_and_gradients(model, images, targets)
        with torch.no_grad():
            model.eval()(images)
    assert all(x.dtype == torch.float32 for x in losses.values())


def test_of_more_masks_than_the_limit_some_are_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """The more are drawn, the nearer is their mean loss to that of all."""
    images, targets = batch(sample(96, 96, [[5, 5, 50, 44, 0], [40, 40, 92, 90, 1]]))
    model, means = _model(), {}
    before = {k: v.clone() for k, v in model.state_dict().items()}
    drawn: list[int] = []
    monkeypatch.setattr(yolact, "self_balanced", lambda task, *_: task)
    monkeypatch.setattr(yolact, "assemble_masks", lambda *a: drawn.append(len(a[1])) or assemble_masks(*a))
    for limit in (1000, 3):
        monkeypatch.setattr(yolact, "MASKS_PER_IMAGE", limit)
        model.load_state_dict(before)
        means[limit] = [model(images, targets)["mask"].item() for _ in range(10)]
    assert drawn == [model.num_positives] * 10 + [3] * 10
    assert model.num_positives > 3
    assert means[1000] == pytest.approx([means[1000][0]] * 10)
    assert len(set(means[3])) > 5
    assert sum(means[3]) / 10 == pytest.approx(means[1000][0], rel=0.2)


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
