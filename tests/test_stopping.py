"""When a run ends before its last epoch, and what it says meanwhile."""

import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from ranksort import engine
from ranksort.engine import log_lines
from ranksort.engine.log_lines import duration
from ranksort.engine.stopping import Stopping
from ranksort.models import ATSS
from ranksort.recipes import Recipe
from ranksort.recipes.recipe import TrainingSettings


@pytest.mark.parametrize(
    ("best", "values", "expected"),
    [("AP", [0.1, 0.3, 0.3, float("nan"), 0.2], (0.3, 2, 3)), ("oLRP", [0.9, 0.7, 0.7, 0.8, 0.6], (0.6, 5, 0))],
)
def test_the_best_evaluation(best: Any, values: list[float], expected: tuple[float, int, int]) -> None:
    stopping = Stopping(TrainingSettings(best=best, epochs=9, patience=3))
    progress = stopping.start()
    for epoch, value in enumerate(values, 1):
        assert stopping.enough(progress, out_of_time=False) is None
        progress["epoch"] = epoch
        stopping.take(value, progress)
    assert (progress["best"], progress["best_epoch"], progress["since_best"]) == expected
    assert bool(stopping.enough(progress, out_of_time=False)) == (best == "AP")


@pytest.mark.parametrize(
    ("seconds", "text"), [(4.4, "4 s"), (59.7, "1 min"), (750, "12 min"), (3599, "1 h 00 min"), (11100, "3 h 05 min")]
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def last(run: Path) -> Any:
    return torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)


def test_patience_ends_a_run_also_when_it_is_resumed(
    tiny_recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing is ever found: after the first evaluation none is better. It stops in between, and waits no longer for that."""
    tiny_recipe.model.score_threshold, tiny_recipe.evaluation.pictures = 0.9999, 0
    tiny_recipe.training.epochs, tiny_recipe.training.patience, tiny_recipe.training.best = 5, 2, "oLRP"
    run, forward, batches = tmp_path / "run", ATSS.forward, []

    def interrupted(self: ATSS, *args: Any) -> Any:
        batches.append(self.training)
        if self.training and sum(batches) == 14:  # in the third epoch of six batches
            raise KeyboardInterrupt
        return forward(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(ATSS, "forward", interrupted)
        with pytest.raises(KeyboardInterrupt):
            engine.train(tiny_recipe, run)
    assert last(run)["ranksort"]["progress"]["since_best"] == 1
    engine.train(tiny_recipe, run, resume=True)
    out = capsys.readouterr().out
    assert "continuing with epoch 3 of 5\n" in out
    assert "stopped at epoch 3 of 5, after 2 evaluations without a lower oLRP" in out
    assert "best: oLRP 100.0 after epoch 1, evaluated again" in out
    assert last(run)["global_step"] == 18
    assert torch.load(run / "checkpoints" / "best.ckpt", weights_only=True)["global_step"] == 6
    for patience, steps in ((2, 18), (3, 24)):
        tiny_recipe.training.patience = patience
        engine.train(tiny_recipe, run, resume=True)
        assert last(run)["global_step"] == steps


def test_a_run_out_of_time_is_saved_reported_and_resumed(
    tiny_recipe: Recipe,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    undisturbed: Callable[[Recipe, Path], Path],
) -> None:
    """After the second batch of the first epoch, before any evaluation; what follows is as if it had gone on."""
    tiny_recipe.training.epochs = 1
    undisturbed(tiny_recipe, tmp_path / "whole")
    run, forward, batches = tmp_path / "run", ATSS.forward, []
    tiny_recipe.training.max_minutes = 60.0
    now = time.monotonic

    def late(self: ATSS, *args: Any) -> Any:
        batches.append(self.training)
        if self.training and sum(batches) == 2:
            monkeypatch.setattr(time, "monotonic", lambda: now() + 3600)
        return forward(self, *args)

    monkeypatch.setattr(ATSS, "forward", late)
    report = engine.train(tiny_recipe, run)
    assert report is not None
    assert (run / "report" / "index.html").is_file()
    assert not (run / "checkpoints" / "best.ckpt").exists()
    assert last(run)["global_step"] == 2
    out = capsys.readouterr().out
    assert (
        f"stopped in epoch 1 of 1: --training.max-minutes 60 reached\nto continue: ranksort train {run} --resume" in out
    )
    engine.train(tiny_recipe, run, resume=True)
    assert "continuing with epoch 1 of 1, after 2 of its batches" in capsys.readouterr().out
    whole = last(tmp_path / "whole")["state_dict"]
    assert all(torch.equal(tensor, whole[name]) for name, tensor in last(run)["state_dict"].items())


def test_lines_where_there_is_no_terminal(
    tiny_recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Here one for each batch, and no control codes."""
    monkeypatch.setattr(log_lines, "_FIRST_SECONDS", 0.0)
    monkeypatch.setattr(log_lines, "_SECONDS", 0.0)
    tiny_recipe.training.batch_size, tiny_recipe.training.accumulate = 4, 2
    engine.train(tiny_recipe, tmp_path / "run")
    out = capsys.readouterr().out
    said = re.findall(
        r"\d\d:\d\d:\d\d  (epoch . of 2, step . of 3): loss (\d\.\d{3}), \d+\.\d images/s, \d+ s left", out
    )
    assert [where for where, _ in said] == [
        f"epoch {e} of 2, step {s} of 3" for e in (1, 2) for s in (1, 1, 2, 2, 3, 3)
    ]
    assert all(float(loss) > 1 for _, loss in said)
    for after in (" after epoch 1", " after epoch 2", ""):
        assert re.search(rf"evaluating{after}: 4 of 4 images, \d+\.\d images/s, 0 s left", out)
    assert "\r" not in out
    assert "\x1b" not in out
