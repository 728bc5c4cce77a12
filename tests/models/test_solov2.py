"""RS-SOLOv2 end to end, small: ResNet-18, 64 channels, 96 to 160 pixels; and its parts against loops."""

from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from oracles import solov2 as oracle
from samples import batch, fit, losses_and_gradients, peak_bytes, positives, sample
from torch import Tensor

from ranksort.models import SOLOv2
from ranksort.models import masks as masks_module
from ranksort.models.images import ImageBatch
from ranksort.models.masks import boxes_around
from ranksort.models.solov2 import (
    GRIDS,
    LIGHT_RANGES,
    RANGES,
    mask_losses,
    match_cells,
    matrix_nms_decay,
    peaks,
    rate_masks,
    with_coordinates,
)
from ranksort.recipes import create_model


def _model(light: bool = True, **overrides: Any) -> SOLOv2:
    torch.manual_seed(0)
    name = "ranksort_solov2_light_448_r34_fpn_3x" if light else "ranksort_solov2_r101_fpn_3x"
    small = {"backbone": "timm/test_resnet", "channels": 64, "head_convs": 1, "min_size": 96, "max_size": 160}
    model = create_model(name, num_classes=3, **(small | overrides))
    model.transform.train_min_sizes = (96,)
    return model


def test_learns_two_images() -> None:
    # The threshold is low, since ranking leaves the level of the scores open.
    model = _model(backbone="timm/lcnet_035", frozen_stages=-1, score_threshold=0.05)
    images, targets = batch(
        sample(96, 128, [[8, 8, 60, 44, 0], [64, 40, 120, 90, 1]]), sample(128, 96, [[12, 24, 70, 110, 2]])
    )
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    history = fit(model, images, targets, optimizer, steps=60)
    assert history[-1] < history[0] / 2
    with torch.no_grad():
        detections = model.eval()(images)
    for image, d, target in zip(images, detections, targets, strict=True):
        assert d["masks"].dtype == torch.bool
        assert d["masks"].shape == (len(d["scores"]), *image.shape[-2:])
        assert d["boxes"].shape == (len(d["scores"]), 4)
        assert bool((d["scores"].diff() <= 0).all())
        both = (d["masks"][:, None] & target["masks"]).sum((2, 3))
        iou = both / (d["masks"][:, None] | target["masks"]).sum((2, 3))
        iou = torch.where(d["labels"][:, None] == target["labels"], iou, 0.0)
        assert bool((iou.amax(0) > 0.6).all())  # .75 to 1 for four seeds
        assert torch.equal(d["boxes"], boxes_around(d["masks"]))


def test_without_towers() -> None:
    model = _model(head_convs=0)
    images, targets = batch(sample(96, 128, [[8, 8, 60, 44, 0]]))
    losses = model(images, targets)
    sum(losses.values()).backward()
    assert all(bool(p.grad.any()) for p in (model.head.class_logits.weight, model.head.kernels.weight))


@pytest.mark.parametrize("light", [True, False])
def test_losses_are_balanced(light: bool) -> None:
    model = _model(light)
    data = batch(sample(96, 128, [[10, 10, 70, 50, 0], [30, 30, 120, 90, 1]]), sample(96, 96, []))
    losses = losses_and_gradients(model, *data)
    assert list(losses) == ["ranking", "sorting", "mask"]
    torch.testing.assert_close(losses["mask"], losses["ranking"] + losses["sorting"])
    assert positives(model, *data) > 5


def test_object_with_an_empty_mask_has_no_positives() -> None:
    model = _model()
    image, target = sample(64, 80, [[10, 10, 50, 50, 0]])
    without_mask = target | {"masks": torch.zeros_like(target["masks"])}
    data = batch(sample(64, 80, []), (image, without_mask))
    losses = losses_and_gradients(model, *data)
    assert [x.item() for x in losses.values()] == [0, 0, 0]
    assert positives(model, *data) == 0


def test_nothing_is_found() -> None:
    model = _model(score_threshold=0.99).eval()
    with torch.no_grad():
        (found,) = model([torch.rand(3, 70, 90)])
    assert {k: tuple(v.shape) for k, v in found.items()} == {
        "boxes": (0, 4),
        "scores": (0,),
        "labels": (0,),
        "masks": (0, 70, 90),
    }


def test_mixed_precision() -> None:
    model = _model(score_threshold=0.005)
    images, targets = batch(sample(96, 128, [[10, 10, 50, 60, 1]]), sample(96, 96, []))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = losses_and_gradients(model, images, targets)
        with torch.no_grad():
            model.eval()(images)
    assert all(x.dtype == torch.float32 for x in losses.values())


def test_detections_do_not_depend_on_the_batch() -> None:
    """Nor on the size of the others: the grids span the image alone."""
    model = _model(score_threshold=0.1, prior=0.3).eval()
    images, _ = batch(sample(96, 64, [[10, 10, 60, 50, 0]]), sample(40, 96, [[10, 10, 60, 30, 1]]))
    with torch.no_grad():
        together, alone = model(images), [model([image])[0] for image in images]
    for a, b in zip(together, alone, strict=True):
        assert len(a["scores"]) > 5
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-3)


