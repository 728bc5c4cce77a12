"""What each loss makes of a detector's logits and boxes; tests/models/test_criterion.py has the detectors."""

import copy
import pickle
from typing import Any, get_args

import pytest
import torch
from torch import Tensor

from ranksort.losses import (
    average_lrp_loss,
    average_precision_loss,
    focal_loss,
    quality_focal_loss,
    rank_sort_loss,
    varifocal_loss,
)
from ranksort.losses.criteria import CRITERIA, AverageLRP, build_criterion
from ranksort.losses.localization import giou_loss, paired_iou
from ranksort.recipes.recipe import ModelSettings

CLASSIFICATION = {
    "average_precision": average_precision_loss,
    "focal": focal_loss,
    "quality_focal": quality_focal_loss,
    "varifocal": varifocal_loss,
}


def example(positives: int = 6, seed: int = 0) -> dict[str, Any]:
    """30 anchors of 3 classes, some of them ignored; the positives are not in order."""
    random = torch.Generator().manual_seed(seed)
    order = torch.randperm(30, generator=random)
    ignored = torch.zeros(30, dtype=torch.bool)
    ignored[order[-4:]] = True
    corner = 100 * torch.rand(positives, 2, generator=random)
    object_boxes = torch.cat([corner, corner + 20], 1)
    return {
        "logits": torch.randn(30, 3, generator=random).requires_grad_(),
        "positive": order[:positives],
        "labels": torch.randint(3, (positives,), generator=random),
        "boxes": (object_boxes + 3 * torch.randn(positives, 4, generator=random)).requires_grad_(),
        "object_boxes": object_boxes,
        "ignored": ignored,
    }


def targets_of(given: dict[str, Any], values: Tensor) -> Tensor:
    targets = torch.zeros(30, 3)
    targets[given["ignored"]] = -1
    targets[given["positive"], given["labels"]] = values
    return targets


def test_the_setting_offers_every_loss() -> None:
    offered = get_args(ModelSettings.__annotations__["loss"])
    assert offered == tuple(CRITERIA)
    with pytest.raises(ValueError, match="there is no loss 'hinge': choose one of rank_sort, average_lrp, "):
        build_criterion("hinge")


@pytest.mark.parametrize("name", CLASSIFICATION)
def test_classification_and_box_losses_with_fixed_weights(name: str) -> None:
    given = example()
    logits, positive, boxes = given["logits"], given["positive"], given["boxes"]
    found = build_criterion(name)(**given)
    iou = paired_iou(boxes, given["object_boxes"]).detach()
    is_soft = name in ("quality_focal", "varifocal")
    expected = CLASSIFICATION[name](logits, targets_of(given, iou if is_soft else torch.ones(6)))
    confidence = logits.detach()[positive].sigmoid().amax(1)
    weights = {"quality_focal": confidence, "varifocal": iou}.get(name, torch.ones(6))
    box = 2 * (weights * giou_loss(boxes, given["object_boxes"])).sum() / weights.sum()

    assert list(found.losses) == ["classification", "box"]
    torch.testing.assert_close(found.losses["classification"], expected)
    torch.testing.assert_close(found.losses["box"], box)
    assert torch.equal(found.quality, iou)
    ours = torch.autograd.grad(sum(found.losses.values()), [logits, boxes])
    torch.testing.assert_close(ours, torch.autograd.grad(expected + box, [logits, boxes]))
    assert not ours[0][given["ignored"]].any()


def test_average_lrp_ranks_the_errors_of_the_boxes() -> None:
    given = example()
    logits, boxes = given["logits"], given["boxes"]
    found = build_criterion("average_lrp")(**given)
    errors = torch.full((30, 3), torch.nan)
    errors[given["positive"], given["labels"]] = giou_loss(boxes, given["object_boxes"])
    targets = targets_of(given, torch.ones(6))
    expected = average_lrp_loss(logits, targets, errors[targets > 0])
    torch.testing.assert_close(found.losses["classification"], expected.classification)
    torch.testing.assert_close(found.losses["box"], 50 * expected.localization)
    ours = torch.autograd.grad(sum(found.losses.values()), [logits, boxes])
    theirs = torch.autograd.grad(expected.classification + 50 * expected.localization, [logits, boxes])
    torch.testing.assert_close(ours, theirs)


