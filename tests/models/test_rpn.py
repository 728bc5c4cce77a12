import pytest
import torch
from torch import Tensor
from torchvision.ops import box_iou

from ranksort.models.anchors import AnchorPredictions
from ranksort.models.images import ImageBatch
from ranksort.models.rpn import RPN

SIZES = [(96, 128), (128, 70)]
STRIDES = (4, 8, 16, 32, 64)


def _rpn(**options: bool) -> tuple[RPN, AnchorPredictions, ImageBatch]:
    """A fresh RPN, and what it says to two images of a batch of 128x128."""
    torch.manual_seed(0)
    rpn = RPN(8, **options)
    output = rpn([torch.randn(2, 8, 128 // stride, 128 // stride) for stride in STRIDES])
    for level in output.logits:
        level.retain_grad()
    return rpn, output, ImageBatch(torch.zeros(2, 3, 128, 128), SIZES, SIZES)


def _targets(*boxes: list[list[float]]) -> list[dict[str, Tensor]]:
    """Labels have no part in it."""
    return [{"boxes": torch.tensor(b).reshape(-1, 4), "labels": torch.full((len(b),), 7)} for b in boxes]


def _takes_part(rpn: RPN, output: AnchorPredictions, batch: ImageBatch) -> Tensor:
    """Which anchors of each image have a gradient: at the start all logits are near one another."""
    sum(rpn.losses(output, batch, _targets([[30.0, 30, 70, 70]], [])).values()).backward()
    return torch.cat([level.grad[..., 0] != 0 for level in output.logits], 1)


def test_shapes() -> None:
    _, output, _ = _rpn()
    counts = [3 * (128 // stride) ** 2 for stride in STRIDES]
    assert [tuple(x.shape) for x in output.logits] == [(2, n, 1) for n in counts]
    assert [tuple(x.shape) for x in output.deltas] == [(2, n, 4) for n in counts]
    assert [tuple(x.shape) for x in output.anchors] == [(n, 4) for n in counts]
    first = output.anchors[1][:3]  # stride 8, so 64² pixels, high to wide after wide to high
    torch.testing.assert_close((first[:, 3] - first[:, 1]) / (first[:, 2] - first[:, 0]), torch.tensor([0.5, 1, 2]))
    torch.testing.assert_close((first[:, 2:] - first[:, :2]).prod(1), torch.full((3,), 64.0**2))


def test_padding_of_the_batch_has_no_part_in_the_ranking() -> None:
    rpn, output, batch = _rpn()
    anchors = torch.cat(output.anchors)
    centre_y, centre_x = (anchors[:, 1] + anchors[:, 3]) / 2, (anchors[:, 0] + anchors[:, 2]) / 2
    part = _takes_part(rpn, output, batch)
    assert torch.equal(part[1], centre_x < 96)  # 70 rounded up to a multiple of 32
    assert not part[0][centre_y >= 96].any()
    between = box_iou(anchors, torch.tensor([[30.0, 30, 70, 70]]))[:, 0]
    assert bool(part[0][(centre_y < 96) & (between < 0.3)].all())


def test_anchors_across_the_border_can_be_left_out() -> None:
    rpn, output, batch = _rpn(ignore_crossing=True)
    anchors = torch.cat(output.anchors)
    inside = (anchors[:, :2] >= 0).all(1) & (anchors[:, 2] < 70) & (anchors[:, 3] < 128)
    part = _takes_part(rpn, output, batch)
    assert torch.equal(part[1], inside)
    assert 100 < int(inside.sum()) < len(inside) // 2


def test_every_object_has_an_anchor() -> None:
    """Also where none reaches .7: the best one, from .3 on."""
    rpn, output, batch = _rpn()
    losses = rpn.losses(output, batch, _targets([[10.0, 10, 90, 35]], []))
    assert torch.cat(output.anchors).sub(torch.tensor([10.0, 10, 90, 35])).abs().sum(1).min() > 4
    assert losses["rpn_ranking"] > 0.19
    assert losses["rpn_box"].item() == pytest.approx((losses["rpn_ranking"] + losses["rpn_sorting"]).item())


def test_proposals() -> None:
    rpn, output, batch = _rpn()
    proposals = rpn.proposals(output, batch.sizes)
    for boxes, (height, width) in zip(proposals, SIZES, strict=True):
        assert 300 < len(boxes) <= 1000
        assert not boxes.requires_grad
        assert bool((boxes >= 0).all())
        assert bool((boxes <= torch.tensor([width, height, width, height])).all())
    rpn.limit = 50
    assert all(torch.equal(a, b[:50]) for a, b in zip(rpn.proposals(output, batch.sizes), proposals, strict=True))


def test_proposals_of_a_level_do_not_cover_those_of_another() -> None:
    rpn, output, batch = _rpn()
    rpn.nms_threshold = 0.0
    rpn.limit = 10**6
    kept = rpn.proposals(output, batch.sizes)[0]
    alone = [
        rpn.proposals(AnchorPredictions(*([values[level]] for values in output)), batch.sizes)[0]
        for level in range(len(STRIDES))
    ]
    assert sorted(kept.tolist()) == sorted(torch.cat(alone).tolist())
    for boxes in alone:
        area = (boxes[:, 2:] - boxes[:, :2]).prod(1)
        assert box_iou(boxes[area > 0], boxes[area > 0]).triu(1).max() == 0 if len(boxes) > 1 else True


def test_more_anchors_are_looked_at_in_training() -> None:
    rpn, output, batch = _rpn()
    rpn.nms_threshold, rpn.limit = 1.0, 10**6
    counts = [3 * (128 // stride) ** 2 for stride in STRIDES]
    for mode, limit in ((True, 2000), (False, 1000)):
        rpn.train(mode)
        assert len(rpn.proposals(output, batch.sizes)[0]) == sum(min(n, limit) for n in counts)
