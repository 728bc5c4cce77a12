"""Training and evaluation. This is the only file which knows PyTorch Lightning.

An epoch is a function of the seed and its number: the sampler draws a seed for each image, and the module one for each batch. So a run that
was interrupted anywhere and resumed goes on bit for bit as if nothing had happened.
"""

import contextlib
import csv
import json
import logging
import shlex
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import EMAWeightAveraging, RichProgressBar
from pytorch_lightning.loggers import CSVLogger, TensorBoardLogger
from pytorch_lightning.plugins.environments import LightningEnvironment
from torch import Tensor

from .checkpoints import Checkpoint, load_weights, metadata, read_checkpoint
from .data.batch import data_loader
from .data.coco import CocoDataset
from .data.fingerprint import fingerprint
from .evaluation import Report
from .evaluation.evaluator import Evaluator
from .evaluation.page import save_reports
from .interrupt import Interrupt, stopped_by
from .launch import check_processes, queue_again, slurm_job
from .models import Detector
from .recipes import Recipe
from .recipes.build import (
    build_dataset,
    build_optimizer,
    build_sampler,
    build_untrained,
    describe,
    rate_factor,
    summarize,
    with_pixel_statistics,
)
from .recipes.detectors import DETECTORS
from .visualize import worst_and_best_images

_AUTOSAVE_MINUTES = 15
_NOTICE = "finishing this batch or evaluation, then writing a checkpoint; Ctrl-C or SIGTERM again to stop at once"
_MISLEADING = (  # warnings of Lightning which are not for our users
    ".*does not have many workers.*",
    ".*ended before the epoch ended.*",  # we do resume there
    ".*exists and is not empty.*",  # it is a resumed run's
    ".*in eval mode at the start of training.*",  # the frozen batch norms
    ".*isinstance.treespec, LeafSpec.*",
    ".*recommended to use .*sync_dist=True.*",  # all processes log the same report
)


def train(recipe: Recipe, run: Path, *, resume: bool = False) -> Report | None:
    """Trains a detector, evaluates it after each epoch, and reports on the best.

    Args:
        recipe: what to train on what. The classes are those of its training annotations.
        run: folder for checkpoints, metrics and the report; with `resume`, that of a run to go on with.
        resume: continue from `run/checkpoints/last.ckpt`.

    Returns:
        The report of the best epoch, by masks where the detector has them; None on all processes but the first. Reports and pictures
        of it are in `run/report`.

    Raises:
        ValueError, FileNotFoundError: where data, settings or checkpoint cannot be used.
        KeyboardInterrupt: after Ctrl-C, or SIGTERM or SIGHUP (`ranksort.interrupt.Terminated`), when the batch or evaluation is done and
            `last.ckpt` written; after a second one at once. SIGUSR1 writes `last.ckpt` and goes on.
    """
    with Interrupt(_NOTICE) as interrupt, _plain_interrupts():
        return _train(recipe, run, resume, interrupt)


def _train(recipe: Recipe, run: Path, resume: bool, interrupt: Interrupt) -> Report | None:
    last = run / "checkpoints" / "last.ckpt"
    previous = read_checkpoint(last) if resume else None
    recipe.check()
    recipe.model = with_pixel_statistics(recipe.model)  # of a run that is recorded
    recipe.training.devices = recipe.training.devices or max(torch.cuda.device_count(), 1)
    check_processes(recipe.training)
    if previous is not None:
        recipe.check_resumes(previous.recipe, moved_data=bool(previous.fingerprint))
    train_set = build_dataset(recipe, "train", previous.categories if previous else None)
    if previous is not None and previous.fingerprint not in ("", fingerprint(train_set)):
        raise ValueError(
            f"{train_set.annotations_path} does not hold the images and objects that {run} was trained on: "
            "name those to resume, or begin a new run"
        )
    val_set = build_dataset(recipe, "val", train_set.categories)
    pl.seed_everything(recipe.training.seed, verbose=False)
    model = build_untrained(recipe, train_set, pretrained=not resume)
    if previous is not None:
        load_weights(model, previous.state_dict, str(last))  # for its clear error: Lightning loads them again
    module = _Training(recipe, model, train_set, val_set)
    trainer = _trainer(module, run, resume, interrupt)
    if len(val_set) < trainer.world_size:
        raise ValueError(f"{len(val_set)} validation images are too few for {trainer.world_size} devices")
    if trainer.is_global_zero:
        run.mkdir(parents=True, exist_ok=resume)
        (run / "recipe.json").write_text(json.dumps(recipe.as_dict(), indent=2) + "\n", encoding="utf-8")
        if slurm_job():
            (run / "slurm_job").write_text(slurm_job(), encoding="utf-8")  # by which the job finds it when queued again
        print(f"run folder: {run}\n{describe(recipe, train_set)}")
    trainer.fit(module, ckpt_path=last if resume else None, weights_only=True)
    run = trainer.strategy.broadcast(run)  # the other processes may have begun in another second
    # The best weights once more, now with pictures.
    best = run / "checkpoints" / "best.ckpt"
    trainer.validate(module, ckpt_path=best if best.is_file() else None, verbose=False, weights_only=True)
    return _write_report(trainer, module, run / "report", run)


