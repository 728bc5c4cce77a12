"""When a run saves checkpoints, and how it ends when it is stopped."""

import contextlib
import math
import shlex
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.plugins.io import TorchCheckpointIO

from ..checkpoint_file import save_checkpoint
from ..interrupt import Interrupt, stopped_by
from ..launch import queue_again
from ..recipes import Recipe
from ..recipes.detectors import DETECTORS
from ..whole_file import UNFINISHED
from ..words import counted
from .agreement import Agreement
from .guard import Diverged
from .module import DetectorModule
from .stopping import Enough

_RETRY_SECONDS = 60.0  # after an autosave that failed


class Stop(Exception):
    """A run was asked to stop by this signal, and its state is saved."""

    def __init__(self, number: int, is_global_zero: bool) -> None:
        self.number, self.is_global_zero = number, is_global_zero


def resume_command(run: Path, recipe: Recipe) -> str:
    """The command that resumes a run."""
    detector = recipe.model.detector
    named = "" if detector in DETECTORS else f" --model.detector {shlex.quote(detector)}"
    return f"ranksort train {shlex.quote(str(run))} --resume{named}"


@contextlib.contextmanager
def plain_interrupts() -> Iterator[None]:
    """End a stopped run with a KeyboardInterrupt, which Lightning would turn into exit code 1."""
    try:
        yield
    except Stop as stop:
        if stop.is_global_zero:
            raise stopped_by(stop.number) from None
        # The exit code of the first process counts: Lightning kills it if it finds another one that failed.
        sys.exit(0)
    except SystemExit as end:
        if isinstance(end.__context__, KeyboardInterrupt):
            raise end.__context__ from None
        raise


