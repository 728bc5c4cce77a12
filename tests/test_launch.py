import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ranksort import launch
from ranksort.recipes.recipe import TrainingSettings

VARIABLES = (
    "TORCHELASTIC_RUN_ID",
    "WORLD_SIZE",
    "LOCAL_WORLD_SIZE",
    "LOCAL_RANK",
    "SLURM_NTASKS",
    "SLURM_NTASKS_PER_NODE",
)


def environment(patch: pytest.MonkeyPatch, variables: str) -> None:
    for name in (*VARIABLES, "SLURM_NNODES", "SLURM_JOB_NAME", "SLURM_JOB_ID", "SLURM_ARRAY_JOB_ID"):
        patch.delenv(name, raising=False)
    for name, _, value in (variable.partition("=") for variable in variables.split()):
        patch.setenv(name, value)


RECIPE = """
from ranksort.recipes import Recipe
from ranksort.recipes.coco import ranksort_atss_lite0_small


def small() -> Recipe:
    recipe = ranksort_atss_lite0_small()
    recipe.model.backbone, recipe.model.pretrained_backbone = "timm/lcnet_035", False
    recipe.model.channels, recipe.model.head_convs, recipe.model.min_size = 64, 1, 96
    recipe.training.batch_size, recipe.training.epochs, recipe.data.workers = 2, 1, 0
    return recipe
"""
TORCHRUN = "TORCHELASTIC_RUN_ID=x LOCAL_RANK=0 "


@pytest.mark.parametrize(
    ("variables", "devices", "nodes"),
    [
        ("", 4, 2),
        (TORCHRUN + "WORLD_SIZE=4 LOCAL_WORLD_SIZE=2", 2, 2),
        ("LOCAL_RANK=1 WORLD_SIZE=2", 2, 1),
        ("WORLD_SIZE=1", 2, 1),  # of pods, say: the processes in this one are ours to start
        ("SLURM_NTASKS=4 SLURM_NTASKS_PER_NODE=2 SLURM_NNODES=2", 2, 2),
        ("SLURM_NTASKS=1", 1, 1),
        ("SLURM_NTASKS=1 SLURM_JOB_NAME=bash", 2, 1),
    ],
)
def test_as_many_processes_as_devices(
    monkeypatch: pytest.MonkeyPatch, variables: str, devices: int, nodes: int
) -> None:
    environment(monkeypatch, variables)
    launch.check_processes(TrainingSettings(devices=devices, nodes=nodes))


@pytest.mark.parametrize(
    ("variables", "devices", "nodes", "said"),
    [
        (
            TORCHRUN + "WORLD_SIZE=1 LOCAL_WORLD_SIZE=1",
            2,
            1,
            "torchrun started 1 process, .*devices 1 and --training.nodes 1,",
        ),
        (
            TORCHRUN + "WORLD_SIZE=2 LOCAL_WORLD_SIZE=2",
            1,
            1,
            "torchrun started 2 processes, .*devices 2 and --training.nodes 1,",
        ),
        (TORCHRUN + "WORLD_SIZE=2 LOCAL_WORLD_SIZE=1", 2, 1, "1 on each machine, .*devices 1 and --training.nodes 2,"),
        (
            TORCHRUN + "WORLD_SIZE=4 LOCAL_WORLD_SIZE=2",
            4,
            2,
            "ask for 8: set --training.devices 2 and --training.nodes 2,",
        ),
        ("LOCAL_RANK=0 WORLD_SIZE=1", 2, 1, "WORLD_SIZE started 1 process, .*devices 1 "),
        ("SLURM_NTASKS=1", 2, 1, "SLURM started 1 process, .*set --training.devices 1 "),
        ("SLURM_NTASKS=2 SLURM_NTASKS_PER_NODE=2", 1, 1, "set --training.devices 2 and --training.nodes 1,"),
        ("SLURM_NTASKS=2 SLURM_NTASKS_PER_NODE=1 SLURM_NNODES=2", 2, 1, "devices 1 and --training.nodes 2,"),
        ("SLURM_NTASKS=4", 4, 1, "--ntasks-per-node"),
    ],
)
def test_other_numbers_of_processes_are_refused(
    monkeypatch: pytest.MonkeyPatch, variables: str, devices: int, nodes: int, said: str
) -> None:
    environment(monkeypatch, variables)
    with pytest.raises(ValueError, match=said) as error:
        launch.check_processes(TrainingSettings(devices=devices, nodes=nodes))
    assert "\n" not in str(error.value)