def test(checkpoint: Checkpoint, out: Path) -> Report | None:
    """Evaluates a checkpoint on the validation data of its recipe, and writes a report to the folder `out`.

    Raises:
        ValueError, FileNotFoundError: where data or checkpoint cannot be used.
    """
    val_set = build_dataset(checkpoint.recipe, "val", checkpoint.categories)
    module = _Training(checkpoint.recipe, checkpoint.build(), None, val_set)
    trainer = _trainer(module)
    with _plain_interrupts():
        trainer.validate(module, verbose=False, weights_only=True)
    return _write_report(trainer, module, out)


class _Stop(Exception):
    """A run has been asked to stop by this signal, and its state is saved."""

    def __init__(self, number: int, is_global_zero: bool) -> None:
        self.number, self.is_global_zero = number, is_global_zero


@contextlib.contextmanager
def _plain_interrupts() -> Iterator[None]:
    """A run that was stopped ends in a KeyboardInterrupt; of such Lightning would make exit code 1."""
    try:
        yield
    except _Stop as stop:
        if stop.is_global_zero:
            raise stopped_by(stop.number) from None
        # One exit code for all processes, that of the first: Lightning kills it where it finds another that has failed.
        sys.exit(0)
    except SystemExit as end:
        if isinstance(end.__context__, KeyboardInterrupt):
            raise end.__context__ from None
        raise


