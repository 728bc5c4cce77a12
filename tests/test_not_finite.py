"""Losses and gradients that are NaN: the batch and the last good checkpoint are kept, and the run stops or goes on without it."""

import csv
import math
import multiprocessing
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from ranksort import engine
from ranksort.checkpoints import load_model, read_checkpoint
from ranksort.engine.guard import Diverged, read_batch
from ranksort.engine.module import DetectorModule, mean_of_processes
from ranksort.models import ATSS
from ranksort.models.dense_head import DenseHead
from ranksort.recipes import Recipe


@pytest.fixture
def recipe(tiny_recipe: Recipe) -> Recipe:
    tiny_recipe.evaluation.pictures, tiny_recipe.model.backbone = 0, "timm/lcnet_035"
    return tiny_recipe


def spoil(monkeypatch: pytest.MonkeyPatch, steps: set[int], what: str) -> None:
    """Make a loss, the network or a gradient NaN in some steps."""
    step, losses, head = DetectorModule.training_step, ATSS.losses, DenseHead.forward
    count = [0]

    def stepping(self: DetectorModule, *args: Any) -> Any:
        count[0] += 1
        return step(self, *args)

    def spoilt(values: Tensor) -> Tensor:
        return values * math.nan if count[0] in steps else values

    def spoilt_losses(self: ATSS, *args: Any) -> Any:
        found = losses(self, *args)
        if what == "loss" and self.training:
            found = found._replace(losses=found.losses | {"box": spoilt(found.losses["box"])})
        if what == "gradient" and found.losses["box"].requires_grad:
            found.losses["box"].register_hook(spoilt)
        return found

    def spoilt_head(self: DenseHead, *args: Any) -> Any:
        logits, deltas = head(self, *args)
        return [spoilt(x) if what == "logits" and self.training else x for x in logits], deltas

    monkeypatch.setattr(DetectorModule, "training_step", stepping)
    monkeypatch.setattr(ATSS, "losses", spoilt_losses)
    monkeypatch.setattr(DenseHead, "forward", spoilt_head)


def state(run: Path) -> dict[str, Any]:
    return torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)


def assert_finite(run: Path) -> None:
    assert all(bool(tensor.isfinite().all()) for tensor in state(run)["state_dict"].values())


@pytest.mark.parametrize(
    ("what", "step", "said"),
    [
        ("loss", 9, r"the loss is not finite at step 9, epoch 2 \(box nan\)"),
        ("logits", 9, r"the loss is not finite at step 9, epoch 2 \(logits must be finite, .*half precision\)"),
        ("gradient", 12, r"the gradient is not finite, although the loss is, at step 12, epoch 2"),
    ],
)
def test_a_run_stops_with_the_batch_and_the_last_good_checkpoint(
    recipe: Recipe,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    what: str,
    step: int,
    said: str,
) -> None:
    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        spoil(patch, {step}, what)
        with pytest.raises(Diverged, match=said) as stopped:
            engine.train(recipe, run)
    assert "\n" not in str(stopped.value)
    assert "--training.on-nan skip" in str(stopped.value)
    assert f"to continue: ranksort train {run} --resume" in capsys.readouterr().out
    assert state(run)["ranksort"]["progress"]["epoch"] == 1
    assert_finite(run)
    (kept,) = (run / "not_finite").iterdir()
    assert str(kept) in str(stopped.value)
    images, targets, about = read_batch(kept)
    assert about["step"] == step
    assert all(name in str(stopped.value) for name in about["files"])
    assert [image.dtype for image in images] == [torch.uint8] * 2
    model = load_model(run).train()
    torch.manual_seed(about["seed"])
    assert model(images, targets)["ranking"] > 0
    recipe.training.on_nan = "skip"
    engine.train(recipe, run, resume=True)
    assert state(run)["global_step"] == 12


