import pytest
import torch
from oracles import paa, yolact
from torch import Tensor
from torchvision.ops import box_iou, nms

from ranksort.models.postprocess import (
    fast_non_maximum_suppression,
    moved_apart,
    nms_by_group,
    non_maximum_suppression,
    score_voting,
)


def _suppress(boxes: list[list[float]], scores: list[list[float]], **options: float) -> dict[str, torch.Tensor]:
    settings = {"score_threshold": 0.05, "nms_threshold": 0.5, "detections_per_image": 100, **options}
    return non_maximum_suppression(torch.tensor(boxes), torch.tensor(scores), **settings)


A, NEAR_A, B = [0.0, 0, 10, 10], [0.0, 1, 10, 10], [50.0, 50, 60, 60]


def test_of_one_class_the_best_stays() -> None:
    kept = _suppress([A, NEAR_A, B], [[0.6], [0.9], [0.3]])
    assert kept["boxes"].tolist() == [NEAR_A, B]
    assert kept["labels"].tolist() == [0, 0]
    torch.testing.assert_close(kept["scores"], torch.tensor([0.9, 0.3]))


def test_classes_do_not_suppress_each_other_and_a_box_may_have_several() -> None:
    kept = _suppress([A, NEAR_A], [[0.6, 0.5], [0.1, 0.9]])
    found = {(tuple(b), c) for b, c in zip(kept["boxes"].tolist(), kept["labels"].tolist(), strict=True)}
    assert found == {(tuple(A), 0), (tuple(NEAR_A), 1)}
    assert len(_suppress([A], [[0.6, 0.5]])["labels"]) == 2


def test_a_box_for_each_class() -> None:
    boxes = torch.tensor([[A, B], [NEAR_A, A]])  # of two regions
    options = {"score_threshold": 0.05, "nms_threshold": 0.5, "detections_per_image": 100}
    kept = non_maximum_suppression(boxes, torch.tensor([[0.6, 0.5], [0.9, 0.4]]), **options)
    assert kept["boxes"].tolist() == [NEAR_A, B, A]
    assert kept["labels"].tolist() == [0, 1, 1]


def test_thresholds() -> None:
    assert len(_suppress([A, NEAR_A], [[0.6], [0.5]], nms_threshold=0.89)["scores"]) == 1  # their IoU is 0.9
    assert len(_suppress([A, NEAR_A], [[0.6], [0.5]], nms_threshold=0.91)["scores"]) == 2
    assert len(_suppress([A, B], [[0.5], [0.25]], score_threshold=0.25)["scores"]) == 1  # above, not at


def test_limit_keeps_the_best() -> None:
    boxes = [[20.0 * i, 0, 20 * i + 10, 10] for i in range(6)]
    scores = [0.3, 0.8, 0.1, 0.9, 0.5, 0.2]
    kept = _suppress(boxes, [[s] for s in scores], detections_per_image=3)
    torch.testing.assert_close(kept["scores"], torch.tensor([0.9, 0.8, 0.5]))
    assert kept["boxes"][:, 0].tolist() == [60, 20, 80]


def test_a_crowd_of_the_best_classes_hides_no_other_class() -> None:
    """Of 80,000 pairs above the threshold the best 20,000 are of twenty classes, and one box stays of each."""
    scores = torch.linspace(0.9, 0.5, 80).expand(1000, 80) - 1e-6 * torch.arange(1000)[:, None]
    kept = non_maximum_suppression(
        torch.tensor([A]).expand(1000, 4), scores, score_threshold=0.05, nms_threshold=0.5, detections_per_image=100
    )
    assert kept["labels"].tolist() == list(range(80))


