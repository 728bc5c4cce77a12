"""Run training and evaluation, from settings to report."""

import contextlib
import dataclasses
import json
import time
from pathlib import Path

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities import rank_zero_only

from ..checkpoints import Checkpoint, carry_scores, load_weights, read_checkpoint, read_to_resume
from ..data.fingerprint import fingerprint
from ..evaluation import Report, at_thresholds
from ..evaluation.calibration_summary import calibrate_evaluation, remove_calibrations
from ..evaluation.metrics import percent
from ..evaluation.model_scores import MEANINGS, ModelCalibration, ModelThresholds, least_scores, read_report
from ..evaluation.page import save_reports
from ..evaluation.results import write_results
from ..evaluation.thresholds import Wish
from ..fine_tuning import read_weights
from ..interrupt import Interrupt
from ..launch import check_processes, slurm_job
from ..recipes import Recipe, create_model
from ..recipes.build import (
    build_dataset,
    build_losses,
    build_untrained,
    describe,
    summarize,
    with_pixel_statistics,
)
from ..visualize import report_pictures
from ..whole_file import replace_file
from ..words import counted
from .module import DetectorModule
from .peers import end_with_others, lost_peers
from .saving import plain_interrupts, resume_command
from .stopping import Enough, Stopping, read_progress
from .trainer import build_trainer

_NOTICE = "finishing this batch or evaluation, then writing a checkpoint; press Ctrl-C (or send SIGTERM) again to stop immediately"


def train(recipe: Recipe, run: Path, *, resume: bool = False) -> Report | None:
    """Train a detector, evaluate it after each epoch, and report on the best epoch.

    The run ends after the last epoch, or earlier: see `training.patience` and `training.max_minutes`.

    Args:
        recipe: all settings. The classes are those of its training annotations.
        run: folder for checkpoints, metrics and the report; with `resume`, the folder of the run to continue.
        resume: continue from `run/checkpoints/last.ckpt` or, if that is damaged, from `best.ckpt`.

    Returns:
        The report of the best epoch, of masks if the detector has them; None on all processes but the first, and if the resumed run has
        nothing left to do. The report and its pictures are in `run/report`.

    Raises:
        ValueError: data, settings or checkpoint cannot be used.
        FileNotFoundError: a file is missing.
        ConnectionError: another process of the run has died.
        KeyboardInterrupt: after Ctrl-C, SIGTERM or SIGHUP (`ranksort.interrupt.Terminated`), when the batch or evaluation is done and
            `last.ckpt` written; immediately after a second signal. SIGUSR1 writes `last.ckpt` and continues.

    Examples:
        >>> import contextlib, io, tempfile
        >>> from pathlib import Path
        >>> from ranksort.data.synthetic import write_synthetic_dataset
        >>> from ranksort.engine import train
        >>> from ranksort.recipes import get_recipe
        >>> recipe = get_recipe("ranksort_atss_r50_fpn_1x_coco")
        >>> recipe.model.backbone, recipe.model.pretrained_backbone, recipe.model.min_size = "resnet18", False, 64
        >>> recipe.model.channels, recipe.model.head_convs = 64, 1
        >>> recipe.training.epochs, recipe.training.batch_size, recipe.data.workers = 1, 2, 0
        >>> recipe.evaluation.pictures, recipe.optimizer.milestones = 0, ()
        >>> with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        ...     recipe.data.root = str(write_synthetic_dataset(Path(folder) / "data", train_images=2, val_images=2))
        ...     report = train(recipe, Path(folder) / "run")
        ...     files = sorted(path.name for path in (Path(folder) / "run" / "checkpoints").iterdir())
        >>> files
        ['best.ckpt', 'last.ckpt']
    """
    end_with_others()
    with Interrupt(_NOTICE) as interrupt, plain_interrupts(), lost_peers():
        return _train(recipe, run, resume, interrupt)


