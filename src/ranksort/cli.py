"""The command line. Each command is a function: its arguments, their types and its docstring make the options and their help."""

import io
import itertools
import json
import math
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn

try:
    import tyro
except ModuleNotFoundError:
    sys.exit('ranksort: the command line belongs to the toolbox: pip install "ranksort[detection]"')
from tyro.conf import Positional, arg

from . import __version__
from .interrupt import SAVE, exit_code, handled, ignore, sentence, stop_at_once
from .launch import slurm_job
from .recipes.detectors import recorded
from .recipes.find import get_recipe, recipe_functions
from .recipes.recipe import DataSettings, EvaluationSettings, ModelSettings, OptimizerSettings, Recipe, TrainingSettings

_Recipe = Annotated[str, Positional, arg(metavar="RECIPE")]
_Checkpoint = Annotated[Path, Positional, arg(metavar="CHECKPOINT")]
_Json = Annotated[Path, Positional, arg(metavar="JSON")]
_TIME = "%Y-%m-%d_%H-%M-%S"


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line.

    What a user can fix is said in one sentence, with exit code 2; RANKSORT_TRACEBACK=1 shows where it arose. Ctrl-C ends it with exit
    code 130, SIGTERM with 143, and a closed pipe with 141, as shells report them.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(
                errors="replace"
            )  # no name of a class or a file may end a run where the console cannot show it
    try:
        with handled(stop_at_once), handled(ignore, SAVE):
            _run_command(list(sys.argv[1:] if arguments is None else arguments))
    except KeyboardInterrupt as error:
        print(sentence(error), file=sys.stderr)
        sys.exit(exit_code(error))
    except BrokenPipeError:
        _leave_closed_pipe()
    except (ValueError, OSError) as error:
        if os.environ.get("RANKSORT_TRACEBACK"):
            raise
        print(f"ranksort: {_sentence(error)}", file=sys.stderr)
        sys.exit(2)
    finally:
        try:
            sys.stdout.flush()
        except BrokenPipeError:
            _leave_closed_pipe()


def _run_command(arguments: list[str]) -> None:
    defaults = _defaults(arguments)
    trained, tested = train_command(defaults), test_command(defaults)
    functions = (quickstart, recipes, trained, tested, predict, evaluate, report, check_data, convert)
    commands: dict[str, Callable[..., Any]] = {f.__name__.replace("_", "-"): f for f in functions}
    about = "Detectors trained by Rank & Sort Loss."
    tyro.extras.subcommand_cli_from_dict(commands, prog="ranksort", description=about, args=arguments)


def _sentence(error: ValueError | OSError) -> str:
    """What an error says, in one line."""
    if isinstance(error, OSError) and error.filename is not None:
        return f"{os.fsdecode(error.filename)}: {error.strerror}"
    name = type(error).__name__
    message = str(error).strip() or name
    if "Traceback (most recent call last)" in message:  # from a worker process: the sentence comes after it
        message = message.rpartition(f"\n{name}: ")[2]
    return " ".join(message.split("\n"))  # names of files and classes may have line breaks


def _leave_closed_pipe() -> NoReturn:
    """End where nobody reads what is printed any longer, as after `ranksort recipes | head -1`."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else Python complains when it flushes at its end
    sys.exit(141)


def recipes() -> None:
    """List the recipes."""
    functions = recipe_functions()
    width = max(map(len, functions))
    for name, function in functions.items():
        print(f"{name:<{width}}  {' '.join((function.__doc__ or '').split())}")


def quickstart(
    out: Path = Path("quickstart"), recipe: str = "ranksort_atss_lite0_small", epochs: int = 4, workers: int = 2
) -> None:
    """Make a small data set, train a detector on it in minutes, and look at what it finds.

    Args:
        out: folder for the data set, the run and its report.
        recipe: what to train: a recipe which ends in _small, or file.py:function for one of your own.
        epochs: passes over the 400 training images.
        workers: processes which load images.
    """
    from .data.synthetic import write_synthetic_dataset

    if recipe in recipe_functions() and not recipe.endswith("_small"):
        small = " or ".join(name for name in recipe_functions() if name.endswith("_small"))
        raise ValueError(f"{recipe} is made for COCO on GPUs, quickstart for minutes on a CPU: choose {small}")
    chosen = get_recipe(recipe)
    print(f"writing 500 images to {out / 'data'} ...", flush=True)
    root = write_synthetic_dataset(out / "data")
    chosen.data.root, chosen.data.workers = str(root), workers
    chosen.model.min_size, chosen.model.max_size = 256, 384  # as large as the images are
    chosen.data.train_min_sizes = ()
    chosen.training.output, chosen.training.epochs = str(out / "runs"), epochs
    chosen.optimizer.milestones = (math.ceil(0.75 * epochs),)
    run = _train(chosen, resume=False)
    print(
        f"\nThe data are in {root}, checkpoints and training curves in {run}.\n"
        "Next:\n"
        f"  look at           {run / 'report' / 'index.html'}\n"
        f"  detect            ranksort predict {run} {root / 'images'} --out {out / 'predictions'}\n"
        "  check your data   ranksort check-data IMAGES ANNOTATIONS.json\n"
        f"  train on them     ranksort train {recipe} --data.root DIR\n"
        "where DIR holds annotations/instances_{train,val}.json in COCO format and images/."
    )


def train_command(defaults: Recipe) -> Callable[..., None]:
    """Makes the command `train`, whose options have the settings of a recipe as defaults."""

    def train(
        recipe: _Recipe,
        /,
        data: DataSettings = defaults.data,
        model: ModelSettings = defaults.model,
        optimizer: OptimizerSettings = defaults.optimizer,
        training: TrainingSettings = defaults.training,
        evaluation: EvaluationSettings = defaults.evaluation,
        resume: bool = False,
    ) -> None:
        """Train a detector.

        Args:
            recipe: a recipe's name, file.py:function for one of your own, or a run folder for its settings.
            resume: go on with that run folder, or with the latest run of that recipe, with its settings.
        """
        run = Path(recipe) if Path(recipe).is_dir() else None
        _train(Recipe(defaults.name, data, model, optimizer, training, evaluation), resume, run)

    return train


def test_command(defaults: Recipe) -> Callable[..., None]:
    """Makes the command `test`, whose options have the settings of a checkpoint's recipe as defaults."""

    def test(
        checkpoint: _Checkpoint,
        /,
        data: DataSettings = defaults.data,
        model: ModelSettings = defaults.model,
        out: Path | None = None,
    ) -> None:
        """Evaluate a checkpoint on the validation data.

        Args:
            checkpoint: a run folder, .ckpt or .safetensors.
            out: folder for the report, with pictures; by default reports/<time>.
        """
        from .checkpoints import read_checkpoint
        from .engine import test as run_test

        trained = read_checkpoint(checkpoint)
        trained.recipe.data, trained.recipe.model = data, model
        run_test(trained, out or Path("reports") / time.strftime(_TIME))

    return test


