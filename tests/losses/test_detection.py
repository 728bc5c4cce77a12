import pytest
import torch
from torchvision.ops import box_convert

from ranksort.losses import rank_sort_loss
from ranksort.losses.detection import (
    DetectionLosses,
    confidence,
    quality_targets,
    rank_sort_detection_losses,
    rank_sort_set_losses,
    self_balanced,
    weighted_mean,
)
from ranksort.losses.localization import giou_loss, paired_iou


def example(examples=30, classes=3, positives=6, seed=0):
    """Logits [A, C], positives and labels [P], overlapping predicted and object boxes [P, 4]."""
    random = torch.Generator().manual_seed(seed)
    logits = torch.randn(examples, classes, generator=random)
    positive = torch.randperm(examples, generator=random)[:positives]
    labels = torch.randint(classes, (positives,), generator=random)
    corner = 100 * torch.rand(positives, 2, generator=random)
    object_boxes = torch.cat([corner, corner + 20], 1)
    boxes = object_boxes + 3 * torch.randn(positives, 4, generator=random)
    return logits.requires_grad_(), positive, labels, boxes.requires_grad_(), object_boxes


def test_targets():
    logits = torch.zeros(4, 3, dtype=torch.float16)
    positive, labels, quality = torch.tensor([2, 0]), torch.tensor([1, 2]), torch.tensor([0.75, 0.5])
    targets = quality_targets(logits, positive, labels, quality, torch.tensor([False, True, False, False]))
    assert targets.dtype == logits.dtype
    assert targets.tolist() == [[0, 0, 0.5], [-1, -1, -1], [0, 0.75, 0], [0, 0, 0]]
    assert quality_targets(logits, positive, labels, quality).tolist()[1] == [0, 0, 0]


def test_confidence_is_the_highest_probability_without_gradient():
    logits = torch.tensor([[-1.0, 2.0, 0.0], [-3.0, -4.0, -5.0]], requires_grad=True)
    weights = confidence(logits)
    assert not weights.requires_grad
    torch.testing.assert_close(weights, torch.tensor([2.0, -3.0]).sigmoid())


def test_weighted_mean():
    assert weighted_mean(torch.tensor([1.0, 4.0]), torch.tensor([0.2, 0.1])).item() == pytest.approx(2)
    losses = torch.zeros(0, requires_grad=True)
    mean = weighted_mean(losses, torch.zeros(0))
    mean.backward()
    assert mean.item() == 0


def test_self_balance_takes_the_value_and_keeps_the_direction():
    x = torch.tensor([1.0, 2.0], requires_grad=True)
    ranking, sorting = torch.tensor(0.3, requires_grad=True), torch.tensor(0.1, requires_grad=True)
    task = (x**2).sum()
    balanced = self_balanced(task, ranking, sorting)
    assert balanced.item() == pytest.approx(0.4)
    balanced.backward()
    torch.testing.assert_close(x.grad, 0.4 / 5 * 2 * x.detach())
    assert ranking.grad is None
    assert sorting.grad is None


@pytest.mark.parametrize(("task", "classification"), [(0.0, 0.5), (0.5, 0.0), (0.0, 0.0)])
def test_self_balance_of_nothing_is_nothing(task, classification):
    task = torch.tensor(task, requires_grad=True)
    balanced = self_balanced(task, torch.tensor(classification), torch.tensor(0.0))
    balanced.backward()
    assert (balanced.item(), task.grad.item()) == (0, 0)


def test_losses_are_composed_of_their_parts():
    logits, positive, labels, boxes, object_boxes = example()
    losses = rank_sort_detection_losses(logits, positive, labels, boxes, object_boxes).losses
    assert list(losses) == ["ranking", "sorting", "box"]

    targets = torch.zeros(30, 3)
    targets[positive, labels] = paired_iou(boxes, object_boxes).detach()
    ranking, sorting = rank_sort_loss(logits, targets)
    assert torch.equal(losses["ranking"], ranking)
    assert torch.equal(losses["sorting"], sorting)
    torch.testing.assert_close(losses["box"], (ranking + sorting).detach())

    ours = torch.autograd.grad(sum(losses.values()), [logits, boxes])
    weights = logits.detach()[positive].sigmoid().amax(1)
    box = (weights * giou_loss(boxes, object_boxes)).sum() / weights.sum()
    box = box * ((ranking + sorting) / box).detach()
    theirs = torch.autograd.grad(ranking + sorting + box, [logits, boxes])
    torch.testing.assert_close(ours, theirs)