def _one_by_one(
    boxes: Tensor, scores: Tensor, score_threshold: float, nms_threshold: float, detections_per_image: int
) -> tuple[list[float], list[int], Tensor]:
    """Scores, labels and boxes of what is kept of all pairs at once, class by class; of equal scores the first region and class first."""
    kept = []
    for label in range(scores.shape[1]):
        region = (scores[:, label] > score_threshold).nonzero().squeeze(1)
        of_class = boxes[region] if boxes.ndim == 2 else boxes[region, label]
        for i in nms(of_class, scores[region, label], nms_threshold):
            kept.append((-scores[region[i], label].item(), int(region[i]), label, of_class[i]))
    kept = sorted(kept, key=lambda pair: pair[:3])[:detections_per_image]
    return [-k[0] for k in kept], [k[2] for k in kept], torch.stack([k[3] for k in kept])


@pytest.mark.parametrize("levels", [10**6, 40, 1], ids=["few ties", "ties", "all equal"])
@pytest.mark.parametrize("classes", [1, 8, 80])
@pytest.mark.parametrize("spread", [10.0, 60.0, 600.0], ids=["few remain", "some remain", "most remain"])
def test_the_best_pairs_alone_give_what_all_give(levels: int, classes: int, spread: float) -> None:
    """Thousands of pairs above the threshold, with ties at every place where the first tries may end."""
    generator = torch.Generator().manual_seed(classes)
    regions = 10_000 // classes if classes > 1 else 4500
    corner = torch.rand(regions, 2, generator=generator) * spread
    boxes = torch.cat([corner, corner + 20 + torch.rand(regions, 2, generator=generator) * 30], 1)
    scores = 0.05 + 0.9 * (torch.rand(regions, classes, generator=generator) ** 2 * levels).ceil() / levels
    given = {"score_threshold": 0.05, "nms_threshold": 0.5, "detections_per_image": 100}
    for of_pairs in (boxes, boxes[:, None] + torch.arange(classes)[:, None]):
        kept = non_maximum_suppression(of_pairs, scores, **given)
        expected, labels, kept_boxes = _one_by_one(of_pairs, scores, **given)
        assert kept["scores"].tolist() == expected
        assert kept["labels"].tolist() == labels
        assert torch.equal(kept["boxes"], kept_boxes)


def test_few_pairs_are_compared_where_enough_remain() -> None:
    """What 20,000 boxes of which none covers another would need: 200 million comparisons, and seconds."""
    corner = 20.0 * torch.cartesian_prod(torch.arange(200.0), torch.arange(100.0))
    boxes, scores = torch.cat([corner, corner + 10], 1), torch.linspace(0.9, 0.1, 20_000)[:, None]
    given = {"score_threshold": 0.05, "nms_threshold": 0.5, "detections_per_image": 100}
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], record_shapes=True) as recorded:
        kept = non_maximum_suppression(boxes, scores, **given)
    assert torch.equal(kept["boxes"], boxes[:100])
    compared = [event.input_shapes[0][0] for event in recorded.events() if event.name == "torchvision::nms"]
    assert compared
    assert max(compared) <= 1000


def test_nothing_above_the_threshold() -> None:
    kept = _suppress([A], [[0.01, 0.02]])
    assert {k: tuple(v.shape) for k, v in kept.items()} == {"boxes": (0, 4), "scores": (0,), "labels": (0,)}