def test_jobs_of_slurm(monkeypatch: pytest.MonkeyPatch) -> None:
    environment(monkeypatch, "SLURM_JOB_ID=12")
    assert launch.slurm_job() == ""
    environment(monkeypatch, "SLURM_NTASKS=1 SLURM_JOB_ID=12")
    assert launch.slurm_job() == "12"
    environment(monkeypatch, "SLURM_NTASKS=1 SLURM_JOB_ID=14 SLURM_ARRAY_JOB_ID=12 SLURM_ARRAY_TASK_ID=2")
    assert launch.slurm_job() == "12_2"


def test_torchrun_with_more_processes_than_devices(tiny_data: Path, tmp_path: Path) -> None:
    """Each of them would train a run of its own."""
    (tmp_path / "main.py").write_text("from ranksort.cli import main\n\nmain()\n")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    train = ["train", "ranksort_atss_lite0_small", "--data.root", str(tiny_data), "--training.output", str(tmp_path)]
    done = subprocess.run([*torchrun, str(tmp_path / "main.py"), *train], capture_output=True, text=True, timeout=120)
    assert done.returncode
    assert "ranksort: torchrun started 2 processes" in done.stderr
    assert not (tmp_path / "ranksort_atss_lite0_small").exists()


@pytest.mark.slow
def test_all_launchers_give_the_same_run(tiny_data: Path, tmp_path: Path) -> None:
    """Two processes of Lightning, of torchrun and of SLURM, which is there by its variables only: the weights are equal bit for bit."""
    (tmp_path / "my_recipes.py").write_text(RECIPE)
    (tmp_path / "main.py").write_text("from ranksort.cli import main\n\nmain()\n")
    python, script = sys.executable, str(tmp_path / "main.py")
    train = ["train", f"{tmp_path}/my_recipes.py:small", "--data.root", str(tiny_data), "--training.devices", "2"]
    slurm = {
        "SLURM_NTASKS": "2",
        "SLURM_NTASKS_PER_NODE": "2",
        "SLURM_NNODES": "1",
        "SLURM_NODEID": "0",
        "SLURM_JOB_ID": "7",
    }
    slurm |= {"SLURM_JOB_NAME": "train", "SLURM_NODELIST": "localhost", "MASTER_ADDR": "127.0.0.1"}
    ways: dict[str, list[tuple[list[str], dict[str, str]]]] = {
        "devices": [([python, script], {})],
        "torchrun": [([python, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", script], {})],
        "slurm": [([python, script], slurm | {"SLURM_PROCID": rank, "SLURM_LOCALID": rank}) for rank in "01"],
    }
    weights, numbers = {}, {}
    for way, started in ways.items():
        runs = [
            subprocess.Popen([*command, *train, "--training.output", str(tmp_path / way)], env=os.environ | variables)
            for command, variables in started
        ]
        assert [run.wait(timeout=900) for run in runs] == [0] * len(runs)
        (file,) = (tmp_path / way).glob("small/*/checkpoints/last.ckpt")
        weights[way] = torch.load(file, weights_only=True)["state_dict"]
        (report,) = (tmp_path / way).glob("small/*/report/report.json")
        numbers[way] = json.loads(report.read_text())["summary"]
    for way in ("torchrun", "slurm"):
        assert numbers[way] == numbers["devices"]
        assert all(torch.equal(tensor, weights["devices"][name]) for name, tensor in weights[way].items())