def test_classification_and_boxes_are_trained_apart():
    logits, positive, labels, boxes, object_boxes = example()
    losses = rank_sort_detection_losses(logits, positive, labels, boxes, object_boxes).losses
    classification = losses["ranking"] + losses["sorting"]
    assert torch.autograd.grad(classification, boxes, retain_graph=True, allow_unused=True) == (None,)
    assert torch.autograd.grad(losses["box"], logits, allow_unused=True) == (None,)


def test_delta_is_passed_on():
    inputs = example()
    assert (
        rank_sort_detection_losses(*inputs).losses["ranking"]
        != rank_sort_detection_losses(*inputs, delta=0.1).losses["ranking"]
    )


def test_no_positives():
    logits, boxes = torch.randn(5, 3, requires_grad=True), torch.zeros(0, 4, requires_grad=True)
    none = torch.zeros(0, dtype=torch.int64)
    losses = rank_sort_detection_losses(logits, none, none, boxes, torch.zeros(0, 4)).losses
    assert {name: loss.item() for name, loss in losses.items()} == {"ranking": 0, "sorting": 0, "box": 0}
    sum(losses.values()).backward()
    assert not logits.grad.any()
    assert boxes.grad.shape == (0, 4)


def test_a_positive_whose_box_misses_its_object_is_a_negative():
    logits, positive, labels, boxes, object_boxes = example()
    boxes = boxes.detach().clone()
    boxes[0] += 1000
    losses = rank_sort_detection_losses(logits, positive, labels, boxes, object_boxes).losses
    without = rank_sort_detection_losses(logits, positive[1:], labels[1:], boxes[1:], object_boxes[1:]).losses
    assert losses["ranking"] == without["ranking"]
    assert losses["sorting"] == without["sorting"]
    (gradient,) = torch.autograd.grad(losses["ranking"] + losses["sorting"], logits)
    assert gradient[positive[0], labels[0]] >= 0


def test_boxes_which_all_miss_leave_nothing_to_learn():
    logits, positive, labels, boxes, object_boxes = example()
    losses = rank_sort_detection_losses(logits, positive, labels, boxes + 1000, object_boxes).losses
    gradients = torch.autograd.grad(sum(losses.values()), [logits, boxes])
    assert [loss.item() for loss in losses.values()] == [0, 0, 0]
    assert not any(gradient.any() for gradient in gradients)


def test_ignored_examples_get_no_gradient():
    logits, positive, labels, boxes, object_boxes = example()
    ignored = torch.ones(30, dtype=torch.bool)
    ignored[positive] = False
    ignored[:10] = False
    losses = rank_sort_detection_losses(logits, positive, labels, boxes, object_boxes, ignored=ignored).losses
    (gradient,) = torch.autograd.grad(sum(losses.values()), logits)
    assert not gradient[ignored].any()
    assert gradient[~ignored].any(1).all()


def test_half_precision_predictions_are_computed_in_float32():
    logits, positive, labels, boxes, object_boxes = example()
    half, expected = (
        rank_sort_detection_losses(
            logits.half().to(dtype), positive, labels, boxes.half().to(dtype), object_boxes
        ).losses
        for dtype in (torch.float16, torch.float32)
    )
    for name, loss in half.items():
        assert loss.dtype == torch.float32
        assert loss == expected[name]


def test_a_quality_in_place_of_boxes():
    logits, positive, labels, _, _ = example()
    quality = torch.linspace(0.1, 0.9, 6, requires_grad=True)
    found = rank_sort_detection_losses(logits, positive, labels, None, None, quality=quality)
    assert list(found.losses) == ["ranking", "sorting"]
    targets = torch.zeros(30, 3)
    targets[positive, labels] = quality.detach()
    ranking, sorting = rank_sort_loss(logits, targets)
    assert torch.equal(found.losses["ranking"], ranking)
    assert torch.equal(found.losses["sorting"], sorting)
    assert torch.equal(found.quality, quality)
    assert not found.quality.requires_grad
    with pytest.raises(ValueError, match="the quality of the positives is needed if there are no boxes"):
        rank_sort_detection_losses(logits, positive, labels, None, None)


def test_a_quality_besides_boxes_is_the_target():
    logits, positive, labels, boxes, object_boxes = example()
    found = rank_sort_detection_losses(logits, positive, labels, boxes, object_boxes, quality=torch.ones(6))
    assert found.quality.tolist() == [1] * 6
    assert found.losses["sorting"].item() == pytest.approx(0, abs=1e-6)
    torch.testing.assert_close(found.losses["box"], found.classification)