def _regions(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Boxes which often overlap, [60, 4], and their scores in four classes."""
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(60, 2, generator=generator) * 40
    boxes = torch.cat([corner, corner + 5 + torch.rand(60, 2, generator=generator) * 30], 1)
    return boxes, torch.rand(60, 4, generator=generator) ** 2


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("top_k", [200, 20])
def test_fast_nms(seed: int, top_k: int) -> None:
    boxes, scores = _regions(seed)
    scores[:, 2] *= 0.2  # a class of which nothing is above the threshold
    scores[:, 3] *= 0.25  # and one of which little is
    settings = {"score_threshold": 0.2, "nms_threshold": 0.4, "detections_per_image": 25, "top_k": top_k}
    kept, region = fast_non_maximum_suppression(boxes, scores, **settings)
    expected = yolact.fast_nms(boxes.tolist(), scores.tolist(), *settings.values())
    assert [label for _, label, _ in expected] == kept["labels"].tolist()
    assert [i for _, _, i in expected] == region.tolist()
    torch.testing.assert_close(kept["scores"], torch.tensor([score for score, _, _ in expected]))
    assert torch.equal(kept["boxes"], boxes[region])


def test_fast_nms_with_nothing_above_the_threshold() -> None:
    kept, region = fast_non_maximum_suppression(
        *_regions(0), score_threshold=1.0, nms_threshold=0.5, detections_per_image=9
    )
    assert kept["boxes"].shape == (0, 4)
    assert len(region) == len(kept["labels"]) == 0


@pytest.mark.parametrize("seed", range(5))
def test_score_voting(seed: int) -> None:
    boxes, scores = _regions(seed)
    kept = non_maximum_suppression(boxes, scores, score_threshold=0.1, nms_threshold=0.5, detections_per_image=30)
    voted = score_voting(kept, boxes, scores, score_threshold=0.1)
    expected = [
        paa.vote(box, label, boxes.tolist(), scores.tolist(), threshold=0.1, sigma=0.025)
        for box, label in zip(kept["boxes"].tolist(), kept["labels"].tolist(), strict=True)
    ]
    torch.testing.assert_close(voted["boxes"], torch.tensor(expected))
    assert not torch.equal(voted["boxes"], kept["boxes"])
    assert all(voted[key] is kept[key] for key in ("scores", "labels"))


def test_score_voting_leaves_a_box_without_area() -> None:
    boxes, scores = torch.tensor([[60.0, 3, 60, 9], [0, 0, 10, 10]]), torch.tensor([[0.9], [0.5]])
    kept = non_maximum_suppression(boxes, scores, score_threshold=0.1, nms_threshold=0.5, detections_per_image=30)
    assert torch.equal(score_voting(kept, boxes, scores, score_threshold=0.1)["boxes"], boxes)


@pytest.mark.parametrize("label", [0, 1, 79, 1202])
def test_classes_are_treated_alike(label: int) -> None:
    """In float32, boxes at 4,000 px are rounded to half a pixel where they are moved apart by 1,202 times the size of the image."""
    generator = torch.Generator().manual_seed(0)
    corner = 4000 + 90 * torch.rand(400, 2, generator=generator)
    boxes = torch.cat([corner, corner + 3 + 5 * torch.rand(400, 2, generator=generator)], 1)
    scores, labels = torch.rand(400, generator=generator), torch.full((400,), label)
    expected = nms(boxes, scores, 0.5).tolist()
    assert nms_by_group(boxes, scores, labels, 0.5).tolist() == expected
    other = torch.arange(400) % 2 * 600
    apart = moved_apart(boxes, labels)
    assert torch.equal(box_iou(apart, apart), box_iou(boxes.double(), boxes.double()))
    assert nms(apart, scores.double(), 0.5).tolist() == nms(boxes.double(), scores.double(), 0.5).tolist()
    both = nms_by_group(boxes, scores, other, 0.5).tolist()
    assert both == nms(moved_apart(boxes, other), scores.double(), 0.5).tolist()
    assert len(both) > len(expected)


def test_an_overlap_of_exactly_the_threshold_drops_nothing() -> None:
    half = [0.0, 0, 10, 5]  # IoU .5 with A
    for threshold, number in ((0.5, 2), (0.49, 1)):
        assert len(_suppress([A, half], [[0.9], [0.8]], nms_threshold=threshold)["boxes"]) == number
        boxes, scores = torch.tensor([A, half]), torch.tensor([[0.9], [0.8]])
        settings = {"score_threshold": 0.05, "nms_threshold": threshold, "detections_per_image": 100}
        assert len(fast_non_maximum_suppression(boxes, scores, **settings)[1]) == number


def test_boxes_on_both_sides_of_zero_are_moved_apart() -> None:
    boxes = torch.tensor([[-16.0, -16, 16, 16]] * 3)
    apart = moved_apart(boxes, torch.tensor([0, 1, 2]))
    assert torch.equal(box_iou(apart, apart), torch.eye(3, dtype=torch.float64))
