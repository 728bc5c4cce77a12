import numpy as np
import pytest
import torch
from samples import peak_bytes
from torch import Tensor
from torchvision.ops import roi_align

from ranksort.models import masks as masks_module
from ranksort.models.roi_heads import (
    BoxHead,
    MaskHead,
    mask_targets,
    match_regions,
    pool_regions,
)


def _features(channels: int = 3, size: int = 256) -> list[Tensor]:
    """P2..P6 of two images."""
    return [torch.randn(2, channels, size // stride, size // stride) for stride in (4, 8, 16, 32, 64)]


def _target(boxes: list[list[float]]) -> dict[str, Tensor]:
    return {"boxes": torch.tensor(boxes).reshape(-1, 4), "labels": torch.arange(len(boxes))}


def test_each_region_comes_from_the_level_of_its_size() -> None:
    """Sides up to 112 from P2, up to 224 from P3, and so on; the others have no part in it."""
    features = _features()
    sides = [1.0, 56, 111.9, 112, 150, 223.9, 224, 447.9, 448, 2000]
    levels = [0, 0, 0, 1, 1, 1, 2, 2, 3, 3]
    boxes = torch.tensor([[0, 0, side, side] for side in sides])
    pooled = pool_regions(features, [boxes[:0], boxes], 7)  # all of the second image
    for i, level in enumerate(levels):
        roi = torch.tensor([[1.0, 0, 0, sides[i], sides[i]]])
        expected = roi_align(features[level], roi, 7, 1 / (4, 8, 16, 32)[level], aligned=True)
        torch.testing.assert_close(pooled[i], expected[0])


def test_pooled_values_are_those_at_the_place() -> None:
    """On a map which holds the x of its cells' centres."""
    x = (torch.arange(64) + 0.5) * 4
    features = [x.expand(1, 1, 64, 64), *(f[:1, :1] for f in _features()[1:])]
    pooled = pool_regions(features, [torch.tensor([[16.0, 40, 86, 110]])], 7)
    torch.testing.assert_close(pooled[0, 0, 3], torch.arange(7) * 10 + 21.0)


def test_regions_without_area_and_no_regions() -> None:
    pooled = pool_regions(_features(), [torch.tensor([[9.0, 9, 9, 9], [0, 5, 100, 5]])], 7)
    assert bool(pooled.isfinite().all())
    features = [f.requires_grad_() for f in _features()]
    none = pool_regions(features, [torch.zeros(0, 4)] * 2, 7)
    assert none.shape == (0, 3, 7, 7)
    none.sum().backward()
    assert not features[0].grad.any()


def test_objects_are_regions_of_their_own() -> None:
    targets = [_target([[0, 0, 10, 10], [20, 20, 40, 40]]), _target([])]
    proposals = [torch.tensor([[0.0, 0, 10, 6], [0, 0, 10, 4]]), torch.tensor([[1.0, 1, 5, 5]])]
    regions, matched = match_regions(proposals, targets)
    assert [len(r) for r in regions] == [4, 1]
    assert torch.equal(regions[0], torch.cat([targets[0]["boxes"], proposals[0]]))
    assert matched.positive.tolist() == [0, 1, 2]
    assert matched.object.tolist() == [0, 1, 0]
    assert not matched.ignored.any()
    assert match_regions(proposals, targets, iou_threshold=0.7)[1].positive.tolist() == [0, 1]


def test_equal_objects_are_regions_of_their_own_each() -> None:
    _, matched = match_regions([torch.zeros(0, 4)], [_target([[0, 0, 10, 10], [0, 0, 10, 10]])])
    assert matched.labels.tolist() == [0, 1]


@pytest.mark.parametrize("class_agnostic", [False, True])
def test_box_head(class_agnostic: bool) -> None:
    """Each positive's box is that of its own class."""
    head = BoxHead(3, 5, class_agnostic=class_agnostic, hidden=8)
    proposals = [torch.tensor([[10.0, 10, 60, 40], [0, 0, 30, 30]]), torch.tensor([[5.0, 5, 100, 120]])]
    targets = [_target([[8, 12, 55, 44]]), _target([])]
    regions, matched = match_regions(proposals, targets)
    logits, deltas = head(_features(), regions)
    assert logits.shape == (4, 5)
    assert deltas.shape == (4, 1 if class_agnostic else 5, 4)
    assert logits.sigmoid().mean().item() == pytest.approx(0.01, rel=0.3)
    deltas.retain_grad()
    boxes = head.boxes(deltas, regions, [(50, 60), (256, 256)])
    assert [tuple(b.shape[:2]) for b in boxes] == [(3, deltas.shape[1]), (1, deltas.shape[1])]
    assert bool((boxes[0].amax((0, 1)) <= torch.tensor([60, 50, 60, 50])).all())
    found = head.losses(logits, deltas[matched.positive], regions, matched)
    found.losses["box"].backward()
    touched = deltas.grad.abs().sum(-1) > 0
    assert touched.nonzero().tolist() == [[0, 0], [1, 0]]


def test_boxes_of_some_regions_are_those_among_all() -> None:
    head, features = BoxHead(3, 5, hidden=8), _features()
    regions = [torch.tensor([[10.0, 10, 60, 40], [0, 0, 30, 30]]), torch.tensor([[5.0, 5, 100, 120]])]
    logits, deltas = head(features, regions)
    chosen = torch.tensor([2, 0])
    same_logits, of_chosen = head(features, regions, chosen)
    assert torch.equal(same_logits, logits)
    torch.testing.assert_close(of_chosen, deltas[chosen])
    assert head(features, regions, chosen[:0])[1].shape == (0, 5, 4)


def test_training_with_the_classes_of_lvis_takes_a_few_times_the_memory_of_the_logits() -> None:
    """4,000 regions are a batch of four images; the box deltas of all of them would be four times the logits, and their gradient again."""
    torch.manual_seed(0)
    num_classes, num_objects, side = 1203, 40, 30.0
    head = BoxHead(1, num_classes, hidden=8)
    corner = torch.rand(num_objects, 2) * 200
    objects = torch.cat([corner, corner + side], 1)
    proposals = [objects.repeat(100 - 1, 1) + torch.randn(99 * num_objects, 2).repeat(1, 2) * 12]
    targets = [{"boxes": objects, "labels": torch.randint(num_classes, (num_objects,))}]
    regions, matched = match_regions(proposals, targets)
    assert 200 < len(matched.positive) < 2000
    features = [f[:1, :1] for f in _features()]
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as recorded:
        logits, deltas = head(features, regions, matched.positive)
        sum(head.losses(logits, deltas, regions, matched).losses.values()).backward()
    assert logits.shape == (4000, num_classes)
    assert recorded.profiler is not None
    events = sorted(recorded.profiler.kineto_results.events(), key=lambda event: event.start_ns())
    allocated = np.cumsum([event.nbytes() for event in events if event.name() == "[memory]"])
    # The logits, their targets, a bin for each logit and their gradient; and boxes of those which are positive.
    assert 2 < allocated.max() / (4 * logits.numel()) < 7


def test_mask_head_gives_the_mask_of_the_class() -> None:
    head = MaskHead(3, 4)
    regions = [torch.tensor([[10.0, 10, 60, 40]]), torch.tensor([[0.0, 0, 30, 30]])]
    features = _features()
    masks = [head(features, regions, torch.tensor([a, b])) for a, b in ((0, 3), (0, 1), (2, 3))]
    assert masks[0].shape == (2, 28, 28)
    torch.testing.assert_close(masks[0][0], masks[1][0])
    torch.testing.assert_close(masks[0][1], masks[2][1])
    assert not torch.equal(masks[0][1], masks[1][1])
    assert head(features, [torch.zeros(0, 4)] * 2, torch.zeros(0, dtype=torch.int64)).shape == (0, 28, 28)


def test_mask_targets() -> None:
    """A region of 28x28 pixels sees the mask as it is; one twice as large every other pixel's mean; one outside nothing."""
    masks = [torch.rand(2, 80, 90) > 0.5, torch.rand(1, 60, 70) > 0.5]
    boxes = torch.tensor([[10.0, 5, 38, 33], [20, 20, 76, 76], [200, 200, 210, 210], [0, 10, 28, 38]])
    targets = mask_targets(masks, boxes.split([3, 1]), torch.tensor([1, 0, 0, 0]))
    assert targets.shape == (4, 28, 28)
    assert torch.equal(targets[0], masks[0][1, 5:33, 10:38].float())
    mean = masks[0][0, 20:76, 20:76].float().unflatten(1, (28, 2)).unflatten(0, (28, 2)).mean((1, 3))
    assert torch.equal(targets[1], (mean >= 0.5).float())
    assert not targets[2].any()
    assert torch.equal(targets[3], masks[1][0, 10:38, :28].float())


@pytest.mark.parametrize("masks_in_memory", [1, 3, 40, 100])
def test_mask_targets_in_parts_are_those_of_all_at_once(masks_in_memory: int, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    masks = [torch.rand(number, 50, 60) < 0.5 for number in (40, 0, 7)]
    corner = torch.rand(90, 2) * 40
    boxes = torch.cat([corner, corner + 1 + 30 * torch.rand(90, 2)], 1)
    objects = torch.cat([torch.randint(0, 40, (70,)), torch.randint(0, 7, (20,))])
    expected = [
        roi_align(m[:, None].float(), torch.cat([index[:, None], b], 1), 28, aligned=True)[:, 0] >= 0.5
        for m, b, index in ((masks[0], boxes[:70], objects[:70]), (masks[2], boxes[70:], objects[70:]))
    ]
    monkeypatch.setattr(masks_module, "_PIXELS_AT_ONCE", masks_in_memory * 50 * 60)
    targets = mask_targets([m.to(torch.uint8) for m in masks], boxes.split([70, 0, 20]), objects)
    assert torch.equal(targets, torch.cat(expected).float())


def test_mask_targets_take_memory_for_a_part_of_the_masks(monkeypatch: pytest.MonkeyPatch) -> None:
    """As floats the masks of 230 objects at 800 x 1333 pixels would be 1 GB."""
    monkeypatch.setattr(masks_module, "_PIXELS_AT_ONCE", 8 * 256 * 256)
    masks = torch.rand(100, 256, 256) < 0.5
    boxes = torch.tensor([[10.0, 10, 80, 90]]).repeat(100, 1)
    assert peak_bytes(lambda: mask_targets([masks], [boxes], torch.arange(100))) < masks.nbytes
