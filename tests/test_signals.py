"""Signals to real processes: to all of a run, its processes that load images among them, or to one of two that train."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from subprocess import PIPE

import pytest
import torch
from forked import run_forked

from ranksort import cli
from ranksort.interrupt import Interrupt, Terminated

RECIPE = """
import os
import signal

from ranksort.models import ATSS
from ranksort.recipes import Recipe
from ranksort.recipes.coco import ranksort_atss_lite0_small

forward, calls = ATSS.forward, []


def signalling(self, *args):
    calls.append(1)
    for planned in os.environ.get("SIGNALS", "").split():  # such as 3:SIGTERM:group or 3:SIGTERM:1, the rank
        number, name, target = planned.split(":")
        if len(calls) == int(number):
            if target == "group":
                os.killpg(0, signal.Signals[name])
            elif target == os.environ.get("LOCAL_RANK", "0"):
                os.kill(os.getpid(), signal.Signals[name])
    return forward(self, *args)


def small() -> Recipe:
    ATSS.forward = signalling
    recipe = ranksort_atss_lite0_small()
    recipe.model.backbone, recipe.model.pretrained_backbone = "timm/lcnet_035", False
    recipe.model.channels, recipe.model.head_convs, recipe.model.min_size = 64, 1, 96
    recipe.training.batch_size, recipe.training.epochs, recipe.data.workers = 2, 1, 1
    if os.environ.get("SIGNAL_AT_FORK"):  # of the first worker
        os.register_at_fork(after_in_parent=lambda: calls or os.kill(os.getpid(), signal.SIGTERM))
    return recipe
"""


def train_arguments(folder: Path, data: Path) -> list[str]:
    (folder / "my_recipes.py").write_text(RECIPE)
    return ["train", f"{folder}/my_recipes.py:small", "--data.root", str(data), "--training.output", f"{folder}/runs"]


def train(folder: Path, data: Path, *arguments: str, signals: str = "") -> "subprocess.CompletedProcess[str]":
    variables = {"SIGNALS": signals, "OMP_NUM_THREADS": "1"}
    return run_forked([*train_arguments(folder, data), *arguments], variables, script=folder / "main.py")


def train_anew(
    folder: Path, data: Path, *arguments: str, signals: str = "", stdout: int = PIPE, stderr: int = PIPE
) -> "subprocess.CompletedProcess[str]":
    """In a new interpreter, with an end of its own, as pipes need it."""
    (folder / "main.py").write_text("from ranksort.cli import main\n\nmain()\n")
    return subprocess.run(
        [sys.executable, f"{folder}/main.py", *train_arguments(folder, data), *arguments],
        env=os.environ | {"SIGNALS": signals, "OMP_NUM_THREADS": "1"},
        stdout=stdout,
        stderr=stderr,
        text=True,
        timeout=120,
        start_new_session=True,
    )


def last(folder: Path) -> dict[str, object]:
    (file,) = folder.glob("runs/small/*/checkpoints/last.ckpt")
    return torch.load(file, weights_only=True)


def assert_stopped(run: "subprocess.CompletedProcess[str]", folder: Path, batches: int) -> None:
    assert run.returncode == 143, run.stderr
    assert "Traceback" not in run.stderr
    assert run.stdout.count("to continue: ranksort train ") == 1
    assert run.stderr.count("stopped by SIGTERM") == 1
    progress = last(folder)["ranksort"]["progress"]  # type: ignore[index]
    assert (progress["epoch"], progress["batches"]) == (0, batches)


def test_sigterm_to_a_run_and_its_worker(tiny_data: Path, tmp_path: Path) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    whole.mkdir()
    parts.mkdir()
    done = train(whole, tiny_data)
    assert done.returncode == 0, done.stderr
    assert_stopped(train(parts, tiny_data, signals="2:SIGTERM:group"), parts, 2)
    resumed = train(parts, tiny_data, "--resume")
    assert resumed.returncode == 0, resumed.stderr
    a, b = last(whole)["state_dict"], last(parts)["state_dict"]
    assert all(torch.equal(tensor, b[name]) for name, tensor in a.items())  # type: ignore[attr-defined, index]


def test_sigterm_while_workers_are_forked(tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Python swallows what is raised within the hooks of a fork."""
    monkeypatch.setenv("SIGNAL_AT_FORK", "1")
    assert_stopped(train(tmp_path, tiny_data), tmp_path, 1)


def test_sigterm_to_one_of_two_processes(tiny_data: Path, tmp_path: Path) -> None:
    """Both stop after the same batch."""
    assert_stopped(train(tmp_path, tiny_data, "--training.devices", "2", signals="1:SIGTERM:1"), tmp_path, 1)


def test_a_process_that_dies_ends_the_other(tiny_data: Path, tmp_path: Path) -> None:
    """With a sentence of what happened, whoever notices first."""
    run = train(tmp_path, tiny_data, "--training.devices", "2", signals="2:SIGKILL:1")
    assert run.returncode == 2, run.stderr
    assert run.stderr.count("ranksort: another process of this run") == 1
    assert "Traceback" not in run.stderr