@pytest.mark.parametrize("what", ["loss", "logits", "gradient"])
def test_a_run_goes_on_without_the_batch(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], what: str
) -> None:
    recipe.training.on_nan, recipe.training.epochs = "skip", 1
    spoil(monkeypatch, {2, 6}, what)
    engine.train(recipe, tmp_path / "run")
    assert_finite(tmp_path / "run")
    assert capsys.readouterr().err.count("skipped: ") == 2
    assert len(list((tmp_path / "run" / "not_finite").iterdir())) == 2
    with (tmp_path / "run" / "metrics.csv").open() as file:
        values = [row[name] for row in csv.DictReader(file) for name in row if name.startswith("train/") and row[name]]
    assert values
    assert all(math.isfinite(float(value)) for value in values)


@pytest.mark.parametrize("skipped", [set(), {2, 3}, {6}])
def test_a_step_averages_the_gradients_of_its_own_batches(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, skipped: set[int]
) -> None:
    """The last step of an epoch has fewer batches than the others, and so has a step of which some are skipped."""
    recipe.training.epochs, recipe.training.batch_size, recipe.training.accumulate = 1, 8, 4
    recipe.training.on_nan, recipe.optimizer.lr = "skip", 0.0
    spoil(monkeypatch, skipped, "loss")
    step, before = DetectorModule.training_step, DetectorModule.on_before_optimizer_step
    gradients: list[set[float]] = []

    def with_gradient_one(self: DetectorModule, *args: Any) -> Any:
        loss = step(self, *args)
        is_used = self.loss is not None
        return sum((1 * p).sum() for p in self.parameters() if p.requires_grad) if is_used else loss

    def looking(self: DetectorModule, optimizer: torch.optim.Optimizer) -> None:
        before(self, optimizer)
        gradients.append({x for p in self.parameters() if p.grad is not None for x in p.grad.flatten().tolist()})

    monkeypatch.setattr(DetectorModule, "training_step", with_gradient_one)
    monkeypatch.setattr(DetectorModule, "on_before_optimizer_step", looking)
    engine.train(recipe, tmp_path / "run")
    assert gradients == [{1.0}, {1.0}]  # of four batches, and of two


def test_a_run_without_a_finite_step_stops(recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe.training.on_nan = "skip"
    spoil(monkeypatch, set(range(2, 99)), "loss")
    with pytest.raises(Diverged, match=r"step 11, .*; as in the 9 steps before it"):
        engine.train(recipe, tmp_path / "run")
    assert_finite(tmp_path / "run")


def test_the_part_of_the_model_is_named(recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights that are not finite are not saved, either."""
    step, count = DetectorModule.training_step, []

    def stepping(self: DetectorModule, *args: Any) -> Any:
        count.append(1)
        if len(count) == 3:
            with torch.no_grad():
                self.model.head.class_logits.weight.fill_(math.inf)
        return step(self, *args)

    monkeypatch.setattr(DetectorModule, "training_step", stepping)
    with pytest.raises(Diverged, match=r"at step 3, .*first in head\.class_logits\)"):
        engine.train(recipe, tmp_path / "run")
    assert state(tmp_path / "run")["global_step"] == 0
    assert_finite(tmp_path / "run")


def test_weights_that_are_not_numbers_are_not_loaded(recipe: Recipe, tmp_path: Path) -> None:
    """As older versions have saved them: the best ones still are."""
    recipe.training.epochs = 1
    engine.train(recipe, tmp_path / "run")
    content = state(tmp_path / "run")
    content["state_dict"]["model.head.class_logits.bias"][0] = math.nan
    last = tmp_path / "run" / "checkpoints" / "last.ckpt"
    torch.save(content, last)
    with pytest.raises(
        ValueError, match=r"last\.ckpt contains numbers that are not finite, in head\.class_logits\.bias"
    ):
        read_checkpoint(last)
    recipe.training.epochs = 2
    engine.train(recipe, tmp_path / "run", resume=True)
    assert state(tmp_path / "run")["global_step"] == 12


def _mean(rank: int, file: Path) -> None:
    dist.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=3)
    means = mean_of_processes(torch.tensor([1.0 + rank, 10.0 * rank]))
    assert means.tolist() == [2.0, 10.0]


def test_logged_losses_are_the_mean_of_all_processes(tmp_path: Path) -> None:
    processes = [
        multiprocessing.get_context("fork").Process(target=_mean, args=(rank, tmp_path / "store")) for rank in range(3)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0, 0]
