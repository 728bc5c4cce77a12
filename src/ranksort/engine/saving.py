"""When a run writes its checkpoints, and how it ends when it is stopped."""

import contextlib
import shlex
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytorch_lightning as pl

from ..interrupt import Interrupt, stopped_by
from ..launch import queue_again
from ..recipes.detectors import DETECTORS
from .agreement import Agreement
from .module import DetectorModule
from .stopping import Enough

_AUTOSAVE_MINUTES = 15


class Stop(Exception):
    """A run has been asked to stop by this signal, and its state is saved."""

    def __init__(self, number: int, is_global_zero: bool) -> None:
        self.number, self.is_global_zero = number, is_global_zero


@contextlib.contextmanager
def plain_interrupts() -> Iterator[None]:
    """A run that was stopped ends in a KeyboardInterrupt; of such Lightning would make exit code 1."""
    try:
        yield
    except Stop as stop:
        if stop.is_global_zero:
            raise stopped_by(stop.number) from None
        # One exit code for all processes, that of the first: Lightning kills it where it finds another that has failed.
        sys.exit(0)
    except SystemExit as end:
        if isinstance(end.__context__, KeyboardInterrupt):
            raise end.__context__ from None
        raise


class Checkpoints(pl.Callback):
    """Writes `best.ckpt`, and `last.ckpt` before and after each evaluation, every quarter of an hour and where a signal asks for it.

    Signals take effect when the batch is done, or the evaluation: between the two there is no state to resume from.
    """

    def __init__(self, module: DetectorModule, folder: Path, interrupt: Interrupt):
        self.module, self.folder, self.interrupt, self.stopping = module, folder, interrupt, module.stopping
        self.saved_at = time.monotonic()
        self.agreement: Agreement | None = None  # of several processes

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        # Before the loader forks its workers: Python swallows what a handler raises while it forks.
        self.interrupt.waits = stage == "fit"

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not trainer.is_global_zero:
            self.interrupt.notice = ""
        elif self.module.progress["epoch"] or self.module.progress["batches"]:
            print(self._resumed())

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if enough := self.stopping.enough(self.module.progress, out_of_time=False):
            raise enough  # as before it was resumed

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        self.interrupt.waits = False

    def on_train_batch_end(self, trainer: pl.Trainer, *args: Any) -> None:
        is_last = trainer.fit_loop.epoch_loop.batch_progress.is_last_batch
        progress, batches = self.module.progress, self.module.progress["batches"] + 1
        progress |= {"epoch": progress["epoch"] + 1, "batches": 0} if is_last else {"batches": batches}
        if not is_last and batches % trainer.accumulate_grad_batches == 0:
            self._obey(trainer, due=time.monotonic() - self.saved_at > 60 * _AUTOSAVE_MINUTES, at_once=False)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.state.fn == "fit":  # whatever becomes of the evaluation, the epoch is not lost
            self.module.awaits_evaluation = True
            trainer.save_checkpoint(self.folder / "last.ckpt")
            self.module.awaits_evaluation = False

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.state.fn == "fit":
            value = self.module.numbers[self.module.iou_types[-1]][self.stopping.settings.best]
            if self.stopping.take(value, self.module.progress):
                trainer.save_checkpoint(self.folder / "best.ckpt")

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._obey(trainer, due=True)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._obey(trainer, due=False)

    def _obey(self, trainer: pl.Trainer, due: bool, at_once: bool = True) -> None:
        """Does what signals to any of the processes have asked for, or its time, in all of them; where it is `due`, saves anyway.

        Not `at_once`, several processes on GPUs do it a batch later: else these would be waited for after each.
        """
        asked: list[int] = [self.interrupt.stop, self.interrupt.save, self.stopping.seconds_left < 0, due]
        if trainer.world_size > 1:
            self.agreement = self.agreement or Agreement(trainer.strategy.root_device)
            asked = self.agreement.now(asked) if at_once else self.agreement.soon(asked)
        stop, save, late, is_due = asked
        enough = self.stopping.enough(self.module.progress, bool(late))
        if stop or save or is_due or enough:
            if self.agreement:
                self.agreement.forget()
            trainer.save_checkpoint(self.folder / "last.ckpt")
            self.saved_at = time.monotonic()
        if save:
            self.interrupt.save = False
            if trainer.is_global_zero:
                print(f"wrote {self.folder / 'last.ckpt'}")
                queue_again()  # the signal by which SLURM tells that the time of a job is over
        if stop:
            raise Stop(stop, trainer.is_global_zero)
        if enough:
            raise enough

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        if not trainer.is_global_zero or not isinstance(exception, (KeyboardInterrupt, Stop, Enough)):
            return
        if isinstance(exception, Enough):
            print(f"\n{exception}")
        if not isinstance(exception, Enough) or exception.resumable:
            detector = self.module.recipe.model.detector
            named = "" if detector in DETECTORS else f" --model.detector {shlex.quote(detector)}"
            resume = f"to continue: ranksort train {shlex.quote(str(self.folder.parent))} --resume{named}"
            is_saved = (self.folder / "last.ckpt").is_file()
            print(resume if is_saved else "stopped before there was a checkpoint to continue from")

    def _resumed(self) -> str:
        """Where a run goes on that is resumed."""
        progress, epochs = self.module.progress, self.stopping.settings.epochs
        if progress["epoch"] >= epochs:
            return f"all {epochs} epochs have been trained"
        done = f", {progress['batches']} of its batches are done" if progress["batches"] else ""
        return f"continuing with epoch {progress['epoch'] + 1} of {epochs}{done}"