class _Training(pl.LightningModule):
    """What Lightning has to know about a detector: its losses, its optimiser and how to evaluate it."""

    reports: dict[str, Report]  # of the last evaluation, on the first process
    numbers: dict[str, dict[str, float]]  # of the same, on all

    def __init__(self, recipe: Recipe, model: Detector, train_set: CocoDataset | None, val_set: CocoDataset):
        super().__init__()
        self.recipe, self.train_set, self.val_set = recipe, train_set, val_set
        self.model = model.to(memory_format=torch.channels_last)  # convolutions are a third faster so, on CPU and GPU
        assert val_set.file is not None
        self.evaluator = Evaluator(
            val_set.file,
            val_set.categories,
            masks=recipe.model.has_masks,
            style=recipe.evaluation.style,
            max_detections=recipe.evaluation.max_detections or None,
        )
        self.iou_types = tuple(self.evaluator.truths)
        # Of the batch to be trained on next; the best AP so far.
        self.progress = {"epoch": 0, "batches": 0, "best": -1.0}
        self.awaits_evaluation = False  # whether a checkpoint of this moment has still to be evaluated
        self.fingerprint = fingerprint(train_set) if train_set else ""

    def train_dataloader(self) -> Any:
        assert self.train_set is not None
        sampler = build_sampler(self.recipe, self.train_set, self.trainer.global_rank, self.trainer.world_size)
        sampler.set_epoch(int(self.progress["epoch"]))
        sampler.skip(int(self.progress["batches"]))
        return data_loader(self.train_set, batch_sampler=sampler, workers=self.recipe.data.workers)

    def val_dataloader(self) -> Any:
        mine = range(self.trainer.global_rank, len(self.val_set), self.trainer.world_size)  # none twice
        return data_loader(self.val_set, sampler=mine, workers=self.recipe.data.workers)

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        torch.manual_seed(
            hash((self.recipe.training.seed, self.current_epoch, batch_idx, self.global_rank)) & (2**63 - 1)
        )

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        images, targets = batch
        found = self.model(images, targets, True)
        total = sum(found.losses.values())
        size = len(images)
        self.log("train/loss", total.detach(), prog_bar=True, batch_size=size)
        self.log_dict({f"train/{name}": loss.detach() for name, loss in found.losses.items()}, batch_size=size)
        self.log_dict({f"train/{name}": value for name, value in found.logs().items()}, batch_size=size)
        self.log("train/lr", self.optimizers().param_groups[0]["lr"], batch_size=size)  # type: ignore[union-attr]
        return total

    def on_validation_epoch_start(self) -> None:
        self.evaluator.reset()

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        images, targets = batch
        self.evaluator.update(self.model(images), [target["image_id"] for target in targets])

    def on_validation_epoch_end(self) -> None:
        self.evaluator.merge(self.device)
        self.reports = self.evaluator.compute() if self.trainer.is_global_zero else {}
        numbers = {kind: report.as_dict() for kind, report in self.reports.items()}
        self.numbers = self.trainer.strategy.broadcast(numbers)
        if self.trainer.state.fn == "fit":
            for kind, values in self.numbers.items():
                prefix = "val/mask_" if kind == "segm" else "val/"
                self.log_dict({f"{prefix}{name}": v for name, v in values.items()}, rank_zero_only=False)
            text = "\n\n".join(map(str, self.reports.values()))
            self.print(f"\nepoch {self.current_epoch + 1} of {self.trainer.max_epochs}\n{text}\n")
        if self.trainer.is_global_zero:
            self._explain_what_is_missing()

    def _explain_what_is_missing(self) -> None:
        """Say which setting may be why there are fewer detections than objects."""
        model = self.recipe.model
        found, wanted = len(self.evaluator), len(self.report.matches.object_score)
        if at_limit := self.evaluator.missing(model.detections_per_image):
            self.print(
                f"--model.detections-per-image {model.detections_per_image} leaves {at_limit} objects without a detection, "
                "in images that have more objects than that.\n"
            )
        if found + at_limit < wanted:
            self.print(
                f"only {found} detections for {wanted} objects: --model.score-threshold {model.score_threshold} may be too "
                f"high. After short runs scores are still near --model.prior {model.prior}.\n"
            )

    @property
    def report(self) -> Report:
        """That of the last evaluation: of masks where there are any, else of boxes."""
        return self.reports[self.iou_types[-1]]

    def configure_optimizers(self) -> Any:
        epochs, optimizer = self.recipe.training.epochs, build_optimizer(self.recipe, self.parameters())
        steps = int(self.trainer.estimated_stepping_batches) // epochs
        factor = rate_factor(self.recipe.optimizer, steps, epochs)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        about = {"progress": dict(self.progress), "fingerprint": self.fingerprint}
        checkpoint["ranksort"] = metadata(self.recipe, self.val_set.categories) | about
        if self.awaits_evaluation:
            # To Lightning an evaluation that has not begun looks like one that is done; one in its first batch is repeated.
            evaluated = checkpoint["loops"]["fit_loop"]["epoch_loop.val_loop.batch_progress"]["total"]
            evaluated |= {"ready": 1, "started": 1, "processed": 0, "completed": 0}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.progress = checkpoint["ranksort"]["progress"]


class _Checkpoints(pl.Callback):
    """Writes `best.ckpt`, and `last.ckpt` before and after each evaluation, every quarter of an hour and where a signal asks for it.

    Signals take effect when the batch is done, or the evaluation: between the two there is no state to resume from.
    """

    def __init__(self, module: _Training, folder: Path, interrupt: Interrupt):
        self.module, self.folder, self.interrupt = module, folder, interrupt
        self.saved_at = time.monotonic()

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.interrupt.waits = True
        if not trainer.is_global_zero:
            self.interrupt.notice = ""

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        self.interrupt.waits = False

    def on_train_batch_end(self, trainer: pl.Trainer, *args: Any) -> None:
        is_last = trainer.fit_loop.epoch_loop.batch_progress.is_last_batch
        progress, batches = self.module.progress, self.module.progress["batches"] + 1
        progress |= {"epoch": progress["epoch"] + 1, "batches": 0} if is_last else {"batches": batches}
        if not is_last and batches % trainer.accumulate_grad_batches == 0:
            self._obey(trainer, due=time.monotonic() - self.saved_at > 60 * _AUTOSAVE_MINUTES)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.state.fn == "fit":  # whatever becomes of the evaluation, the epoch is not lost
            self.module.awaits_evaluation = True
            trainer.save_checkpoint(self.folder / "last.ckpt")
            self.module.awaits_evaluation = False

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        ap = self.module.numbers[self.module.iou_types[-1]]["AP"]
        if trainer.state.fn == "fit" and ap > self.module.progress["best"]:
            self.module.progress["best"] = ap
            trainer.save_checkpoint(self.folder / "best.ckpt")

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._obey(trainer, due=True)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._obey(trainer, due=False)

    def _obey(self, trainer: pl.Trainer, due: bool) -> None:
        """Does what the signals to any of the processes have asked for, in all of them; where it is `due`, saves anyway."""
        stop, save = self.interrupt.stop, self.interrupt.save
        if trainer.world_size > 1:
            asked = torch.tensor([stop, save, due], device=trainer.strategy.root_device)
            torch.distributed.all_reduce(asked, torch.distributed.ReduceOp.MAX)
            stop, save, due = asked.tolist()
        if stop or save or due:
            trainer.save_checkpoint(self.folder / "last.ckpt")
            self.saved_at = time.monotonic()
        if save:
            self.interrupt.save = False
            if trainer.is_global_zero:
                print(f"wrote {self.folder / 'last.ckpt'}")
                queue_again()  # the signal by which SLURM tells that the time of a job is over
        if stop:
            raise _Stop(stop, trainer.is_global_zero)

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        if isinstance(exception, (KeyboardInterrupt, _Stop)) and trainer.is_global_zero:
            is_saved = (self.folder / "last.ckpt").is_file()
            detector = self.module.recipe.model.detector
            named = "" if detector in DETECTORS else f" --model.detector {shlex.quote(detector)}"
            resume = f"to go on: ranksort train {shlex.quote(str(self.folder.parent))} --resume{named}"
            print(resume if is_saved else "stopped before there was a checkpoint to go on from")


