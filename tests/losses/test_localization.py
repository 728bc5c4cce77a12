import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision import ops

from ranksort.losses.localization import dice_loss, giou_loss, paired_iou


def random_boxes(count, seed=0):
    """Boxes of 1 to 61 pixels in an image of 100, so that some pairs overlap and some do not."""
    random = torch.Generator().manual_seed(seed)
    corner = 100 * torch.rand(count, 2, generator=random, dtype=torch.float64)
    return torch.cat([corner, corner + 1 + 60 * torch.rand(count, 2, generator=random, dtype=torch.float64)], 1)


def test_iou_and_giou_agree_with_torchvision():
    boxes, others = random_boxes(200), random_boxes(200, seed=1)
    iou = ops.box_iou(boxes, others).diagonal()
    assert 0 < (iou == 0).sum() < 200
    torch.testing.assert_close(paired_iou(boxes, others), iou)
    torch.testing.assert_close(giou_loss(boxes, others), 1 - ops.generalized_box_iou(boxes, others).diagonal())


def test_giou_gradient_agrees_with_torchvision():
    boxes, others = random_boxes(50).requires_grad_(), random_boxes(50, seed=1)
    (ours,) = torch.autograd.grad(giou_loss(boxes, others).sum(), boxes)
    (theirs,) = torch.autograd.grad(ops.generalized_box_iou_loss(boxes, others, reduction="sum"), boxes)
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-8)


def test_iou_takes_leading_dimensions():
    boxes, others = random_boxes(12), random_boxes(12, seed=1)
    iou = paired_iou(boxes.view(3, 4, 4), others.view(3, 4, 4))
    assert torch.equal(iou, paired_iou(boxes, others).view(3, 4))


@settings(deadline=None)
@given(
    corner=st.tuples(*[st.floats(-1e4, 1e4, width=32)] * 2),
    size=st.tuples(*[st.floats(0, 1e4, width=32)] * 2),
    shift=st.tuples(*[st.floats(-0.125, 0.125, width=32)] * 4),
)
def test_iou_never_exceeds_1(corner, size, shift):
    # RS Loss refuses targets above 1, so not even rounding may carry a nearly perfect box there.
    box = torch.tensor([[*corner, *corner]]) + torch.tensor([[0, 0, *size]])
    other = box + torch.tensor([shift])
    other = torch.cat([other[:, :2], other[:, 2:].maximum(other[:, :2])], 1)
    assert 0 <= paired_iou(box, other).item() <= 1


DEGENERATE = {
    "point": [10.0, 10.0, 10.0, 10.0],
    "line": [10.0, 10.0, 30.0, 10.0],
    "tiny": [10.0, 10.0, 10.00001, 10.00001],
    "inverted": [30.0, 10.0, 10.0, 40.0],
    "huge": [-1e8, -1e8, 1e8, 1e8],
}


@pytest.mark.parametrize("other", [*DEGENERATE.values(), [0.0, 0.0, 50.0, 50.0]])
@pytest.mark.parametrize("box", DEGENERATE.values(), ids=DEGENERATE)
def test_degenerate_boxes_stay_finite(box, other):
    box, other = torch.tensor([box], requires_grad=True), torch.tensor([other])
    iou, loss = paired_iou(box, other), giou_loss(box, other)
    assert 0 <= iou.item() <= 1
    assert loss.isfinite().all()
    for value in (iou, loss):
        (gradient,) = torch.autograd.grad(value.sum(), box)
        assert gradient.isfinite().all()


def test_boxes_may_be_fractions_of_a_large_image():
    pixels = torch.tensor([[0.0, 0.0, 3.0, 3.0], [1.0, 0.0, 3.0, 3.0]])
    fractions = pixels / 4096
    torch.testing.assert_close(paired_iou(fractions[:1], fractions[1:]), torch.tensor([2 / 3]))
    torch.testing.assert_close(giou_loss(fractions[:1], fractions[1:]), torch.tensor([1 / 3]))


def test_extremes_of_giou():
    boxes = torch.tensor([[0.0, 0.0, 10.0, 10.0]])
    assert giou_loss(boxes, boxes).item() == 0
    # Two unit squares 8 apart in a strip of 10: 1 - 0 + 8 / 10.
    assert giou_loss(
        torch.tensor([[0.0, 0.0, 1.0, 1.0]]), torch.tensor([[9.0, 0.0, 10.0, 1.0]])
    ).item() == pytest.approx(1.8)
    assert giou_loss(boxes, boxes + 1e6).item() == pytest.approx(2)


def test_dice_by_hand():
    probabilities = torch.tensor([[[0.5, 1.0], [0.0, 0.5]], [[1.0, 1.0], [0.0, 0.0]], [[0.3, 0.3], [0.0, 0.0]]])
    masks = torch.tensor([[[1, 1], [0, 0]], [[1, 1], [0, 0]], [[0, 0], [1, 1]]])
    # 1 - 2 · 1.5 / (1.5 + 2); perfect; disjoint.
    expected = torch.tensor([1 - 3 / 3.5, 0.0, 1.0])
    torch.testing.assert_close(dice_loss(probabilities, masks), expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(dice_loss(probabilities, masks.bool()), dice_loss(probabilities, masks))


def test_dice_eps_counts_once_for_both_sums():
    tiny = torch.full((1, 1, 1), 0.1)
    assert dice_loss(tiny, tiny, eps=0.002).item() == pytest.approx(1 - 0.02 / 0.022)
    assert dice_loss(tiny, tiny).item() == pytest.approx(1 - 0.02 / 0.02001, abs=1e-6)


def test_dice_gradient():
    random = torch.Generator().manual_seed(0)
    probabilities = torch.rand(3, 4, 5, generator=random, dtype=torch.float64).requires_grad_()
    masks = torch.rand(3, 4, 5, generator=random) > 0.5
    assert torch.autograd.gradcheck(lambda p: dice_loss(p, masks), probabilities)


def test_dice_of_nearly_perfect_masks_is_not_negative():
    torch.manual_seed(0)
    masks = (torch.rand(200, 97, 101) > 0.5).float()
    loss = dice_loss(masks * (1 - 3e-4 * torch.rand_like(masks)), masks)
    assert loss.min() >= 0
    assert loss.max() < 1e-6


def test_empty_masks_and_no_pairs():
    empty = torch.zeros(1, 4, 4, requires_grad=True)
    loss = dice_loss(empty, torch.zeros(1, 4, 4))
    (gradient,) = torch.autograd.grad(loss.sum(), empty)
    assert loss.item() == 1
    assert gradient.isfinite().all()
    nothing = torch.zeros(0, 4)
    assert paired_iou(nothing, nothing).shape == giou_loss(nothing, nothing).shape == (0,)
    assert dice_loss(torch.zeros(0, 4, 4), torch.zeros(0, 4, 4)).shape == (0,)