def test_a_process_ends_with_the_one_that_started_it(tmp_path: Path) -> None:
    """As the processes of a run do whose first one is killed while they wait for it."""
    script = "import sys, time\nfrom ranksort.engine import peers\npeers._SECONDS = 0.1\npeers.end_with_others()\n"
    child = f"{script}print('waiting', flush=True)\ntime.sleep(60)"
    parent = f"{script}import os, subprocess\nsubprocess.Popen([sys.executable, '-c', {child!r}], env=os.environ | {{'LOCAL_RANK': '1'}})"
    process = subprocess.Popen(
        [sys.executable, "-c", f"{parent}\ntime.sleep(60)"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "waiting\n"
    process.kill()
    _, said = process.communicate(timeout=30)  # ends when the child has closed the pipes, too
    assert "the process that started this one has ended" in said


def test_signals_which_torchrun_passes_on_are_not_second_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("TORCHELASTIC_RUN_ID", "OTHER"):
        monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
        monkeypatch.setenv(variable, "1")
        with Interrupt("") as interrupt:
            interrupt.waits = True
            os.kill(os.getpid(), signal.SIGINT)
            if variable == "OTHER":
                with pytest.raises(Terminated):
                    os.kill(os.getpid(), signal.SIGTERM)
            else:
                os.kill(os.getpid(), signal.SIGTERM)
            assert interrupt.stop == signal.SIGINT


def test_slurm_queues_a_job_again(tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SIGUSR1 announces the end of its time, SIGTERM is the end; queued again, the same command goes on with the run."""
    scontrol = tmp_path / "scontrol"
    scontrol.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/said\n')
    scontrol.chmod(0o755)
    variables = {"NTASKS": 1, "PROCID": 0, "LOCALID": 0, "NODEID": 0, "JOB_ID": 4711}
    for name, value in variables.items():
        monkeypatch.setenv(f"SLURM_{name}", str(value))
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    stopped = train(tmp_path, tiny_data, signals="2:SIGUSR1:0 4:SIGTERM:0")
    assert stopped.returncode == 143, stopped.stderr
    assert (tmp_path / "said").read_text() == "requeue 4711\n"
    assert last(tmp_path)["global_step"] == 4
    assert not list(Path().glob("hpc_ckpt*"))
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    done = train(tmp_path, tiny_data)
    assert done.returncode == 0, done.stderr
    assert "which this SLURM job started" in done.stdout
    assert last(tmp_path)["global_step"] > 4  # of the only run


@pytest.mark.parametrize(("number", "code", "name"), [(signal.SIGINT, 130, "Ctrl-C"), (signal.SIGTERM, 143, "SIGTERM")])
def test_other_commands_end_in_one_line(
    tiny_data: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    number: signal.Signals,
    code: int,
    name: str,
) -> None:
    from ranksort.data import check

    before = signal.getsignal(number)
    monkeypatch.setattr(check, "read_image", lambda path: os.kill(os.getpid(), number))
    with pytest.raises(SystemExit) as stopped:
        cli.main(["check-data", f"{tiny_data}/images", f"{tiny_data}/annotations/instances_val.json"])
    assert stopped.value.code == code
    assert capsys.readouterr().err == f"ranksort: stopped by {name}\n"
    assert signal.getsignal(number) == before


def test_a_signal_during_an_import_is_not_swallowed(tmp_path: Path) -> None:
    (tmp_path / "swallows.py").write_text(
        "import os, signal\ntry:\n    import signals\nexcept BaseException:\n    print('swallowed')\n"
    )
    (tmp_path / "signals.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGTERM)\nos.getpid()\n")
    (tmp_path / "own.py").write_text("import swallows\n")
    command = [sys.executable, "-c", "from ranksort.cli import main; main(['train', 'own.py:recipe'])"]
    paths = os.pathsep.join([str(tmp_path), *sys.path])
    done = subprocess.run(command, cwd=tmp_path, env=os.environ | {"PYTHONPATH": paths}, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (143, "", "ranksort: stopped by SIGTERM\n")


def test_sigusr1_before_there_is_anything_to_save_does_no_harm(
    tiny_data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from ranksort.data import check

    monkeypatch.setattr(check, "darkness", lambda *_: os.kill(os.getpid(), signal.SIGUSR1))
    cli.main(["check-data", f"{tiny_data}/images", f"{tiny_data}/annotations/instances_val.json"])
    assert "usable for" in capsys.readouterr().out


def test_closed_pipe() -> None:
    """As after `ranksort recipes | head -1`: no error is reported, and none from Python's own end."""
    script = "import sys, time; time.sleep(1); from ranksort.cli import main; main(['recipes'])"
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    assert process.stderr.read() == b""
    assert process.wait(30) == 0


def test_a_run_goes_on_without_a_reader(tiny_data: Path, tmp_path: Path) -> None:
    """As `ranksort train ... 2>&1 | head -1` does, with a worker; SIGTERM still stops it with all that it has learnt."""
    reading, writing = os.pipe()
    os.close(reading)
    stopped = train_anew(tmp_path, tiny_data, signals="4:SIGTERM:0", stdout=writing, stderr=writing)
    os.close(writing)
    assert stopped.returncode == 143
    assert last(tmp_path)["global_step"] == 4


def test_an_error_with_workers_does_not_hang(tiny_data: Path, tmp_path: Path) -> None:
    """A validation image that cannot be read: the loader is left open, and its worker deaf to SIGTERM."""
    data = shutil.copytree(tiny_data, tmp_path / "data", copy_function=shutil.copy)
    content = json.loads((data / "annotations" / "instances_val.json").read_bytes())
    (data / "images" / content["images"][0]["file_name"]).write_bytes(b"no image")
    run = train_anew(tmp_path, data)
    assert run.returncode == 2
    assert run.stderr.count("cannot be read") == 1
    assert "Traceback" not in run.stderr