class _ProgressBar(RichProgressBar):
    def get_metrics(self, *args: Any) -> dict[str, Any]:
        return {name: value for name, value in super().get_metrics(*args).items() if name != "v_num"}


def _trainer(
    module: _Training, run: Path | None = None, resume: bool = False, interrupt: Interrupt | None = None
) -> pl.Trainer:
    """Lightning's trainer; without a run folder and `interrupt`, one which only evaluates."""
    recipe, training = module.recipe, module.recipe.training
    steps = len(module.train_set) // training.batch_size if module.train_set else 0
    callbacks: list[pl.Callback] = [_ProgressBar()] if sys.stdout.isatty() else []
    loggers: list[Any] = []
    if run is not None and interrupt is not None:
        if training.ema_decay:
            callbacks.append(EMAWeightAveraging(decay=training.ema_decay))
        callbacks.append(
            _Checkpoints(module, run / "checkpoints", interrupt)
        )  # last, for the others have state to be saved
        loggers = [_csv_logger(run, resume), TensorBoardLogger(run, name="", version="tensorboard")]
    for message in _MISLEADING:
        warnings.filterwarnings("ignore", message)
    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
    trainer = pl.Trainer(
        default_root_dir=run,  # not the working directory: from there Lightning would resume what another job of SLURM has left
        accelerator="auto",
        # Evaluation is one process's work, however many SLURM has started.
        plugins=None if run else [LightningEnvironment()],
        devices=training.devices if run else 1,
        num_nodes=training.nodes if run else 1,
        precision=training.precision,
        max_epochs=training.epochs,
        accumulate_grad_batches=training.accumulate,
        gradient_clip_val=recipe.optimizer.clip_norm or None,
        check_val_every_n_epoch=training.validate_every,
        log_every_n_steps=min(max(steps, 1), 10),
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        enable_progress_bar=sys.stdout.isatty(),
        callbacks=callbacks,
        logger=loggers,
    )
    # Lightning's handlers would end a run unsaved, and save from within a batch: `Interrupt` has its own.
    trainer._signal_connector.register_signal_handlers = lambda: None  # type: ignore[method-assign]
    return trainer


def _csv_logger(run: Path, resume: bool) -> CSVLogger:
    """Writes `run/metrics.csv`; Lightning's logger would begin it again when a run is resumed."""
    path = run / "metrics.csv"
    rows = list(csv.DictReader(path.read_text(encoding="utf-8").splitlines())) if resume and path.is_file() else []
    logger = CSVLogger(run, name="", version="")
    if rows:
        logger.experiment.metrics = rows
    return logger


def _write_report(trainer: pl.Trainer, module: _Training, folder: Path, run: Path | None = None) -> Report | None:
    """Saves the reports of the last evaluation and their page, with the training curves of `run`. Returns as `_Training.report`."""
    if trainer.is_global_zero:
        recipe, data = module.recipe, module.val_set
        limit = recipe.evaluation.pictures
        pictures = {
            kind: worst_and_best_images(data, module.evaluator.detections(kind), report, limit)
            for kind, report in module.reports.items()
        }
        save_reports(folder, module.reports.values(), summarize(recipe, data), pictures, run)
    text = "\n\n".join(map(str, module.reports.values()))
    trainer.print(f"\n{text}\n\nreport: {folder / 'index.html'}")
    return module.report if module.reports else None
