"""RS-YOLACT against the published model, on two real images of 550 x 550 pixels."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from published import (
    assert_same_detections,
    assert_same_gradients,
    assert_same_levels,
    assert_same_map,
    assert_same_masks,
    golden_input,
    golden_json,
    published_entries,
    published_names,
    published_state_dict,
)
from torch import Tensor

from ranksort.models import YOLACT
from ranksort.models.masks import resize_masks
from ranksort.published import convert_checkpoint
from ranksort.recipes import create_model

RECIPE, FOLDER = "ranksort_yolact_r50_55e_coco", "yolact_r50"
GIVEN: dict[str, Any] = {
    "name": "input_yolact.npz",
    "mean": (123.68, 116.78, 103.94),
    "std": (58.40, 57.12, 57.38),
}


@pytest.fixture(scope="module")
def weights() -> dict[str, Tensor]:
    return convert_checkpoint(published_state_dict(RECIPE), RECIPE)


@pytest.fixture
def model(weights: dict[str, Tensor]) -> YOLACT:
    """A fresh one: a step of training changes the statistics of the batch norms."""
    model = create_model(RECIPE)
    model.load_state_dict(weights)
    return model


@pytest.fixture
def without_gradient() -> Iterator[None]:
    with torch.no_grad():
        yield


def test_every_published_tensor_has_one_of_ours() -> None:
    assert sorted(published_names(RECIPE).values()) == sorted(key for key, _, _ in published_entries(RECIPE))


def test_losses_and_gradients(model: YOLACT) -> None:
    given = golden_input(**GIVEN)
    losses, quality, *_ = model.losses(given.batch, given.targets)
    recorded = golden_json(f"models/{FOLDER}/train.json")
    ours = {
        "ranking_loss": losses["ranking"],
        "sorting_loss": losses["sorting"],
        "loss_bbox": losses["box"],
        "loss_mask": losses["mask"],
    }
    assert {k: v.item() for k, v in ours.items()} == pytest.approx(recorded["losses"], rel=1e-4)
    assert len(losses) == len(ours)
    assert len(quality) == recorded["ranksort_calls"][0]["positives"]
    sum(losses.values()).backward()
    assert_same_gradients(model, FOLDER, published_names(RECIPE))


@pytest.mark.usefixtures("without_gradient")
def test_maps(model: YOLACT) -> None:
    given = golden_input(**GIVEN)
    backbone = model.eval().backbone(given.batch.pixels)
    neck = model.fpn(backbone[-3:])
    for name, levels in (("backbone", backbone), ("neck", neck)):
        for level, x in enumerate(levels):
            assert_same_map(x, FOLDER, f"{name}/{level}")
    assert_same_map(model.prototypes(neck[0]), FOLDER, "mask_head/prototypes")
    sizes = [tuple(x.shape[-2:]) for x in neck]
    for name, levels in zip(("cls", "reg", "coeff"), model.head(neck), strict=True):
        assert_same_levels(levels, sizes, FOLDER, f"bbox_head/{name}")


@pytest.mark.usefixtures("without_gradient")
def test_detections(model: YOLACT) -> None:
    given = golden_input(**GIVEN)
    found = model.eval().detect(given.batch)
    assert_same_detections(found, FOLDER, "rescale_False")
    assert_same_detections(model.transform.to_original(found, given.batch), FOLDER, "rescale_True")
    stats = golden_json(f"models/{FOLDER}/eval.json")["stats"]
    for kind, sizes in (("rescale_False", given.batch.sizes), ("rescale_True", given.batch.original_sizes)):
        for i, (detections, size) in enumerate(zip(found, sizes, strict=True)):
            masks = resize_masks(detections["masks"], size)
            assert_same_masks(masks[:30], stats[f"{kind}/image_{i}"]["mask_rle_top30"])


@pytest.mark.usefixtures("without_gradient")
def test_detections_of_plain_images(model: YOLACT) -> None:
    """What a user calls, with images in 0..1 of the size the model works at."""
    given = golden_input(**GIVEN)
    detections = model.eval()(given.images)
    assert_same_detections(detections, FOLDER, "rescale_False")
    stats = golden_json(f"models/{FOLDER}/eval.json")["stats"]
    for i, d in enumerate(detections):
        assert_same_masks(d["masks"][:30], stats[f"rescale_False/image_{i}"]["mask_rle_top30"])