def test_what_is_balanced_to():
    losses = {"box": torch.tensor(9.0), "focal": torch.tensor(0.5), "level": torch.tensor(0.25)}
    found = DetectionLosses(losses, torch.zeros(0))
    assert found.classification.item() == 0.75
    assert self_balanced(torch.tensor(3.0), found.classification).item() == 0.75
    assert self_balanced(torch.tensor(3.0), *losses.values()).item() == 9.75
    assert DetectionLosses({"box": torch.tensor(9.0)}, torch.zeros(0)).classification.item() == 0


def test_quality_of_the_positives():
    logits, positive, labels, boxes, object_boxes = example()
    found = rank_sort_detection_losses(logits, positive, labels, boxes, object_boxes)
    assert torch.equal(found.quality, paired_iou(boxes.detach(), object_boxes))
    assert found.logs()["positives"] == 6
    assert found.logs()["quality"].item() == pytest.approx(found.quality.mean().item())


def queries(seed=0):
    """Logits [2, 5, 3] and boxes [2, 5, 4] of a layer's queries; matches, labels and boxes of one object and two."""
    random = torch.Generator().manual_seed(seed)
    logits = torch.randn(2, 5, 3, generator=random)
    object_boxes = [torch.tensor([[0.1, 0.1, 0.4, 0.5]]), torch.tensor([[0.5, 0.2, 0.9, 0.6], [0.0, 0.0, 0.2, 0.3]])]
    boxes = torch.rand(2, 5, 4, generator=random)
    boxes = torch.cat([boxes[..., :2] / 2, boxes[..., :2] / 2 + boxes[..., 2:] / 2 + 0.05], -1)
    matches = [(torch.tensor([3]), torch.tensor([0])), (torch.tensor([0, 4]), torch.tensor([1, 0]))]
    labels = [torch.tensor([2]), torch.tensor([0, 1])]
    return logits.requires_grad_(), boxes.requires_grad_(), matches, labels, object_boxes


def test_matched_queries_are_the_positives():
    logits, boxes, matches, labels, object_boxes = queries()
    found = rank_sort_set_losses([(logits, boxes, matches)], labels, object_boxes)
    positive, classes = torch.tensor([3, 5, 9]), torch.tensor([2, 1, 0])
    wanted = torch.cat([object_boxes[0], object_boxes[1].flip(0)])
    quality = paired_iou(boxes.detach().view(10, 4)[positive], wanted).clamp(min=0.01)
    predicted = boxes.view(10, 4)[positive]
    alone = rank_sort_set_losses([(logits, boxes, matches)], labels, object_boxes, l1_weight=0)
    expected = rank_sort_detection_losses(logits.view(10, 3), positive, classes, predicted, wanted, quality=quality)
    torch.testing.assert_close(alone, expected.losses)
    centre_and_size = [box_convert(each, "xyxy", "cxcywh") for each in (predicted, wanted)]
    box = 2 * giou_loss(predicted, wanted) + 5 * (centre_and_size[0] - centre_and_size[1]).abs().sum(1)  # DETR's
    both = expected.with_task("box", box)
    gradients = [torch.autograd.grad(losses["box"], boxes, retain_graph=True) for losses in (found, both.losses)]
    torch.testing.assert_close(*gradients)
    sum(found.values()).backward()
    assert boxes.grad.view(10, 4).abs().sum(1).nonzero().flatten().tolist() == positive.tolist()


def test_layers_are_ranked_apart_and_summed():
    (*first, labels, object_boxes), second = queries(), queries(seed=1)[:3]
    alone = [rank_sort_set_losses([layer], labels, object_boxes) for layer in (first, second)]
    both = rank_sort_set_losses(iter([first, second]), labels, object_boxes)
    for name, loss in both.items():
        torch.testing.assert_close(loss, alone[0][name] + alone[1][name])
    with pytest.raises(ValueError, match="one layer"):
        rank_sort_set_losses([], labels, object_boxes)


def test_a_match_that_misses_its_object_is_a_positive_nevertheless():
    logits, _, matches, labels, object_boxes = queries()
    nowhere = torch.tensor([0.95, 0.95, 0.99, 0.99]).expand(2, 5, 4)
    found = rank_sort_set_losses([(logits, nowhere, matches)], labels, object_boxes)
    assert found["ranking"] > 0.1
    assert rank_sort_set_losses([(logits, nowhere, matches)], labels, object_boxes, least_quality=0)["ranking"] == 0


def test_set_losses_of_images_without_objects():
    logits, boxes, *_ = queries()
    nothing = torch.zeros(0, dtype=torch.int64)
    found = rank_sort_set_losses([(logits, boxes, [(nothing, nothing)] * 2)], [nothing] * 2, [torch.zeros(0, 4)] * 2)
    sum(found.values()).backward()
    assert [loss.item() for loss in found.values()] == [0, 0, 0]
    assert not logits.grad.any()