def test_average_lrp_balances_by_the_last_epoch() -> None:
    criterion, unbalanced = AverageLRP(period=2), AverageLRP()
    epoch = [unbalanced(**example(seed=seed)).losses for seed in (1, 2)]
    for seed in (1, 2):
        criterion(**example(seed=seed))
    classification = sum(losses["classification"] for losses in epoch)
    localization = sum(losses["box"] for losses in epoch) / 50
    weight = ((classification + localization) / localization).item()
    assert criterion.loss.localization_weight.item() == pytest.approx(weight)
    assert 1 < weight < 50
    torch.testing.assert_close(
        criterion(**example()).losses["box"], unbalanced(**example()).losses["box"] / 50 * weight
    )


@pytest.mark.parametrize("name", [name for name in CRITERIA if name != "average_lrp"])
def test_a_quality_in_place_of_boxes(name: str) -> None:
    given = example() | {"boxes": None, "object_boxes": None}
    quality = torch.linspace(0.1, 0.9, 6)
    found = build_criterion(name)(**given, quality=quality)
    assert "box" not in found.losses
    assert torch.equal(found.quality, quality)
    if name == "varifocal":
        targets = targets_of(given, quality)
        torch.testing.assert_close(found.losses["classification"], varifocal_loss(given["logits"], targets))
        masks = torch.tensor([0.5, 0.25])
        chosen = torch.tensor([5, 0])
        weighted = (0.9 * 0.5 + 0.1 * 0.25) / (0.9 + 0.1)
        assert found.with_task("mask", masks, chosen).losses["mask"].item() == pytest.approx(2 * weighted)
    if name == "rank_sort":
        ranking, sorting = rank_sort_loss(given["logits"], targets_of(given, quality))
        assert found.with_task("mask", torch.ones(6)).losses["mask"].item() == pytest.approx((ranking + sorting).item())


def test_average_lrp_needs_boxes() -> None:
    given = example() | {"boxes": None, "object_boxes": None, "quality": torch.ones(6)}
    with pytest.raises(ValueError, match="aLRP Loss ranks the errors of boxes: it needs boxes and object_boxes"):
        build_criterion("average_lrp")(**given)


@pytest.mark.parametrize("name", CRITERIA)
def test_without_positives(name: str) -> None:
    given = example(positives=0)
    found = build_criterion(name)(**given)
    sum(found.losses.values()).backward()
    learns_from_negatives = "focal" in name
    assert bool(found.losses.pop("box") == 0)
    assert all((loss > 0) == learns_from_negatives for loss in found.losses.values())
    assert bool(given["logits"].grad.any()) == learns_from_negatives
    assert given["boxes"].grad.shape == (0, 4)


@pytest.mark.parametrize("name", CRITERIA)
@pytest.mark.parametrize("where", ["logits", "boxes"])
def test_what_is_not_finite_is_refused(name: str, where: str) -> None:
    given = example()
    given[where] = given[where].detach().clone()
    given[where][given["positive"][0] if where == "logits" else 0, 0] = torch.nan
    with pytest.raises(ValueError, match=r"must be finite.* look for a diverged model"):
        build_criterion(name)(**given)


@pytest.mark.parametrize("name", CRITERIA)
def test_half_precision_is_computed_in_float32(name: str) -> None:
    given = example()
    half = {key: given[key].detach().half() for key in ("logits", "boxes")}
    single = {key: value.float() for key, value in half.items()}
    ours, theirs = (build_criterion(name)(**given | predicted).losses for predicted in (half, single))
    assert ours == theirs
    assert all(loss.dtype == torch.float32 for loss in ours.values())


@pytest.mark.parametrize("name", CRITERIA)
def test_a_model_can_be_copied_and_sent_with_its_criterion(name: str) -> None:
    criterion, given = build_criterion(name), example()
    for other in (copy.deepcopy(criterion), pickle.loads(pickle.dumps(criterion))):
        assert other(**given).losses == criterion(**given).losses


@pytest.mark.parametrize("name", CRITERIA)
def test_only_losses_which_rank_do_so_globally(name):
    if name not in ("rank_sort", "average_lrp", "average_precision"):
        with pytest.raises(ValueError, match=f"--training.global-ranking is for .*, not for {name}"):
            build_criterion(name, global_ranking=True)
        return
    alone, globally = build_criterion(name), build_criterion(name, global_ranking=True)
    logits, boxes = torch.randn(20, 3), torch.tensor([[0.0, 0, 9, 9], [1, 1, 8, 9]])
    found, expected = (
        criterion(logits, torch.tensor([3, 5]), torch.tensor([0, 2]), boxes, boxes + 1).losses
        for criterion in (globally, alone)
    )
    assert found == expected  # of one process
