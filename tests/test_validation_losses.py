"""The losses of an evaluation: those of training on the same images, without a trace of it in the model."""

import math
import multiprocessing
from pathlib import Path
from typing import Literal

import pytest
import torch
import torch.distributed as dist

from ranksort.data.batch import data_loader
from ranksort.engine.validation import ValidationLosses, computed_once
from ranksort.recipes import Recipe, create_model
from ranksort.recipes.build import build_dataset


@pytest.mark.parametrize(("detector", "loss"), [("atss", "average_lrp"), ("mask_rcnn", "rank_sort")])
def test_losses_are_those_of_training_and_leave_the_model_as_it_was(
    tiny_recipe: Recipe, detector: str, loss: Literal["average_lrp", "rank_sort"]
) -> None:
    tiny_recipe.model.detector, tiny_recipe.model.loss, tiny_recipe.model.proposals = detector, loss, 50
    tiny_recipe.model.train_batch_norm, tiny_recipe.model.frozen_stages = True, -1
    val_set = build_dataset(tiny_recipe, "val")
    model = create_model(tiny_recipe, num_classes=len(val_set.categories)).eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state = torch.random.get_rng_state()
    losses, expected = ValidationLosses(min_box_size=1), []
    for images, targets in data_loader(val_set):
        for target in targets:
            target |= {"masks": target["masks"].to(torch.uint8)} if "masks" in target else {}  # as good as bool
        with torch.inference_mode(), computed_once(model.backbone):
            alone = model(images)
            losses.update(model, images, targets)
        with torch.no_grad():
            model.training = True  # not its layers
            expected.append(model(images, targets))
            model.training = False
            assert torch.equal(model(images)[0]["scores"], alone[0]["scores"])
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert not any(module.training for module in model.modules())
    means = losses.compute()
    for name in expected[0]:
        assert means[name] == pytest.approx(float(sum(e[name] for e in expected)) / len(expected), rel=1e-5)
    assert means["loss"] == pytest.approx(sum(value for name, value in means.items() if name != "loss"))


def test_images_without_usable_objects_do_not_count(tiny_recipe: Recipe) -> None:
    """Boxes which are outside the image, without area, or too small; all may be in a file that is evaluated on."""
    model = create_model(tiny_recipe, num_classes=2).eval()
    image, labels = torch.zeros(3, 96, 96), torch.zeros(1, dtype=torch.int64)
    good, bad = [8.0, 8.0, 120.0, 50.0], [[97.0, 3.0, 120.0, 9.0], [5.0, 5.0, 5.0, 9.0], [5.0, 5.0, 7.0, 9.0]]
    losses = ValidationLosses(min_box_size=3)
    for boxes in ([box] for box in bad):
        losses.update(model, [image], [{"boxes": torch.tensor(boxes), "labels": labels}])
    losses.update(model, [image], [{"boxes": torch.zeros(0, 4), "labels": labels[:0]}])
    assert losses.compute() == {}
    losses.update(model, [image, image], [{"boxes": torch.tensor([b]), "labels": labels} for b in (good, bad[0])])
    alone = model.losses(*model.transform([image], [{"boxes": torch.tensor([good]).clamp(max=96), "labels": labels}]))
    assert losses.images == 1
    assert losses.compute()["ranking"] == pytest.approx(alone.losses["ranking"].item())


def _one_of_two(rank: int, file: Path, recipe: Recipe) -> None:
    """The first process has an image with finite losses; the second, only one whose logits are NaN."""
    dist.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=2)
    _assert_spoilt(recipe, [0.0] if rank == 0 else [math.nan])


def _assert_spoilt(recipe: Recipe, pixels: list[float]) -> None:
    torch.set_num_threads(1)
    model = create_model(recipe, num_classes=2).eval()
    target = {"boxes": torch.tensor([[8.0, 8.0, 90.0, 50.0]]), "labels": torch.zeros(1, dtype=torch.int64)}
    losses = ValidationLosses(min_box_size=1)
    for value in pixels:
        losses.update(model, [torch.full((3, 96, 96), value)], [target])
    means = losses.compute()
    assert "loss" in means
    assert ("ranking" in means) == (pixels != [math.nan] or dist.is_initialized())
    assert all(map(math.isnan, means.values()))


@pytest.mark.parametrize("pixels", [[math.nan], [0.0, math.nan], [math.nan, 0.0]])
def test_one_loss_that_is_not_finite_spoils_the_mean(tiny_recipe: Recipe, pixels: list[float]) -> None:
    _assert_spoilt(tiny_recipe, pixels)


def test_one_process_without_a_finite_loss_spoils_the_mean(tiny_recipe: Recipe, tmp_path: Path) -> None:
    start = multiprocessing.get_context("fork").Process
    processes = [start(target=_one_of_two, args=(rank, tmp_path / "store", tiny_recipe)) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
    assert [process.exitcode for process in processes] == [0, 0]