def predict(
    checkpoint: _Checkpoint,
    images: Annotated[list[Path], Positional, arg(metavar="IMAGE|FOLDER")],
    /,
    out: Path,
    score_threshold: float | Literal["lrp"] = 0.3,
    device: str = "",
    recursive: bool = False,
    detector: Annotated[str, arg(name="model.detector", aliases=["--detector"])] = "",
) -> None:
    """Detect objects in images: pictures with boxes, and detections.json.

    Args:
        checkpoint: a run folder, .ckpt or .safetensors.
        images: image files, and folders of such.
        out: folder for the results.
        score_threshold: least score of a detection; "lrp": the best one for each class by oLRP, from the run's report.
        device: such as cpu, cuda:1 or mps; by default what there is.
        recursive: look for images in the folders below those named, too.
        detector: file.py:Class, where the checkpoint was trained with a detector of your own; its file is run.
    """
    from .predict import find_images, predict_images

    files, passed_over = find_images(images, out, recursive)
    if passed_over:
        print(f"passed over: {passed_over}")
    if not files:
        raise ValueError(
            f"there are no images in {', '.join(map(str, images)) or 'the arguments'}: name files or folders"
        )
    failures = predict_images(checkpoint, files, out, score_threshold, device, detector)
    print(f"{len(files) - len(failures)} pictures and detections.json: {out}")
    if failures:
        raise ValueError(
            f"{len(failures)} of {len(files)} images could not be read or processed: {'; '.join(failures[:5])}"
        )


def evaluate(
    ground_truth: _Json,
    detections: _Json,
    /,
    iou_type: Literal["bbox", "segm"] = "bbox",
    style: Literal["coco", "lvis"] = "coco",
    max_detections: int | None = None,
    out: Path | None = None,
) -> None:
    """AP and oLRP of detections from any model.

    Args:
        ground_truth: COCO or LVIS annotations.
        detections: COCO results.
        iou_type: compare boxes or masks.
        style: whose rules.
        max_detections: how many detections count of each class in an image (coco, default 100) or of an image (lvis,
            default 300).
        out: folder for the report.
    """
    from .evaluation import evaluate_detections

    result = evaluate_detections(ground_truth, detections, iou_type, style, max_detections)
    print(result)
    if out:
        settings = {"ground truth": str(ground_truth), "detections": str(detections)}
        result.save(out, settings | {"date": time.strftime("%Y-%m-%d %H:%M"), "versions": f"ranksort {__version__}"})
        print(f"\nreport: {out / 'index.html'}")


def report(runs: Annotated[list[Path], Positional, arg(metavar="RUN")], /, out: Path = Path("comparison.html")) -> None:
    """Compare runs: a page with their numbers, classes and curves side by side.

    Args:
        runs: run folders, or folders which test or evaluate wrote a report to.
        out: the HTML file to write.
    """
    from .evaluation.page import save_page

    if not runs:
        raise ValueError("name one or more runs to report on")
    save_page(runs, out)
    print(f"report: {out}")


