"""`train` and `quickstart`."""

import itertools
import os
import shlex
import time
from collections.abc import Callable
from pathlib import Path

from ..launch import slurm_job
from ..recipes.find import get_recipe, recipe_functions
from ..recipes.recipe import (
    DataSettings,
    EvaluationSettings,
    ModelSettings,
    OptimizerSettings,
    Recipe,
    TrainingSettings,
)
from .arguments import TIME, RecipeName, check_folder
from .defaults import latest_run, moved_milestones


def quickstart(
    out: Path = Path("quickstart"), recipe: str = "ranksort_atss_lite0_small", epochs: int = 4, workers: int = 2
) -> None:
    """Generate a small data set, train a detector on it in minutes, and report its results.

    Args:
        out: folder for the data set, the run and its report.
        recipe: a recipe whose name ends in _small, or file.py:function for your own.
        epochs: passes over the 400 training images.
        workers: number of processes that load images.
    """
    from ..data.synthetic import write_synthetic_dataset

    if recipe in recipe_functions() and not recipe.endswith("_small"):
        small = " or ".join(name for name in recipe_functions() if name.endswith("_small"))
        raise ValueError(f"{recipe} is for COCO on GPUs, but quickstart is for minutes on a CPU: choose {small}")
    check_folder(out)
    chosen = get_recipe(recipe)
    print(f"writing 500 images to {out / 'data'} ...", flush=True)
    root = write_synthetic_dataset(out / "data")
    chosen.data.root, chosen.data.workers = str(root), workers
    chosen.model.min_size, chosen.model.max_size = 256, 384  # the size of the images
    chosen.data.train_min_sizes = ()
    chosen.optimizer.milestones = moved_milestones(chosen, epochs)
    chosen.optimizer.backbone_rate = 1.0  # drawings are not like ImageNet's photos: AP 57.6 instead of 55.1 at a tenth
    chosen.training.output, chosen.training.epochs = str(out / "runs"), epochs
    run = _train(chosen, resume=False)
    print(
        f"\nThe data set is in {root}, checkpoints and training curves are in {run}.\n"
        "Next:\n"
        f"  look at           {run / 'report' / 'index.html'}\n"
        f"  detect            ranksort predict {_quoted(run)} {_quoted(root / 'images')} --out {_quoted(out / 'predictions')}\n"
        "  check your data   ranksort check-data DIR\n"
        f"  train on it       ranksort train {shlex.quote(recipe)} --data.root DIR\n"
        "where DIR is a COCO data set or a COCO export from Roboflow, CVAT, Label Studio, ... For YOLO and VOC: ranksort import-data."
    )


def train_command(defaults: Recipe) -> Callable[..., None]:
    """Make the command `train`, whose options default to the settings of a recipe."""

    def train(
        recipe: RecipeName,
        /,
        data: DataSettings = defaults.data,
        model: ModelSettings = defaults.model,
        optimizer: OptimizerSettings = defaults.optimizer,
        training: TrainingSettings = defaults.training,
        evaluation: EvaluationSettings = defaults.evaluation,
        resume: bool = False,
    ) -> None:
        """Train a detector. `ranksort train RECIPE --help` has the recipe's settings as defaults.

        Args:
            recipe: name of a recipe, file.py:function for your own, or a run folder to use its settings.
            resume: continue the run in that folder, or the latest run of that recipe, with its settings.
        """
        run = Path(recipe) if Path(recipe).is_dir() else None
        _train(Recipe(defaults.name, data, model, optimizer, training, evaluation), resume, run)

    return train


def _train(recipe: Recipe, resume: bool, run: Path | None = None) -> Path:
    """Train in a new run folder, or resume, and print the report. Returns the run folder."""
    from ..engine import train as run_training

    folder, now = Path(recipe.training.output) / recipe.name, time.strftime(TIME)
    names = itertools.chain([now], (f"{now}-{number}" for number in itertools.count(2)))
    new = next(folder / name for name in names if not (folder / name).exists())
    if not resume and (started := _queued_again(folder)):
        print(f"continuing {started}, which this SLURM job started before it was requeued")
        resume, run = True, started
    run = (run or latest_run(recipe)) if resume else new
    run_training(recipe, run, resume=resume)
    return run


def _quoted(path: Path) -> str:
    return shlex.quote(str(path))


def _queued_again(folder: Path) -> Path | None:
    """The run in that folder that this SLURM job started, if the job has been requeued."""
    if os.environ.get("SLURM_RESTART_COUNT", "0") == "0":
        return None
    started = [f.parent for f in sorted(folder.glob("*/slurm_job")) if f.read_text(encoding="utf-8") == slurm_job()]
    return next((run for run in reversed(started) if any(run.glob("checkpoints/*.ckpt"))), None)
