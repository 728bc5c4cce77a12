"""The default settings of the options of `train` and `test`."""

import itertools
import json
from collections.abc import Sequence
from pathlib import Path

from ..recipes.detectors import is_file, recorded
from ..recipes.find import get_recipe
from ..recipes.recipe import Recipe

# Factors for a recipe's learning rate and warm-up when training starts from --training.weights; see benchmarks/README.md.
FINE_TUNING_RATE = 0.5
FINE_TUNING_WARMUP = 0.2


def default_recipe(arguments: Sequence[str]) -> Recipe:
    """The recipe with the defaults of `train` and `test`: a named one, or the recipe of a run or checkpoint."""
    command, source = [*arguments, "", ""][:2]
    if command not in ("train", "test") or (source.startswith("-") and {"-h", "--help"} & set(arguments)):
        return Recipe()
    if not source or source.startswith("-"):
        raise ValueError(
            f"`ranksort {command}` needs a {'RECIPE' if command == 'train' else 'CHECKPOINT'} as its first argument"
        )
    if command == "test":
        from ..checkpoints import read_checkpoint

        return read_checkpoint(source).recipe
    resume, run = "--resume" in arguments, Path(source)
    if resume and len(run.parts) > 1 and not run.is_dir() and not is_file(source):
        raise FileNotFoundError(f"there is no run folder {source}")
    recipe = _recipe_of(run) if run.is_dir() else get_recipe(source)
    given = _options(arguments)
    if resume and not run.is_dir():
        recipe.training.output = given.get("--training.output", recipe.training.output)
        named, recipe = recipe.model.detector, _recipe_of(latest_run(recipe))
        if recorded(named) == recipe.model.detector:  # a user's own recipe names its detector again
            recipe.model.detector = named
    # A resumed run keeps its sizes; different ones are refused.
    if not resume and "--model.min-size" in given:
        recipe.data.train_min_sizes = ()  # unless they are given, too
    if not resume and given.get("--training.weights") and not recipe.training.weights:
        recipe.optimizer.lr *= FINE_TUNING_RATE
        recipe.optimizer.warmup_steps = round(FINE_TUNING_WARMUP * recipe.optimizer.warmup_steps)
    epochs = given.get("--training.epochs", "")
    if not resume and epochs.isdecimal() and int(epochs) > 0:  # others are refused later
        recipe.optimizer.milestones = moved_milestones(recipe, int(epochs))
    return recipe


def moved_milestones(recipe: Recipe, epochs: int) -> tuple[int, ...]:
    """The milestones scaled to another number of epochs; those that fall on the end of the run or on each other are dropped."""
    moved = {milestone * epochs // recipe.training.epochs for milestone in recipe.optimizer.milestones}
    return tuple(sorted(moved - {0, epochs}))


def _options(arguments: Sequence[str]) -> dict[str, str]:
    """The given options by name, with their values."""
    named = ((*argument.partition("="), following) for argument, following in itertools.pairwise([*arguments, ""]))
    return {name.replace("_", "-"): value if equals else following for name, equals, value, following in named}


def _recipe_of(run: Path) -> Recipe:
    file = run / "recipe.json"
    if not file.is_file():
        raise FileNotFoundError(f"{run} is not a run folder: it has no recipe.json")
    try:
        return Recipe.from_dict(json.loads(file.read_text(encoding="utf-8")))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file} cannot be used: {error}") from None


def latest_run(recipe: Recipe) -> Path:
    folder = Path(recipe.training.output) / recipe.name
    runs = sorted(
        {file.parent.parent for name in ("last", "best") for file in folder.glob(f"*/checkpoints/{name}.ckpt")}
    )
    if not runs:
        raise FileNotFoundError(f"there is no run to resume in {folder}: leave out --resume to start one")
    return runs[-1]
