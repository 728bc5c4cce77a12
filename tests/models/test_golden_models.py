"""Our models against the published ones: names, losses, gradients, feature maps and detections, on two real images."""

import math
from typing import NamedTuple

import pytest
import torch
from published import (
    GoldenInput,
    assert_same_detections,
    assert_same_gradients,
    assert_same_levels,
    assert_same_map,
    golden_input,
    golden_json,
    published_entries,
    published_entry,
    published_names,
    published_state_dict,
)
from torch import Tensor

from ranksort.losses.detection import DetectionLosses
from ranksort.models import ATSS, PAA
from ranksort.models.anchors import AnchorPredictions
from ranksort.published import convert_checkpoint
from ranksort.recipes import create_model


class Case(NamedTuple):
    recipe: str
    folder: str
    model: ATSS | PAA
    input: GoldenInput


class Evaluated(NamedTuple):
    backbone: list[Tensor]
    neck: list[Tensor]
    predictions: AnchorPredictions
    detections: list[dict[str, Tensor]]


@pytest.fixture(scope="module", params=["atss_r50", "paa_r50"])
def case(request: pytest.FixtureRequest) -> Case:
    given = golden_input()
    recipe = f"ranksort_{request.param}_fpn_1x_coco"
    model = create_model(recipe, min_size=256)
    model.load_state_dict(convert_checkpoint(published_state_dict(recipe), recipe))
    return Case(recipe, request.param, model, given)


@pytest.fixture(scope="module")
def found(case: Case) -> DetectionLosses:
    """The losses of one training step, whose gradients are in the model afterwards."""
    found = case.model.train().losses(case.input.batch, case.input.targets)
    sum(found.losses.values()).backward()
    return found


@pytest.fixture(scope="module")
def evaluated(case: Case, found: DetectionLosses) -> Evaluated:
    model, batch = case.model.eval(), case.input.batch
    with torch.no_grad():
        backbone = model.backbone(batch.pixels)
        neck = model.fpn(backbone[-3:])
        return Evaluated(backbone, neck, model.outputs(batch), model.detect(batch))


def test_weight_rule() -> None:
    for recipe, tensors in golden_json("models/weights_check.json").items():  # of all published models
        dtypes = {key: dtype for key, _, dtype in published_entries(recipe)}
        for key, expected in tensors.items():
            if math.prod(expected["shape"]) > 200_000:  # for the sake of time
                continue
            ours = published_entry(key, expected["shape"], dtypes[key]).double().flatten()
            assert ours.sum().item() == pytest.approx(expected["sum"], abs=1e-3), key
            assert ours.abs().sum().item() == pytest.approx(expected["abs_sum"], rel=1e-6), key
            assert ours[[0, 1, 2, -1]].tolist() == pytest.approx([*expected["first3"], expected["last"]], abs=1e-6), key


def test_every_published_tensor_has_one_of_ours(case: Case) -> None:
    """`convert_checkpoint` itself refuses what is missing, left over or of another shape."""
    assert sorted(published_names(case.recipe).values()) == sorted(key for key, _, _ in published_entries(case.recipe))


def test_losses(case: Case, found: DetectionLosses) -> None:
    expected = golden_json(f"models/{case.folder}/train.json")["losses"]
    ours = {
        "loss_rank": found.losses["ranking"],
        "loss_sort": found.losses["sorting"],
        "loss_bbox": found.losses["box"],
    }
    assert {k: v.item() for k, v in ours.items()} == pytest.approx(expected, rel=1e-4)
    assert len(found.losses) == len(ours)


def test_number_of_positives(case: Case, found: DetectionLosses) -> None:
    (call,) = golden_json(f"models/{case.folder}/train.json")["ranksort_calls"]
    assert len(found.quality) == call["positives"]  # here none of them has an IoU of exactly 0


def test_gradient_norm_of_every_trained_parameter(case: Case, found: DetectionLosses) -> None:
    assert_same_gradients(case.model, case.folder, published_names(case.recipe))


def test_feature_maps(case: Case, evaluated: Evaluated) -> None:
    for level, x in enumerate(evaluated.backbone):
        assert_same_map(x, case.folder, f"backbone/{level}")
    for level, x in enumerate(evaluated.neck):
        assert_same_map(x, case.folder, f"neck/{level}")


def test_head_outputs(case: Case, evaluated: Evaluated) -> None:
    for name, levels in (("cls", evaluated.predictions.logits), ("reg", evaluated.predictions.deltas)):
        assert_same_levels(levels, evaluated.predictions.map_sizes, case.folder, f"bbox_head/{name}")


def test_detections_in_the_batch(case: Case, evaluated: Evaluated) -> None:
    assert_same_detections(evaluated.detections, case.folder, "rescale_False")


def test_detections_in_the_original_images(case: Case, evaluated: Evaluated) -> None:
    ours = case.model.transform.to_original(evaluated.detections, case.input.batch)
    assert_same_detections(ours, case.folder, "rescale_True")


def test_losses_and_detections_of_plain_images(case: Case, found: DetectionLosses, evaluated: Evaluated) -> None:
    """What a user calls, with images in 0..1 of the size the model works at."""
    targets = [{key: t[key] for key in ("boxes", "labels")} for t in case.input.targets]
    with torch.no_grad():
        public = case.model.train()(case.input.images, targets)
        detections = case.model.eval()(case.input.images)
    assert {k: v.item() for k, v in public.items()} == pytest.approx(
        {k: v.item() for k, v in found.losses.items()}, rel=1e-4
    )
    assert_same_detections(detections, case.folder, "rescale_False")
