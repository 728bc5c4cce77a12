"""Other losses in place of RS Loss, in every detector: one's own, and those to compare with."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from samples import batch, losses_and_gradients, positives, sample, two_images
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from ranksort.checkpoints import save_model
from ranksort.data.coco_columns import Category
from ranksort.losses.criteria import CRITERIA, AverageLRP
from ranksort.losses.detection import DetectionLosses, quality_targets, rank_sort_detection_losses
from ranksort.losses.localization import giou_loss, paired_iou
from ranksort.models import Detector
from ranksort.recipes import create_model, get_recipe

CALLS = {  # recipe -> classifiers, each supervised by a call
    "atss_r50_fpn_1x_coco": 1,
    "paa_r50_fpn_1x_coco": 1,
    "faster_rcnn_r50_fpn_1x_coco": 2,
    "cascade_rcnn_r50_fpn_1x_coco": 4,
    "mask_rcnn_r50_fpn_1x_coco": 2,
    "yolact_r50_55e_coco": 1,
    "solov2_r101_fpn_3x": 1,
    "solov2_light_448_r34_fpn_3x": 1,
}


class CrossEntropy(nn.Module):
    """Binary cross-entropy with a learned temperature, and GIoU; both normalised by the number of positives."""

    def __init__(self) -> None:
        super().__init__()
        self.temperature = nn.Parameter(torch.ones(()))
        self.calls: list[dict[str, Any]] = []

    def forward(
        self,
        logits: Tensor,
        positive: Tensor,
        labels: Tensor,
        boxes: Tensor | None,
        object_boxes: Tensor | None,
        *,
        ignored: Tensor | None = None,
        quality: Tensor | None = None,
    ) -> DetectionLosses:
        self.calls.append({"classes": logits.shape[1], "boxes": boxes is not None, "quality": quality is not None})
        losses = {}
        if boxes is not None and object_boxes is not None:
            quality = paired_iou(boxes.detach(), object_boxes)
            losses["box"] = giou_loss(boxes, object_boxes).sum() / max(len(positive), 1)
        assert quality is not None
        targets = quality_targets(logits, positive, labels, torch.ones_like(quality), ignored)
        entropy = binary_cross_entropy_with_logits(
            logits.float() * self.temperature, targets.clamp(min=0), reduction="none"
        )
        losses["entropy"] = entropy[targets >= 0].sum() / max(len(positive), 1)
        return DetectionLosses(losses, quality)


def _model(recipe: str, losses: Any, **settings: Any) -> Detector:
    torch.manual_seed(0)
    small: dict[str, Any] = {
        "backbone": "timm/test_resnet",
        "channels": 64,
        "head_convs": 1,
        "min_size": 96,
        "max_size": 160,
    }
    return create_model(f"ranksort_{recipe}", num_classes=3, proposals=100, losses=losses, **small, **settings)


@pytest.mark.parametrize("recipe", CALLS)
def test_a_loss_of_ones_own(recipe: str) -> None:
    criterion = CrossEntropy()
    model = _model(recipe, criterion)
    losses = losses_and_gradients(
        model, *two_images()
    )  # and gradients reach everything that is trained, the temperature, too
    copies = [module for module in model.modules() if isinstance(module, CrossEntropy)]
    assert criterion in copies
    assert [len(copy.calls) for copy in copies] == [1] * CALLS[recipe]  # each classifier has one, with its own state
    calls = [copy.calls[0] for copy in copies]
    assert [call["classes"] for call in calls].count(3) == max(CALLS[recipe] - 1, 1)  # the RPN has one class
    for call in calls:
        assert call["boxes"] != call["quality"] == ("solov2" in recipe)
    assert all(loss > 0 for loss in losses.values())
    names = {name.rpartition("_")[2] for name in losses}
    assert names == {"entropy"} | ({"mask"} if model.has_masks else set()) | (set() if "solov2" in recipe else {"box"})
    if model.has_masks:  # balanced with the classification, whatever this consists of
        torch.testing.assert_close(losses["mask"], losses["entropy"])
    assert "criterion.temperature" in dict(model.named_parameters())


@pytest.mark.parametrize("recipe", CALLS)
def test_a_loss_of_ones_own_without_objects(recipe: str) -> None:
    model = _model(recipe, CrossEntropy())
    data = batch(sample(96, 80, []), sample(70, 96, []))
    losses = losses_and_gradients(model, *data)
    assert all((loss > 0) == ("entropy" in name) for name, loss in losses.items())
    assert positives(model, *data) == 0


@pytest.mark.parametrize("recipe", CALLS)
def test_rs_loss_as_an_argument_is_the_default(recipe: str) -> None:
    calls = []

    def counted(*args: Any, **options: Any) -> DetectionLosses:
        calls.append(args)
        return rank_sort_detection_losses(*args, **options)

    data = two_images()
    torch.manual_seed(1)
    expected = _model(recipe, rank_sort_detection_losses)(*data)
    torch.manual_seed(1)
    found = _model(recipe, counted)(*data)
    assert len(calls) == CALLS[recipe]
    assert found == expected
    assert type(found) is dict


def test_a_function_which_is_not_for_detectors_without_boxes_does_without_the_quality() -> None:
    def mean_logit(
        logits: Tensor, positive: Tensor, labels: Tensor, boxes: Tensor, object_boxes: Tensor, *, ignored: Any = None
    ) -> DetectionLosses:
        losses = {"level": logits.square().mean(), "box": giou_loss(boxes, object_boxes).sum()}
        return DetectionLosses(losses, paired_iou(boxes.detach(), object_boxes))

    for recipe in ("atss_r50_fpn_1x_coco", "yolact_r50_55e_coco", "mask_rcnn_r50_fpn_1x_coco"):
        assert losses_and_gradients(_model(recipe, mean_logit), *two_images())["level"] > 0


def test_plain_losses_are_refused() -> None:
    model = _model("atss_r50_fpn_1x_coco", lambda *inputs, **_: {"level": inputs[0].mean()})
    with pytest.raises(
        ValueError, match="`losses` of ATSS must return DetectionLosses, as its criterion must; got dict"
    ):
        model(*two_images())


def test_what_the_logs_get() -> None:
    found = DetectionLosses({}, torch.tensor([0.25, 0.75, 0.5]))
    assert found.logs() == {"positives": 3, "quality": 0.5}
    assert DetectionLosses({}, torch.zeros(0)).logs() == {"positives": 0, "quality": 0}
    data = two_images()
    model = _model("atss_r50_fpn_1x_coco", rank_sort_detection_losses)
    of_model = model(*data, with_quality=True)
    assert of_model.losses == model(*data)
    assert of_model.logs()["positives"] == len(of_model.quality) > 9
    assert 0 < of_model.logs()["quality"] < 1
    assert not of_model.quality.requires_grad


TO_COMPARE_WITH = [name for name in CRITERIA if name != "rank_sort"]
CASES = [(recipe, loss) for recipe in CALLS if "light" not in recipe for loss in TO_COMPARE_WITH]
CASES.remove(("solov2_r101_fpn_3x", "average_lrp"))  # refused, see below


@pytest.mark.parametrize(("recipe", "loss"), CASES)
def test_every_loss_trains_every_detector(recipe: str, loss: str) -> None:
    model = _model(recipe, None, loss=loss)
    images, targets = two_images()
    data = batch((images[0], targets[0]), sample(80, 100, []))
    losses = losses_and_gradients(model, *data)
    assert all(value > 0 for value in losses.values())
    names = {name.rpartition("_")[2] for name in losses}
    assert names == {"classification"} | ({"box"} if model.has_boxes else set()) | (
        {"mask"} if model.has_masks else set()
    )


def test_the_loss_of_masks_is_weighted_as_that_of_boxes(monkeypatch: pytest.MonkeyPatch) -> None:
    """With equal losses of all boxes and masks nothing but the factor is left."""
    monkeypatch.setattr("ranksort.losses.detection.giou_loss", lambda boxes, _: boxes.sum(1) * 0 + 0.25)
    monkeypatch.setattr("ranksort.models.yolact.dice_loss", lambda masks, _: masks.sum((1, 2)) * 0 + 0.25)
    for loss in ("focal", "quality_focal", "varifocal", "average_precision"):
        found = _model("yolact_r50_55e_coco", None, loss=loss)(*two_images())
        assert found["box"].item() == found["mask"].item() == pytest.approx(2 * 0.25)
    found = _model("yolact_r50_55e_coco", None, loss="average_lrp")(*two_images())
    torch.testing.assert_close(found["mask"], found["classification"])


def test_a_loss_of_box_errors_is_refused_without_boxes() -> None:
    for recipe, name in (("solov2_r101_fpn_3x", "SOLOv2"), ("solov2_light_448_r34_fpn_3x", "SOLOv2Light")):
        with pytest.raises(ValueError, match=f"{name} learns masks without boxes, but this loss needs box errors"):
            _model(recipe, None, loss="average_lrp")


def test_the_state_of_a_loss_is_not_taken_for_weights(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small: dict[str, Any] = {
        "backbone": "timm/test_resnet",
        "channels": 64,
        "head_convs": 1,
        "pretrained_backbone": False,
    }
    recipe = get_recipe("ranksort_atss_r50_fpn_1x_coco")
    recipe.model = dataclasses.replace(recipe.model, **small, loss="average_lrp")
    trained = create_model(recipe, num_classes=2, losses=AverageLRP(period=1))
    trained(*batch(sample(96, 128, [[10, 10, 60, 50, 0]])))
    save_model(tmp_path / "trained.safetensors", trained, recipe, [Category(1, "a"), Category(2, "b")])
    for loss in ("average_lrp", "focal"):
        recipe.model.loss = loss
        model = create_model(recipe, num_classes=2, weights=tmp_path / "trained.safetensors")
        assert "criterion" not in capsys.readouterr().out
        same = [torch.equal(p, q) for p, q in zip(model.parameters(), trained.parameters(), strict=True)]
        assert all(same)
        assert model.state_dict().get("criterion.loss.localization_weight", 50) == 50


def test_every_classifier_balances_alrp_loss_by_itself() -> None:
    model = _model("cascade_rcnn_r50_fpn_1x_coco", AverageLRP(period=1))
    model(*two_images())
    weights = [value.item() for name, value in model.state_dict().items() if name.endswith("localization_weight")]
    assert len(set(weights)) == 4
    assert 50 not in weights