def _train(recipe: Recipe, run: Path, resume: bool, interrupt: Interrupt) -> Report | None:
    previous = read_to_resume(run) if resume else None
    progress = read_progress(previous) if previous else None
    if previous is not None and previous.note:
        _say(f"warning: {previous.note}: continuing from {previous.path}")
    recipe.check()
    recipe.data = recipe.data.absolute()
    weights = read_weights(recipe.training.weights, recipe) if recipe.training.weights and not resume else None
    trained = previous.recipe.model if previous else weights.trained_backbone if weights else None
    recipe.model = with_pixel_statistics(recipe.model, trained)  # recorded in the run
    recipe.check()  # including what came from the weights
    recipe.training.devices = recipe.training.devices or max(torch.cuda.device_count(), 1)
    check_processes(recipe.training)
    if previous is not None:
        recipe.data.white = recipe.data.white or previous.recipe.data.white
        recipe.check_resumes(previous.recipe, moved_data=bool(previous.fingerprint))
        if nothing_left := _nothing_left(recipe, run, previous):
            _say(nothing_left)
            return None
    train_set = build_dataset(recipe, "train", previous.categories if previous else None)
    if previous is not None and previous.fingerprint not in ("", fingerprint(train_set)):
        raise ValueError(
            f"{train_set.annotations_path} does not contain the images and objects that {run} was trained on: "
            "name the original data to resume, or start a new run"
        )
    recipe.data.white = train_set.white
    val_set = build_dataset(recipe, "val", train_set.categories)
    pl.seed_everything(recipe.training.seed, verbose=False)
    if previous is None:
        model, taken = build_untrained(recipe, train_set, weights)
    else:
        settled = {f: getattr(previous.recipe.model, f) for f in ("num_classes", "frozen_stages", "train_batch_norm")}
        recipe.model = dataclasses.replace(recipe.model, **settled)
        recipe.optimizer.backbone_rate = previous.recipe.optimizer.backbone_rate
        dataclasses.replace(previous, recipe=recipe).check_fits()
        model, taken = create_model(recipe, losses=build_losses(recipe, train_set)), None
        # For its clear error message; Lightning loads them again.
        load_weights(model, previous.state_dict, str(previous.path))
    module = DetectorModule(recipe, model, train_set, val_set)
    module.run = run
    rows = progress.get("rows") if progress else 0  # missing in checkpoints of older versions
    trainer = build_trainer(module, run, interrupt, rows)
    if len(val_set) < trainer.world_size:
        images = counted(len(val_set), "validation image")
        raise ValueError(
            f"{images} cannot be distributed over {trainer.world_size} devices: use fewer devices, or add images"
        )
    if trainer.is_global_zero:
        run.mkdir(parents=True, exist_ok=resume)
        replace_file(run / "recipe.json", f"{json.dumps(recipe.as_dict(), indent=2)}\n".encode())
        if slurm_job():
            (run / "slurm_job").write_text(slurm_job(), encoding="utf-8")  # with which a requeued job finds its run
        if taken:
            taken.save(run / "weights.json")
        print(f"run folder: {run}\n{describe(recipe, train_set, val_set, taken, resume)}")
    _fit(trainer, module, previous.path if previous else None)
    run = trainer.strategy.broadcast(run)  # the other processes may have started in another second
    # Evaluate the best weights again, now with pictures.
    best = read_checkpoint(run)
    if best.note:
        _say(f"warning: {best.note}: reporting on {best.path}")
    trainer.validate(module, ckpt_path=best.path, verbose=False, weights_only=True)
    report = _write_report(trainer, module, run / "report", run)
    best_file = run / "checkpoints" / "best.ckpt"
    if trainer.is_global_zero and best.path == best_file:
        try:
            carry_scores(best_file, read_report(run / "report"))
        except OSError as error:  # the run is complete without it
            print(f"{best_file} does not contain the calibration, which is in {run / 'report'} ({error})")
    return report


