"""What started this process (torchrun, SLURM or a person), and whether it started as many processes as the settings ask for."""

import os
import subprocess

from .recipes.recipe import TrainingSettings
from .words import counted


def check_processes(training: TrainingSettings) -> None:
    """Check that torchrun, SLURM or another launcher has started as many processes as the batch is divided by.

    With fewer, part of each batch would be missing, at the learning rate of the whole batch; with more, each would train its own run.

    Args:
        training: with `devices` counted, not 0.

    Raises:
        ValueError: naming the options to set.
    """
    started = _started()
    if started is None:
        return
    launcher, total, per_node = started
    expected = training.devices * training.nodes
    if total == expected and per_node in (None, training.devices):
        return
    devices = per_node or (total if total % training.nodes else total // training.nodes)
    nodes = max(total // devices, 1)
    on_each = f", {per_node} on each machine" if per_node is not None and nodes > 1 else ""
    raise ValueError(
        f"{launcher} started {counted(total, 'process')}{on_each}, but --training.devices {training.devices} and "
        f"--training.nodes {training.nodes} ask for {expected}: set --training.devices {devices} and --training.nodes {nodes}, or start "
        + (
            f"{training.devices} on each of {training.nodes} machines"
            if training.nodes > 1
            else f"{expected} on one machine"
        )
    )


def in_slurm() -> bool:
    """Whether SLURM started this process with srun. In an interactive SLURM shell we start the processes ourselves."""
    return "SLURM_NTASKS" in os.environ and os.environ.get("SLURM_JOB_NAME") not in ("bash", "interactive")


def slurm_job() -> str:
    """The id of the SLURM job, for requeueing it; "" if there is none."""
    array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    if not in_slurm():
        return ""
    return f"{array}_{task}" if array and task else os.environ.get("SLURM_JOB_ID", "")


def queue_again() -> None:
    """Requeue the SLURM job of this process, if it has one, and print a message if that fails."""
    if job := slurm_job():
        try:
            subprocess.run(["scontrol", "requeue", job], check=True)
        except (OSError, subprocess.CalledProcessError) as error:
            print(f"the SLURM job {job} could not be requeued ({error})")


def _started() -> tuple[str, int, int | None] | None:
    """The launcher, and how many processes it started in total and per machine, if known; None if this process was started alone."""
    if "TORCHELASTIC_RUN_ID" in os.environ:
        return "torchrun", _number("WORLD_SIZE") or 1, _number("LOCAL_WORLD_SIZE")
    if in_slurm():
        tasks, per_node = _number("SLURM_NTASKS") or 1, _number("SLURM_NTASKS_PER_NODE")
        if tasks > 1 and per_node is None:
            raise ValueError(
                f"SLURM started {tasks} processes with --ntasks, which does not say on which machines: use --ntasks-per-node and --nodes"
            )
        nodes = _number("SLURM_NNODES")
        return "SLURM", tasks, per_node or (tasks // nodes if nodes else None)
    total = _number("WORLD_SIZE")
    if total is None or "LOCAL_RANK" not in os.environ:  # without a local rank, we start the processes ourselves
        return None
    return "the launcher that set WORLD_SIZE", total, _number("LOCAL_WORLD_SIZE")


def _number(variable: str) -> int | None:
    text = os.environ.get(variable, "")
    return int(text) if text.isdecimal() else None