def check_data(
    images: Annotated[Path, Positional, arg(metavar="FOLDER")],
    annotations: _Json,
    /,
    verbose: bool = False,
    crowd: Literal["drop", "keep"] = "drop",
) -> None:
    """Look for faults in a data set before training on it.

    Args:
        images: folder of the images.
        annotations: COCO annotation file.
        verbose: list all faults, however many.
        crowd: what to do with annotations marked as crowd, as by --data.crowd of `train`.
    """
    from .data.check import check_data as run_check

    check = run_check(images, annotations, keep_crowds=crowd == "keep")
    print(check.text() if verbose else check)
    if not check.is_usable:
        sys.exit(1)


def convert(
    published: Annotated[Path, Positional, arg(metavar="PTH")],
    recipe: _Recipe,
    /,
    out: Path,
    annotations: Path | None = None,
) -> None:
    """Take weights published with the paper to a .safetensors file of this package.

    Args:
        published: the .pth file.
        recipe: the recipe of that model.
        out: the file to write.
        annotations: annotation file which names the classes; by default those of COCO.
    """
    from .checkpoints import convert_checkpoint, save_model
    from .data.coco import COCO_CATEGORIES
    from .data.coco_file import read_coco_file
    from .recipes.build import create_model

    chosen = get_recipe(recipe)
    categories = COCO_CATEGORIES
    if annotations:
        file = read_coco_file(annotations, segmentations=False)
        file.require("evaluation", without=("nothing to evaluate", "bad box"))
        categories = file.categories
    if len(categories) != chosen.model.num_classes:
        raise ValueError(
            f"{recipe} has {chosen.model.num_classes} classes, not {len(categories)}: name them by --annotations FILE.json, "
            "such as lvis_v1_val.json"
        )
    if out.suffix != ".safetensors":
        raise ValueError(f"--out must name a .safetensors file, got {out}")
    out.parent.mkdir(parents=True, exist_ok=True)
    model = create_model(chosen)
    model.load_state_dict(convert_checkpoint(published, chosen))
    save_model(out, model, chosen, categories)
    print(f"wrote {out}; next: ranksort predict {out} IMAGE... --out DIR")


def _defaults(arguments: Sequence[str]) -> Recipe:
    """The recipe which the options of `train` and `test` start from: a named one, that of a run, or that of a checkpoint."""
    command, source = [*arguments, "", ""][:2]
    if command not in ("train", "test") or (source.startswith("-") and {"-h", "--help"} & set(arguments)):
        return Recipe()
    if not source or source.startswith("-"):
        raise ValueError(f"`ranksort {command}` needs a {'RECIPE' if command == 'train' else 'CHECKPOINT'} first")
    if command == "test":
        from .checkpoints import read_checkpoint

        return read_checkpoint(source).recipe
    resume, run = "--resume" in arguments, Path(source)
    recipe = _recipe_of(run) if run.is_dir() else get_recipe(source)
    if resume and not run.is_dir():
        for argument, following in itertools.pairwise([*arguments, ""]):
            if argument.startswith("--training.output"):
                recipe.training.output = argument.partition("=")[2] or following
        named, recipe = recipe.model.detector, _recipe_of(_latest_run(recipe))
        if recorded(named) == recipe.model.detector:  # a recipe of the user's own names its detector again
            recipe.model.detector = named
    # A run which is resumed keeps its sizes; what differs from them is refused.
    if not resume and "--model.min-size" in (a.partition("=")[0].replace("_", "-") for a in arguments):
        recipe.data.train_min_sizes = ()  # unless they are given, too
    return recipe


def _recipe_of(run: Path) -> Recipe:
    file = run / "recipe.json"
    if not file.is_file():
        raise FileNotFoundError(f"{run} is no run folder: it has no recipe.json")
    try:
        return Recipe.from_dict(json.loads(file.read_text(encoding="utf-8")))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file} cannot be used: {error}") from None


def _latest_run(recipe: Recipe) -> Path:
    folder = Path(recipe.training.output) / recipe.name
    runs = sorted(folder.glob("*/checkpoints/last.ckpt"))
    if not runs:
        raise FileNotFoundError(f"there is no run to resume in {folder}: leave --resume out to begin one")
    return runs[-1].parent.parent


def _train(recipe: Recipe, resume: bool, run: Path | None = None) -> Path:
    """Trains in a new run folder, or resumes, and prints the report. Returns the run folder."""
    from .engine import train as run_training

    folder, now = Path(recipe.training.output) / recipe.name, time.strftime(_TIME)
    names = itertools.chain([now], (f"{now}-{number}" for number in itertools.count(2)))
    new = next(folder / name for name in names if not (folder / name).exists())
    if not resume and (begun := _queued_again(folder)):
        print(f"going on with {begun}, which this SLURM job began before it was queued again")
        resume, run = True, begun
    run = (run or _latest_run(recipe)) if resume else new
    run_training(recipe, run, resume=resume)
    return run


def _queued_again(folder: Path) -> Path | None:
    """The run in that folder which this SLURM job has begun, where it has been queued again."""
    if os.environ.get("SLURM_RESTART_COUNT", "0") == "0":
        return None
    begun = [f.parent for f in sorted(folder.glob("*/slurm_job")) if f.read_text(encoding="utf-8") == slurm_job()]
    return next((run for run in reversed(begun) if (run / "checkpoints" / "last.ckpt").is_file()), None)
