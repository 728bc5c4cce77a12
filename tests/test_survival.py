"""Killed runs and full disks: nothing is damaged, and a run that is resumed ends as if nothing had happened."""

import csv
import multiprocessing
import os
import random
import resource
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from ranksort import engine
from ranksort.checkpoints import read_checkpoint
from ranksort.engine import saving, trainer
from ranksort.engine.module import DetectorModule
from ranksort.recipes import Recipe

fork = multiprocessing.get_context("fork")
ALWAYS = 1e-9  # minutes between autosaves: after each step

Undisturbed = Callable[[Recipe, Path], Path]


def content(run: Path, name: str = "last") -> dict[str, Any]:
    return torch.load(run / "checkpoints" / f"{name}.ckpt", weights_only=True)


def rows(run: Path) -> list[dict[str, str]]:
    with (run / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def assert_as_undisturbed(run: Path, whole: Path) -> None:
    for name in ("last", "best"):
        a, b = content(whole, name), content(run, name)
        assert a["ranksort"]["progress"] == b["ranksort"]["progress"]
        assert all(torch.equal(tensor, b["state_dict"][key]) for key, tensor in a["state_dict"].items())
    assert rows(run) == rows(whole)
    assert not list(run.rglob("*.part"))
    assert (run / "report" / "index.html").is_file()


def trained(recipe: Recipe, run: Path, at: "tuple[str, int] | None", batches: Path) -> int:
    """Trains in a process of its own, which is killed the n-th time that something happens; returns its exit code."""

    def child() -> None:
        os.setsid()
        counts = dict.fromkeys(("step", "evaluation", "write"), 0)

        def counting(what: str, function: Callable[..., Any]) -> Callable[..., Any]:
            def counted(*args: Any, **kwargs: Any) -> Any:
                if what == "step":
                    module, (_, targets), index = args
                    with batches.open("a") as file:
                        file.write(f"{module.current_epoch} {index}: {[target['image_id'] for target in targets]}\n")
                counts[what] += 1
                if (what, counts[what]) == at:
                    os.kill(os.getpid(), signal.SIGKILL)
                return function(*args, **kwargs)

            return counted

        DetectorModule.training_step = counting("step", DetectorModule.training_step)  # type: ignore[method-assign]
        DetectorModule.validation_step = counting("evaluation", DetectorModule.validation_step)  # type: ignore[method-assign]
        os.fsync = counting("write", os.fsync)  # of what has been written and is not renamed yet
        engine.train(recipe, run, resume=run.exists())

    process = fork.Process(target=child)
    process.start()
    process.join(300)
    return process.exitcode if process.exitcode is not None else 1


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Temporary files on another file system than runs, as on most clusters."""
    memory = Path("/dev/shm")
    if not memory.is_dir() or memory.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("there is no second file system, /dev/shm, for temporary files")
    folder = memory / f"ranksort_{os.getpid()}"
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setattr("tempfile.tempdir", None)
    yield
    shutil.rmtree(folder)


@pytest.mark.usefixtures("elsewhere")
def test_killed_runs_end_as_undisturbed_ones(
    tiny_recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        trainer, "LOG_EVERY", 2
    )  # steps, so that a checkpoint within an epoch falls on one that is logged
    tiny_recipe.training.autosave_minutes, tiny_recipe.evaluation.pictures = ALWAYS, 0
    whole, parts, batches = tmp_path / "whole", tmp_path / "parts", tmp_path / "batches"
    assert trained(tiny_recipe, whole, None, batches) == 0
    # The first step; a step in the middle of an epoch; an autosave; an evaluation; the last checkpoint, whose epoch is in the metrics.
    for at, progress in (
        (("step", 1), (0, 0)),
        (("step", 4), (0, 3)),
        (("write", 7), (0, 4)),
        (("evaluation", 2), (1, 0)),
    ):
        assert trained(tiny_recipe, parts, at, batches) == -signal.SIGKILL
        reached = content(parts)["ranksort"]["progress"]
        assert (reached["epoch"], reached["batches"]) == progress
    assert trained(tiny_recipe, parts, ("write", 21), batches) == -signal.SIGKILL
    assert list(parts.rglob("*.part"))
    assert trained(tiny_recipe, parts, None, batches) == 0
    assert_as_undisturbed(parts, whole)
    assert len({row["step"] for row in rows(whole) if row["train/loss"]}) == 6
    lines = batches.read_text().splitlines()
    assert len(lines) > len(set(lines)) == 12  # whatever was trained on again were the same images


@pytest.mark.slow
@pytest.mark.usefixtures("elsewhere")
@pytest.mark.parametrize("seed", range(4))
def test_runs_killed_at_any_moment(tiny_recipe: Recipe, tmp_path: Path, seed: int) -> None:
    """Half of the time is that of steps, the other half that of checkpoints, evaluations and the start."""
    moments = random.Random(seed)
    tiny_recipe.training.autosave_minutes, tiny_recipe.data.workers = ALWAYS, seed % 2
    tiny_recipe.training.ema_decay = (0, 0.9)[seed // 2 % 2]
    started = time.monotonic()
    engine.train(tiny_recipe, tmp_path / "whole")
    seconds = time.monotonic() - started
    run, kills = tmp_path / "parts", 0
    while True:
        process = fork.Process(target=lambda: (os.setsid(), engine.train(tiny_recipe, run, resume=is_begun(run))))
        process.start()
        process.join(moments.uniform(0, seconds) if kills < 8 else 300)
        if process.exitcode is not None:
            assert process.exitcode == 0
            break
        assert process.pid is not None
        os.killpg(process.pid, signal.SIGKILL)
        process.join()
        kills += 1
        if is_begun(run):
            assert read_checkpoint(run).note == ""
        else:
            shutil.rmtree(run, ignore_errors=True)
    assert_as_undisturbed(run, tmp_path / "whole")


def is_begun(run: Path) -> bool:
    return (run / "checkpoints" / "last.ckpt").is_file()


def limit(size: int) -> None:
    """No file may become larger: where disks are full, writing fails in the same way."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))


@pytest.fixture
def full_disk(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """The steps, from when they are set, before which the disk becomes full, or gets room again."""
    step, steps, turns = DetectorModule.training_step, [], list[int]()

    def turning(*args: Any) -> Any:
        if turns:
            steps.append(1)
        if len(steps) in turns:
            limit(50_000 if turns.index(len(steps)) % 2 == 0 else resource.RLIM_INFINITY)
        return step(*args)

    monkeypatch.setattr(DetectorModule, "training_step", turning)
    yield turns
    limit(resource.RLIM_INFINITY)


def test_a_full_disk_ends_a_run_in_a_sentence_and_damages_nothing(
    tiny_recipe: Recipe,
    tmp_path: Path,
    full_disk: list[int],
    capsys: pytest.CaptureFixture[str],
    undisturbed: Undisturbed,
) -> None:
    run, last = tmp_path / "run", tmp_path / "run" / "checkpoints" / "last.ckpt"
    tiny_recipe.evaluation.pictures = 0
    undisturbed(tiny_recipe, tmp_path / "whole")
    full_disk[:] = [8]
    sentence = r"cannot be written \(File too large\): it needs \d+\.\d MB, and [\d,.]+ MB are free there; the previous file is kept"
    with pytest.raises(saving.Unsaved, match=sentence) as raised:
        engine.train(tiny_recipe, run)
    assert "\n" not in str(raised.value)
    assert f"to continue: ranksort train {run} --resume" in capsys.readouterr().out
    assert {file.name for file in last.parent.iterdir()} == {"best.ckpt", "last.ckpt"}
    assert content(run)["ranksort"]["progress"]["epoch"] == 1
    limit(resource.RLIM_INFINITY)
    engine.train(tiny_recipe, run, resume=True)
    assert_as_undisturbed(run, tmp_path / "whole")


def test_training_goes_on_where_an_autosave_finds_no_room(
    tiny_recipe: Recipe, tmp_path: Path, full_disk: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    tiny_recipe.training.autosave_minutes, tiny_recipe.training.epochs = ALWAYS, 1
    full_disk[:] = [2, 4]
    engine.train(tiny_recipe, tmp_path / "run")
    said = capsys.readouterr().err
    assert said.count("last.ckpt cannot be written (File too large)") == said.count("Training continues") == 2
    assert content(tmp_path / "run")["global_step"] == 6


def test_a_damaged_checkpoint_does_not_hide_the_other(
    tiny_recipe: Recipe, tmp_path: Path, capsys: pytest.CaptureFixture[str], undisturbed: Undisturbed
) -> None:
    whole, run = tmp_path / "whole", tmp_path / "run"
    tiny_recipe.evaluation.pictures, tiny_recipe.training.epochs = 0, 1
    undisturbed(tiny_recipe, run)
    tiny_recipe.training.epochs = 2
    undisturbed(tiny_recipe, whole)
    last, best = (run / "checkpoints" / name for name in ("last.ckpt", "best.ckpt"))
    good = last.read_bytes()
    flipped = bytearray(good)
    flipped[good.index(bytes(content(run)["state_dict"]["model.head.class_logits.weight"].untyped_storage())) + 5] ^= 1
    for damaged in (flipped, good[: len(good) // 2], b""):
        last.write_bytes(damaged)
        capsys.readouterr()
        shutil.copytree(run, tmp_path / "copy")
        engine.train(tiny_recipe, tmp_path / "copy", resume=True)
        out = capsys.readouterr().out
        assert f"warning: {tmp_path / 'copy' / 'checkpoints' / 'last.ckpt'} cannot be read as a checkpoint" in out
        assert f": continuing from {tmp_path / 'copy' / 'checkpoints' / 'best.ckpt'}\n" in out
        assert "continuing with epoch 2 of 2\n" in out
        assert_as_undisturbed(tmp_path / "copy", whole)
        shutil.rmtree(tmp_path / "copy")
    last.write_bytes(good)
    best.write_bytes(flipped)
    checkpoint = read_checkpoint(run)
    assert checkpoint.path == last
    assert f"{best} cannot be read as a checkpoint" in checkpoint.note
    with pytest.raises(ValueError, match=rf"{best} cannot be read .*; {last} can be read"):
        read_checkpoint(best)


def test_resuming_what_is_over(
    tiny_recipe: Recipe, tmp_path: Path, capsys: pytest.CaptureFixture[str], undisturbed: Undisturbed
) -> None:
    """It says how to train longer, and evaluates nothing again, unless the report is missing."""
    tiny_recipe.evaluation.pictures, tiny_recipe.training.epochs = 0, 1
    run = undisturbed(tiny_recipe, tmp_path / "run")
    report = run / "report" / "index.html"
    capsys.readouterr()
    assert engine.train(tiny_recipe, run, resume=True) is None
    said = f"1 epoch has been trained: {report}\nto train longer: ranksort train {run} --resume --training.epochs 2\n"
    assert capsys.readouterr().out == said
    report.unlink()
    assert engine.train(tiny_recipe, run, resume=True) is not None
    assert report.is_file()
    tiny_recipe.training.epochs, tiny_recipe.training.patience = 5, 1
    tiny_recipe.model.score_threshold = 0.9999
    engine.train(tiny_recipe, tmp_path / "idle")
    stopped = "stopped at epoch 2 of 5, after 1 evaluation without a higher AP (--training.patience)"
    assert stopped in capsys.readouterr().out
    for _ in range(2):
        engine.train(tiny_recipe, tmp_path / "idle", resume=True)
        out = capsys.readouterr().out
        assert stopped in out
        assert "continuing" not in out
        (tmp_path / "idle" / "report" / "index.html").unlink(missing_ok=True)
    assert "--training.patience 2" in said.replace("epochs", "patience")


def test_a_metrics_file_that_was_cut_is_read(tiny_recipe: Recipe, tmp_path: Path, undisturbed: Undisturbed) -> None:
    tiny_recipe.evaluation.pictures, tiny_recipe.training.epochs = 0, 1
    run = undisturbed(tiny_recipe, tmp_path / "run")
    expected = rows(run)
    with (run / "metrics.csv").open("a") as file:
        file.write("1,0.5")
    tiny_recipe.training.epochs = 2
    engine.train(tiny_recipe, run, resume=True)
    assert rows(run)[: len(expected)] == expected
    assert len(rows(run)) == 2 * len(expected)
