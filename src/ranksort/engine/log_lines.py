"""Progress of a run without a terminal: in files, batch jobs and CI."""

import time
from typing import Any

import pytorch_lightning as pl
import torch

from .stopping import Stopping

_FIRST_SECONDS, _SECONDS = 10.0, 60.0


class LogLines(pl.Callback):
    """Print a line per minute: epoch, step, loss, images per second and time left; during evaluation, how many images are done.

    The first line of training comes after ten seconds. The loss is the mean since the previous line. It stays on the device until a line
    is due, so that no other batch waits for it.

    Args:
        stopping: knows the time limit of the run.
    """

    def __init__(self, stopping: Stopping) -> None:
        self.stopping = stopping
        self.due = time.monotonic() + _FIRST_SECONDS
        # Time spent in training since the run started, without evaluations, and in the last evaluation.
        self.train_seconds, self.batches, self.evaluation_seconds = 0.0, 0, 0.0
        self._forget()

    def _forget(self) -> None:
        """Start to collect for the next line."""
        self.last = self.since = time.monotonic()
        self.images, self.losses, self.num_losses = 0, torch.zeros(()), 0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._forget()  # a run resumed within an epoch does not call on_train_epoch_start

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._forget()

    def on_train_batch_end(self, trainer: pl.Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        now = time.monotonic()
        self.train_seconds += now - self.last
        self.last = now
        self.batches += 1
        self.images += len(batch[0]) * trainer.world_size
        if module.loss is not None:
            self.losses = self.losses.to(module.device) + module.loss
            self.num_losses += 1
        if now >= self.due:
            accumulated, batches = trainer.accumulate_grad_batches, int(trainer.num_training_batches)
            self._print(
                trainer,
                f"epoch {trainer.current_epoch + 1} of {trainer.max_epochs}, "
                f"step {-(-(batch_idx + 1) // accumulated)} of {-(-batches // accumulated)}: "
                f"loss {float(self.losses) / max(self.num_losses, 1):.3f}, {self.images / (now - self.since):.1f} images/s, "
                f"{duration(self._seconds_left(trainer, batches - batch_idx - 1))} left",
            )
            self._forget()

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._forget()
        self.evaluation_began = self.last

    def on_validation_batch_end(self, trainer: pl.Trainer, module: Any, outputs: Any, batch: Any, *_: Any) -> None:
        self.images += len(batch[0])
        now = time.monotonic()
        if now >= self.due:
            speed = self.images * trainer.world_size / (now - self.since)
            total = len(module.val_set)
            done = min(self.images * trainer.world_size, total)
            after = f" after epoch {trainer.current_epoch + 1}" if trainer.state.fn == "fit" else ""
            self._print(
                trainer,
                f"evaluating{after}: {done} of {total} images, {speed:.1f} images/s, {duration((total - done) / speed)} left",
            )

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.evaluation_seconds = time.monotonic() - self.evaluation_began

    def _seconds_left(self, trainer: pl.Trainer, batches: int) -> float:
        """Time left in the run: `batches` more in this epoch, the epochs after it, and all evaluations including that of the report.

        Until an evaluation has been timed, its images are assumed to take as long as in training.
        """
        module: Any = trainer.lightning_module
        epochs, done, every = int(trainer.max_epochs or 0), trainer.current_epoch, trainer.check_val_every_n_epoch or 1
        of_epoch, batch = int(trainer.num_training_batches), self.train_seconds / self.batches
        evaluation = self.evaluation_seconds or batch * of_epoch * len(module.val_set) / len(module.train_set)
        seconds = batch * (batches + (epochs - done - 1) * of_epoch)
        seconds += evaluation * (epochs // every - done // every)
        return min(seconds, max(self.stopping.seconds_left, 0)) + evaluation

    def _print(self, trainer: pl.Trainer, text: str) -> None:
        if trainer.is_global_zero:
            print(f"{time.strftime('%H:%M:%S')}  {text}", flush=True)
        self.due = time.monotonic() + _SECONDS


def duration(seconds: float) -> str:
    """Format a duration: "45 s", "12 min", "3 h 05 min"."""
    if round(seconds) < 60:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02} min"
