"""RS-SOLOv2-light against the published model, on two real images."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from published import (
    GoldenInput,
    assert_same_gradients,
    assert_same_map,
    assert_same_masks,
    golden_file,
    golden_input,
    golden_json,
    published_entries,
    published_names,
    published_state_dict,
)
from torch import Tensor

from ranksort.losses import rank_sort_loss
from ranksort.losses.detection import confidence, quality_targets, self_balanced, weighted_mean
from ranksort.models import SOLOv2
from ranksort.models.masks import quarter_masks
from ranksort.models.matchers import collect
from ranksort.models.solov2 import GRIDS, mask_losses, match_cells, peaks
from ranksort.published import convert_checkpoint
from ranksort.recipes import create_model

RECIPE, FOLDER = "ranksort_solov2_light_448_r34_fpn_3x", "solov2_light_r34"


@pytest.fixture(scope="module")
def given() -> GoldenInput:
    return golden_input()


@pytest.fixture(scope="module")
def model() -> SOLOv2:
    model = create_model(RECIPE, min_size=256, score_threshold=golden_json(f"models/{FOLDER}/eval.json")["score_thr"])
    model.load_state_dict(convert_checkpoint(published_state_dict(RECIPE), RECIPE))
    return model


@pytest.fixture
def without_gradient() -> Iterator[None]:
    with torch.no_grad():
        yield


@pytest.mark.parametrize("recipe", [RECIPE, "ranksort_solov2_r101_fpn_3x"])
def test_every_published_tensor_has_one_of_ours(recipe: str) -> None:
    assert sorted(published_names(recipe).values()) == sorted(key for key, _, _ in published_entries(recipe))


@pytest.mark.usefixtures("without_gradient")
def test_losses(model: SOLOv2, given: GoldenInput) -> None:
    """Each positive with the Dice of its own mask: what the published code would give if it did so."""
    losses, quality, *_ = model.train().losses(given.batch, given.targets)
    recorded = golden_json(f"models/{FOLDER}/train.json")
    expected = recorded["aligned"]
    assert losses["ranking"].item() == pytest.approx(expected["loss_rank"], rel=1e-4)
    assert losses["sorting"].item() == pytest.approx(expected["loss_sort"], rel=1e-4)
    assert losses["mask"].item() == pytest.approx(expected["loss_rank"] + expected["loss_sort"], rel=1e-4)
    assert len(losses) == 3
    assert len(quality) == recorded["ranksort_calls"][0]["positives"]


def test_losses_and_gradients_with_the_bug_of_the_published_code(model: SOLOv2, given: GoldenInput) -> None:
    """There the positives, by cell, and the losses of their masks, by object, meet in the order of their lists."""
    batch = given.batch
    logits, kernels, features = model.train().outputs(batch.pixels)
    size = (batch.pixels.shape[2], batch.pixels.shape[3])
    matched = collect([match_cells(t["boxes"], t["masks"], size, model.ranges) for t in given.targets], given.targets)
    of_positive = torch.cat(kernels, 1).flatten(0, 1)[matched.positive]
    parts = []
    for image, target in enumerate(given.targets):
        here, objects = matched.image == image, quarter_masks(target["masks"], features.shape[-2:])
        parts.append(mask_losses(features[image], of_positive[here], objects, matched.object[here]))
    dice = torch.cat(parts)

    start = np.cumsum([0, *(g * g for g in GRIDS)])
    cell = (matched.positive % start[-1]).numpy()
    level = np.searchsorted(start, cell, side="right") - 1
    image, owner = matched.image.numpy(), matched.object.numpy()
    by_cell = torch.tensor(np.lexsort((cell, image, level)))
    by_object = torch.tensor(np.lexsort((cell, owner, image, level)))
    with np.load(golden_file(f"models/{FOLDER}/train.npz")) as file:
        recorded = {name: torch.tensor(file[name]) for name in file.files}
    torch.testing.assert_close(dice[by_object].detach(), recorded["dice_loss"], rtol=1e-5, atol=1e-6)
    place = (
        len(given.targets) * start[level] + image * np.square(GRIDS)[level] + cell - start[level]
    ) * model.num_classes
    assert (torch.tensor(place) + matched.labels)[by_cell].tolist() == recorded["positive_flat_index"].tolist()

    all_logits = torch.cat(logits, 1).flatten(0, 1)
    quality = torch.empty(len(dice)).index_copy(0, by_cell, 1 - dice.detach()[by_object])
    ranking, sorting = rank_sort_loss(
        all_logits, quality_targets(all_logits, matched.positive, matched.labels, quality)
    )
    mask = weighted_mean(dice[by_object], confidence(all_logits[matched.positive])[by_cell])
    losses = {"loss_rank": ranking, "loss_sort": sorting, "loss_ins": self_balanced(mask, ranking, sorting)}
    train = golden_json(f"models/{FOLDER}/train.json")
    assert {k: v.item() for k, v in losses.items()} == pytest.approx(train["losses"], rel=1e-4)
    assert mask.item() == pytest.approx(train["raw"]["loss_ins"], rel=1e-4)
    model.zero_grad()
    sum(losses.values(), torch.zeros(())).backward()
    assert_same_gradients(model, FOLDER, published_names(RECIPE))


@pytest.mark.usefixtures("without_gradient")
def test_maps(model: SOLOv2, given: GoldenInput) -> None:
    backbone = model.eval().backbone(given.batch.pixels)
    neck = model.fpn(backbone)
    for name, levels in (("backbone", backbone), ("neck", neck)):
        for level, x in enumerate(levels):
            assert_same_map(x, FOLDER, f"{name}/{level}")
    assert_same_map(model.mask_features(neck[:4]), FOLDER, "mask_feat")

    def as_map(x: Tensor) -> Tensor:
        side = round(x.shape[1] ** 0.5)
        return x.transpose(1, 2).reshape(len(x), -1, side, side)

    logits, kernels = model.head(neck)
    for name, cells in (("cate", logits), ("kernel", kernels)):
        for level, x in enumerate(cells):
            assert_same_map(as_map(x), FOLDER, f"bbox_head_eval_False/{name}/{level}")
    for level, (x, grid) in enumerate(zip(logits, GRIDS, strict=True)):
        scores = torch.stack([peaks(of_image.sigmoid(), grid) for of_image in x])
        assert_same_map(scores.reshape(len(x), grid, grid, -1), FOLDER, f"bbox_head_eval_True/cate/{level}")


def _assert_same_detections(detections: list[dict[str, Tensor]]) -> None:
    stats = golden_json(f"models/{FOLDER}/eval.json")["stats"]
    with np.load(golden_file(f"models/{FOLDER}/eval.npz")) as file:
        for i, d in enumerate(detections):
            torch.testing.assert_close(d["scores"], torch.tensor(file[f"det/scores_{i}"]), rtol=0, atol=2e-4)
            assert d["labels"].tolist() == file[f"det/labels_{i}"].tolist()
            assert_same_masks(d["masks"][:30], stats[f"det/image_{i}"]["mask_rle_top30"])
            torch.testing.assert_close(
                d["masks"].sum((1, 2)), torch.tensor(file[f"det/mask_areas_{i}"]), rtol=0.005, atol=5
            )


@pytest.mark.usefixtures("without_gradient")
def test_detections_in_the_original_images(model: SOLOv2, given: GoldenInput) -> None:
    _assert_same_detections(model.to_original(model.eval().detect(given.batch), given.batch))


@pytest.mark.usefixtures("without_gradient")
def test_detections_of_plain_images(model: SOLOv2, given: GoldenInput) -> None:
    """What a user calls, with images in 0..1 of the size the model works at: the same scores, and masks of that size."""
    for expected, found in zip(model.eval().detect(given.batch), model(given.images), strict=True):
        torch.testing.assert_close(found["scores"], expected["scores"], rtol=0, atol=2e-4)
        assert torch.equal(found["labels"], expected["labels"])