class CheckpointFiles(TorchCheckpointIO):
    """Write checkpoints atomically; Lightning would move them from the temporary folder.

    Attributes:
        failure: why the last one could not be written; "" if it was. It is not raised, because the other processes wait at a barrier.
    """

    failure = ""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write `checkpoint` to `path`; `failure` says why if that was not possible."""
        self.failure = ""
        try:
            save_checkpoint(checkpoint, Path(path))
        except OSError as error:
            self.failure = str(error)


class Unsaved(OSError):
    """A checkpoint that the run depends on could not be written."""


class Checkpoints(pl.Callback):
    """Write `best.ckpt`, and `last.ckpt` at the start, before and after each evaluation, every few minutes and on signals.

    Signals take effect when the current batch or evaluation is done: within one there is no state to resume from.
    """

    def __init__(self, module: DetectorModule, folder: Path, interrupt: Interrupt, files: CheckpointFiles):
        self.module, self.folder, self.interrupt, self.stopping = module, folder, interrupt, module.stopping
        self.agreement: Agreement | None = None  # with several processes
        self.files, self.is_best = files, False  # whether the evaluation of this epoch is the best
        minutes = module.recipe.training.autosave_minutes
        self.interval = 60 * minutes if minutes else math.inf
        self.due_at = time.monotonic() + self.interval

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        # Before the loader forks its workers: Python swallows what a handler raises while it forks.
        self.interrupt.waits = stage == "fit"

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        # Other processes may have started in another second.
        self.module.run = trainer.strategy.broadcast(self.folder.parent)
        if not trainer.is_global_zero:
            self.interrupt.notice = ""
            return
        for unfinished in self.folder.glob(f"*{UNFINISHED}"):  # of a run that was killed
            unfinished.unlink(missing_ok=True)
        progress = self.module.progress
        if (progress["epoch"] or progress["batches"]) and not self.stopping.enough(progress, out_of_time=False):
            print(self._resumed())

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.module.is_restored = True
        if enough := self.stopping.enough(self.module.progress, out_of_time=False):
            raise enough  # as before the resume
        if not (self.module.progress["epoch"] or self.module.progress["batches"]):
            # So that there is something to resume from, and a full disk is noticed now.
            self._save(trainer, "last.ckpt")

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        self.interrupt.waits = False

    def on_train_batch_start(self, trainer: pl.Trainer, *args: Any) -> None:
        # Lightning numbers rows and chooses logged steps by this; when it resumes within an epoch, it sets another number.
        trainer.fit_loop.epoch_loop._batches_that_stepped = trainer.global_step

    def on_train_batch_end(self, trainer: pl.Trainer, *args: Any) -> None:
        is_last = trainer.fit_loop.epoch_loop.batch_progress.is_last_batch
        progress, batches = self.module.progress, self.module.progress["batches"] + 1
        progress |= {"epoch": progress["epoch"] + 1, "batches": 0} if is_last else {"batches": batches}
        if not is_last and batches % trainer.accumulate_grad_batches == 0:
            self._obey(trainer, autosave=time.monotonic() >= self.due_at, at_once=False)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.state.fn == "fit":  # even if the evaluation fails, the epoch is not lost
            trainer.fit_loop.epoch_loop._batches_that_stepped = trainer.global_step - 1
            self.module.awaits_evaluation = True
            self._save(trainer, "last.ckpt")
            self.module.awaits_evaluation = False

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.state.fn == "fit":
            value = self.module.numbers[self.module.iou_types[-1]][self.stopping.settings.best]
            self.is_best = self.stopping.take(value, self.module.progress)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.is_best:  # only after the evaluation: a run can be resumed from here, too
            self._save(trainer, "best.ckpt")
            self.is_best = False
        self._obey(trainer, due=True)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._obey(trainer)

    def _save(self, trainer: pl.Trainer, name: str, is_needed: bool = True) -> bool:
        """Write a checkpoint; return whether that was possible.

        Raises:
            Diverged: on the first process, if the weights are not finite; the others exit.
            Unsaved: on the first process, if it cannot be written; the others exit. If not `is_needed`, it warns and retries later.
        """
        self.module.guard.settle()
        trainer.save_checkpoint(self.folder / name)
        failure = trainer.strategy.broadcast(self.files.failure)
        self.due_at = time.monotonic() + (min(self.interval, _RETRY_SECONDS) if failure else self.interval)
        if failure and is_needed:
            if trainer.is_global_zero:
                raise Unsaved(failure)
            sys.exit(0)
        if failure and trainer.is_global_zero:
            print(f"warning: {failure}. Training continues and tries again in a minute", file=sys.stderr)
        return not failure

    def _obey(self, trainer: pl.Trainer, *, due: bool = False, autosave: bool = False, at_once: bool = True) -> None:
        """Serve the requests of signals, time limit or `autosave` to any process on all of them; if `due`, save in any case.

        An `autosave` may fail. If not `at_once`, several processes on GPUs respond one batch later, to avoid waiting for each batch.
        """
        asked: list[int] = [self.interrupt.stop, self.interrupt.save, self.stopping.seconds_left < 0, autosave]
        if trainer.world_size > 1:
            self.agreement = self.agreement or Agreement(trainer.strategy.root_device)
            asked = self.agreement.now(asked) if at_once else self.agreement.soon(asked)
        stop, save, late, is_time = asked
        enough = self.stopping.enough(self.module.progress, bool(late))
        is_saved = False
        if stop or save or due or enough or is_time:
            if self.agreement:
                self.agreement.forget()
            if not at_once:  # Lightning writes the row of this step later, and the checkpoint counts the rows
                trainer._logger_connector.update_train_step_metrics()
            is_saved = self._save(trainer, "last.ckpt", is_needed=bool(stop or due or enough))
        if save:
            self.interrupt.save = False
            if trainer.is_global_zero:
                if is_saved:
                    print(f"wrote {self.folder / 'last.ckpt'}")
                queue_again()  # SLURM sends this signal shortly before the time limit; if nothing was saved, an older checkpoint has to do
        if stop:
            raise Stop(stop, trainer.is_global_zero)
        if enough:
            raise enough

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        if not trainer.is_global_zero or not isinstance(
            exception, (KeyboardInterrupt, Stop, Enough, Unsaved, Diverged)
        ):
            return
        if isinstance(exception, Enough):
            print(f"\n{exception}")
        if not isinstance(exception, Enough) or exception.resumable:
            resume = f"to continue: {resume_command(self.folder.parent, self.module.recipe)}"
            exists = (self.folder / "last.ckpt").is_file()
            print(resume if exists else "stopped before the first checkpoint was written")

    def _resumed(self) -> str:
        """Where a resumed run continues."""
        progress, epochs = self.module.progress, self.stopping.settings.epochs
        if progress["epoch"] >= epochs:
            return f"{counted(epochs, 'epoch')} trained; only the report is left"
        done = f", after {progress['batches']} of its batches" if progress["batches"] else ""
        return f"continuing with epoch {progress['epoch'] + 1} of {epochs}{done}"