def _fit(trainer: pl.Trainer, module: DetectorModule, checkpoint: Path | None) -> None:
    """Train until the run ends, from a checkpoint if there is one.

    Raises:
        OSError: a file cannot be written.
        ValueError: the checkpoint does not hold a valid training state.
    """
    try:
        with contextlib.suppress(Enough):
            trainer.fit(module, ckpt_path=checkpoint, weights_only=True)
    except OSError as error:  # from a log: it does not name its file
        if error.errno is None or error.filename is not None:
            raise
        assert module.run is not None
        resume = resume_command(module.run, module.recipe)
        raise OSError(f"{module.run} cannot be written ({error.strerror}): free some space, then {resume}") from None
    except (AttributeError, LookupError, TypeError, ValueError, RuntimeError) as error:
        if checkpoint is None or module.is_restored or isinstance(error, torch.OutOfMemoryError):
            raise
        reason = " ".join(str(error).split())
        raise ValueError(f"{checkpoint} cannot be resumed ({type(error).__name__}: {reason})") from error


def _nothing_left(recipe: Recipe, run: Path, last: Checkpoint) -> str:
    """Why a resumed run has nothing left to do, and how to train it longer; "" if there is something left."""
    progress, training = read_progress(last), recipe.training
    report = run / "report" / "index.html"
    assert last.path is not None
    if not report.is_file() or report.stat().st_mtime < last.path.stat().st_mtime:
        return ""
    resume = resume_command(run, recipe)
    if progress.get("epoch", 0) >= training.epochs:
        has = "has" if training.epochs == 1 else "have"
        sentence, option = f"{counted(training.epochs, 'epoch')} {has} been trained", f"epochs {2 * training.epochs}"
    elif enough := Stopping(training).enough(progress, out_of_time=False):
        sentence, option = str(enough), f"patience {2 * training.patience}"
    else:
        return ""
    return f"{sentence}: {report}\nto train longer: {resume} --training.{option}"


@rank_zero_only
def _say(text: str) -> None:
    """Print on the first process only."""
    print(text, flush=True)