def _objects(count: int, height: int, width: int, seed: int) -> tuple[Tensor, Tensor]:
    """Boxes which may cross the border, and masks somewhere within them; the last may be empty."""
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(count, 2, generator=generator) * torch.tensor([width, height]) - 10
    sides = torch.rand(count, 2, generator=generator) ** 2 * torch.tensor([width, height]) + 3
    boxes = torch.cat([corner, corner + sides], 1)
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    x1, y1, x2, y2 = boxes.T[:, :, None, None]
    inside = (x >= x1) & (x < x2) & (y >= y1) & (y < y2)
    return boxes, inside & (torch.rand(count, height, width, generator=generator) < 0.6)


@settings(max_examples=50, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    count=st.integers(0, 6),
    size=st.sampled_from([(96, 96), (96, 128), (60, 110)]),
    margin=st.sampled_from([0, 32]),
    light=st.booleans(),
)
def test_cells_agree_with_the_paper(seed: int, count: int, size: tuple[int, int], margin: int, light: bool) -> None:
    boxes, masks = _objects(count, *size, seed)
    ranges = LIGHT_RANGES if light else RANGES
    span = (size[0] + margin, size[1])
    expected = oracle.match(boxes.tolist(), masks.tolist(), span, list(ranges), list(GRIDS))
    assume(expected.margin > 1e-4)
    ours = match_cells(boxes, masks, span, ranges)
    assert ours.dtype == torch.int64
    assert ours.tolist() == expected.owner


def test_cell_of_two_objects_goes_to_the_first() -> None:
    box, mask = torch.tensor([[16.0, 16, 80, 80]]), torch.zeros(1, 96, 96, dtype=torch.bool)
    mask[:, 16:80, 16:80] = True
    once, twice = (match_cells(box.repeat(n, 1), mask.repeat(n, 1, 1), (96, 96), RANGES) for n in (1, 2))
    assert torch.equal(twice, once)
    assert int((once >= 0).sum()) > 9  # on several levels


def test_later_objects_take_the_cells_which_are_free() -> None:
    """The second box has the first in its middle: of the cells which both want only those of the first are lost to it."""
    boxes, masks = torch.tensor([[44.0, 44, 52, 52], [8, 8, 88, 88]]), torch.zeros(2, 96, 96, dtype=torch.bool)
    masks[0, 44:52, 44:52] = masks[1, 8:88, 8:88] = True
    inner, outer, both = (match_cells(boxes[i], masks[i], (96, 96), RANGES) for i in ([0], [1], [0, 1]))
    assert torch.equal(both, torch.where(inner >= 0, 0, torch.where(outer >= 0, 1, -1)))
    assert int((both == 1).sum()) > int((outer >= 0).sum()) / 2
    assert bool(((inner >= 0) & (outer >= 0)).any())


@pytest.mark.parametrize("positives", [3, 300])
def test_mask_losses_and_gradients_agree_with_those_of_all_masks_at_once(positives: int) -> None:
    generator = torch.Generator().manual_seed(0)
    objects = torch.rand(5, 4, 3, generator=generator) < 0.3
    objects[4] = False  # an object too small for a cell of the map
    owner = torch.arange(positives) % 5
    features, kernels = (torch.randn(*shape, generator=generator) for shape in ((8, 4, 3), (positives, 8)))
    weights = torch.rand(positives, generator=generator)

    def losses_and_gradients(losses: Any, dtype: torch.dtype) -> list[Tensor]:
        leaves = [features.to(dtype, copy=True), kernels.to(dtype, copy=True)]
        result = losses(*[leaf.requires_grad_() for leaf in leaves])
        (result * weights).sum().backward()
        return [x.float() for x in (result.detach(), *[leaf.grad for leaf in leaves])]

    ours = losses_and_gradients(lambda f, k: mask_losses(f, k, objects, owner), torch.float32)
    theirs = losses_and_gradients(lambda f, k: oracle.mask_losses(f, k, objects[owner]), torch.float64)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_many_positives_take_little_more_memory_than_few() -> None:
    """As of 200 objects; one map for each would be 50 MB, and several are needed for the gradient."""
    generator = torch.Generator().manual_seed(0)
    objects = torch.rand(20, 80, 160, generator=generator) < 0.3
    features = torch.randn(16, 80, 160, generator=generator).requires_grad_()

    def peak(positives: int) -> int:
        kernels = torch.randn(positives, 16, generator=generator).requires_grad_()
        owner = torch.randint(20, (positives,), generator=generator)
        return peak_bytes(lambda: mask_losses(features, kernels, objects, owner).sum().backward())

    assert peak(1000) < 1.2 * peak(128)