def test(
    checkpoint: Checkpoint,
    out: Path,
    *,
    calibration: ModelCalibration | None = None,
    thresholds: ModelThresholds | None = None,
    score_threshold: float | Wish | None = None,
) -> Report | None:
    """Evaluate a checkpoint on the validation data of its recipe, and write a report and the detections to the folder `out`.

    The report includes calibrations of the scores, unless these are already calibrated or cut off.

    Args:
        checkpoint: the checkpoint to evaluate.
        out: folder for the report.
        calibration: apply this calibration to the scores first.
        thresholds: needed if `score_threshold` is a `Wish`.
        score_threshold: leave out detections with lower scores.

    Raises:
        ValueError: data or checkpoint cannot be used.
        FileNotFoundError: a file is missing.

    Examples:
        >>> import contextlib, io, tempfile
        >>> from pathlib import Path
        >>> from ranksort import Recipe, create_model
        >>> from ranksort.checkpoints import Checkpoint
        >>> from ranksort.data.synthetic import write_synthetic_dataset
        >>> from ranksort.data.coco_file import read_coco_file
        >>> from ranksort.engine import test
        >>> recipe = Recipe(name="untrained")
        >>> recipe.model.backbone, recipe.model.channels, recipe.model.min_size = "resnet18", 64, 64
        >>> recipe.data.workers, recipe.evaluation.pictures = 0, 0
        >>> with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        ...     root = write_synthetic_dataset(Path(folder) / "data", train_images=2, val_images=2)
        ...     recipe.data.root = str(root)
        ...     categories = read_coco_file(root / "annotations/instances_val.json", segmentations=False).categories
        ...     weights = create_model(recipe, num_classes=len(categories)).state_dict()
        ...     report = test(Checkpoint(recipe, categories, weights), Path(folder) / "report")
        ...     written = (Path(folder) / "report" / "index.html").exists()
        >>> written, report.iou_type, len(report.categories)
        (True, 'bbox', 8)
    """
    val_set = build_dataset(checkpoint.recipe, "val", checkpoint.categories)
    print(f"evaluation on {counted(len(val_set), 'image')}: {val_set.origin}")
    if val_set.part is not None and checkpoint.fingerprint:
        train_set = build_dataset(checkpoint.recipe, "train", checkpoint.categories)
        if checkpoint.fingerprint != fingerprint(train_set):
            print(
                "warning: the model was trained on other images than this file's training split: some of these may be among them"
            )
    model = checkpoint.build()
    model.calibration, model.thresholds = calibration, thresholds
    module = DetectorModule(checkpoint.recipe, model, None, val_set)
    changes = [] if calibration is None else [f"calibrated ({MEANINGS[calibration.target]})"]
    if score_threshold is not None:
        values, remarks = least_scores(score_threshold, model)
        module.evaluator.thresholds = torch.tensor(values, dtype=torch.float64)
        if isinstance(score_threshold, float):
            model.score_threshold = min(model.score_threshold, score_threshold)
        changes.append(f"cut off at {score_threshold}; detections below do not count")
        for remark in remarks:
            print(remark)
    trainer = build_trainer(module)
    with plain_interrupts():
        trainer.validate(module, verbose=False, weights_only=True)
    for report in module.reports.values():
        report.scores_are = " and ".join(changes) or "raw"
        if module.evaluator.thresholds is not None:
            ids = [category.id for category in val_set.categories]
            at_thresholds.add_numbers(report, dict(zip(ids, module.evaluator.thresholds.tolist(), strict=True)))
    return _write_report(trainer, module, out)


def _write_report(trainer: pl.Trainer, module: DetectorModule, folder: Path, run: Path | None = None) -> Report | None:
    """Save the reports of the last evaluation, their page, calibrations and the detections; with `run`, also its training curves.

    Returns `DetectorModule.report`.
    """
    text = ""
    if trainer.is_global_zero:
        recipe, data, evaluator = module.recipe, module.val_set, module.evaluator
        limit = recipe.evaluation.pictures
        pictures = {kind: report_pictures(data, report, limit) for kind, report in module.reports.items()}
        save_reports(folder, module.reports.values(), summarize(recipe, data), pictures, run)
        several = len(module.reports) > 1
        if not several:  # of an earlier evaluation
            remove_calibrations(folder / "masks")
        about = {"recipe": recipe.name, "data": data.origin, "date": time.strftime("%Y-%m-%d %H:%M")}
        texts = []
        for kind, report in module.reports.items():
            texts.append(report.text(score_errors=False))  # a table of them follows
            texts += [] if evaluator.thresholds is None else [at_thresholds.table(report)]
            own_folder = folder / "masks" if several and kind == "segm" else folder
            texts.append(calibrate_evaluation(report, own_folder, about))
        text = "\n\n".join(texts)
        assert data.file is not None
        calibration = module.model.calibration
        mark = None if calibration is None else calibration.target
        write_results(folder, evaluator.detections(module.iou_types[-1]), data.file, mark)
    title = f"{_best(module)}\n" if run else ""
    trainer.print(f"\n{title}{text}\n\nreport: {folder / 'index.html'}")
    return module.report if module.reports else None


def _best(module: DetectorModule) -> str:
    """A sentence about which weights of a run are reported on."""
    progress, name = module.progress, module.recipe.training.best
    if (epoch := progress["best_epoch"]) and epoch == progress["epoch"]:
        return f"best: {name} {percent(progress['best'])} after epoch {epoch}, evaluated again"
    if epoch:
        return f"the best weights, of epoch {epoch}, are lost: these are the last ones"
    return "no epoch was evaluated before: these are the last weights"