def test_matching_takes_a_part_of_the_memory_of_the_masks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ranksort.models.masks._PIXELS_AT_ONCE", 16 * 160 * 320)
    boxes, masks = _objects(200, 160, 320, seed=0)
    assert peak_bytes(lambda: match_cells(boxes, masks, (160, 320), RANGES)) < masks.nbytes / 3


@pytest.mark.parametrize("seed", range(5))
def test_matrix_nms(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    masks = torch.rand(20, 6, 7, generator=generator) < torch.rand(20, 1, 1, generator=generator).clamp(0.1)
    masks[5] = masks[2]
    masks[:, 0, 0] = True
    labels = torch.randint(3, (20,), generator=generator)
    expected = torch.tensor(oracle.matrix_nms([oracle.as_number(mask) for mask in masks], labels.tolist()))
    torch.testing.assert_close(matrix_nms_decay(masks, labels), expected)


@pytest.mark.parametrize(("prior", "pairs"), [(0.5, 3000), (0.04, 30)])
def test_detections_agree_with_the_paper(prior: float, pairs: int) -> None:
    """Of thousands of pairs above the threshold all are rated by their masks, not only those of the best classes' scores."""
    model = _model(prior=prior, score_threshold=0.05).eval()
    torch.nn.init.normal_(model.head.class_logits.weight, std=0.05)  # scores and masks which differ
    torch.nn.init.normal_(model.head.kernels.weight, std=0.1)
    images, _ = batch(sample(96, 128, [[8, 8, 60, 44, 0], [64, 40, 120, 90, 1]]))
    with torch.no_grad():
        given, _ = model.transform(images)
        logits, kernels, (features,) = model.outputs(given.pixels)
        (found,) = model.detect(given)
    scores = torch.cat([peaks(x[0].sigmoid(), grid) for x, grid in zip(logits, GRIDS, strict=True)])
    assert (scores > 0.05).sum() > pairs
    least_area = [stride for stride, grid in zip((8, 8, 16, 32, 32), GRIDS, strict=True) for _ in range(grid**2)]
    kernels = torch.cat(kernels, 1)[0]
    expected = oracle.detect(scores.tolist(), kernels, features, least_area, 0.05)
    assert len(expected) > 10
    torch.testing.assert_close(found["scores"], torch.tensor([f.score for f in expected]))
    assert found["labels"].tolist() == [f.label for f in expected]
    masks = torch.stack([(kernels[f.cell][:, None, None] * features).sum(0).sigmoid() for f in expected])
    torch.testing.assert_close(found["masks"], masks)


def test_rating_many_masks_takes_little_more_memory_than_few() -> None:
    generator = torch.Generator().manual_seed(0)
    features, kernels = torch.randn(16, 80, 160, generator=generator), torch.randn(1500, 16, generator=generator)

    def peak(cells: int) -> int:
        return peak_bytes(lambda: rate_masks(features, kernels[:cells], torch.full((cells,), 8)))

    assert peak(1500) < 1.2 * peak(128)


def test_masks_come_to_the_image_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same masks, in less memory than all of them take at stride 1."""
    model = _model()
    pixels = ImageBatch(torch.zeros(1, 3, 256, 320), [(250, 300)], [(500, 600)])
    soft = torch.rand(40, 64, 80)
    (whole,) = model.to_original([{"masks": soft}], pixels)
    memory = peak_bytes(lambda: model.to_original([{"masks": soft}], pixels))
    monkeypatch.setattr(masks_module, "_PIXELS_AT_ONCE", 2**20)
    (parts,) = model.to_original([{"masks": soft}], pixels)
    assert torch.equal(whole["masks"], parts["masks"])
    assert torch.equal(whole["boxes"], parts["boxes"])
    assert peak_bytes(lambda: model.to_original([{"masks": soft}], pixels)) < memory / 2


def test_matrix_nms_of_nothing() -> None:
    assert matrix_nms_decay(torch.zeros(0, 4, 4, dtype=torch.bool), torch.zeros(0, dtype=torch.long)).shape == (0,)


def test_peaks() -> None:
    """A score stays where none is greater among its cell, the one left, the one above, and the one above left."""
    scores = torch.rand(6 * 6, 4)
    ours = peaks(scores, 6).reshape(6, 6, 4)
    grid = scores.reshape(6, 6, 4)
    for y in range(6):
        for x in range(6):
            rivals = grid[max(y - 1, 0) : y + 1, max(x - 1, 0) : x + 1].flatten(0, 1).amax(0)
            assert torch.equal(ours[y, x], torch.where(grid[y, x] == rivals, grid[y, x], 0.0))


def test_coordinates() -> None:
    x = with_coordinates(torch.zeros(2, 1, 3, 5))
    assert x.shape == (2, 3, 3, 5)
    assert x[1, 1, 2].tolist() == [-1, -0.5, 0, 0.5, 1]
    assert x[1, 2, :, 4].tolist() == [-1, 0, 1]
