"""Which evaluation of a run is the best, and when a run ends before its last epoch."""

import math
import time
from typing import TypedDict

from ..checkpoints import Checkpoint
from ..evaluation.metrics import list_metrics
from ..recipes.recipe import TrainingSettings
from ..words import counted


class Enough(Exception):
    """The run ends before its last epoch, with its state saved; the message says why.

    Attributes:
        resumable: whether it would continue if resumed with the same settings.
    """

    def __init__(self, why: str, resumable: bool) -> None:
        super().__init__(why)
        self.resumable = resumable


class Progress(TypedDict):
    """The progress of a run, as saved in checkpoints."""

    epoch: int  # of the next batch to train on, from 0
    batches: int  # batches of that epoch that are done
    best: float  # best value so far, such as AP in 0..1; infinitely bad before the first evaluation
    best_epoch: int  # epoch of that value, from 1; 0: none, or unknown
    since_best: int  # evaluations since then
    rows: int  # of metrics.csv


def read_progress(checkpoint: Checkpoint) -> Progress:
    """The progress of the run that wrote a checkpoint.

    Raises:
        ValueError: the checkpoint does not contain it.
    """
    known = {"epoch": 0, "batches": 0, "best": 0.0, "best_epoch": 0, "since_best": 0, "rows": 0}
    progress = checkpoint.progress
    if not isinstance(progress, dict) or not all(
        isinstance(value, (float, int) if key == "best" else int) and (key == "best" or value >= 0)
        for key, value in progress.items()
        if key in known
    ):
        raise ValueError(f"{checkpoint.path} cannot be resumed: it does not contain the progress of its run")
    return progress  # type: ignore[return-value]


class Stopping:
    """Track the evaluations of a run, and decide when it ends.

    Args:
        settings: `best`, `patience` and `max_minutes` are used. The minutes start now.
    """

    def __init__(self, settings: TrainingSettings) -> None:
        self.settings, self.began = settings, time.monotonic()
        metric = next(metric for metric in list_metrics([]) if metric.name == settings.best)
        self.higher_is_better = metric.family.higher_is_better

    def start(self) -> Progress:
        """The progress of a run that has not started."""
        worst = -math.inf if self.higher_is_better else math.inf
        return {"epoch": 0, "batches": 0, "best": worst, "best_epoch": 0, "since_best": 0, "rows": 0}

    def take(self, value: float, progress: Progress) -> bool:
        """Note the value of an evaluation after `progress["epoch"]` epochs; return whether it is the best so far. NaN never is."""
        is_best = value > progress["best"] if self.higher_is_better else value < progress["best"]
        if is_best:
            progress["best"], progress["best_epoch"], progress["since_best"] = value, progress["epoch"], 0
        else:
            progress["since_best"] += 1
        return is_best

    @property
    def seconds_left(self) -> float:
        """Seconds until `max_minutes` are over; infinite if there is no limit."""
        minutes = self.settings.max_minutes
        return 60 * minutes - (time.monotonic() - self.began) if minutes else math.inf

    def enough(self, progress: Progress, out_of_time: bool) -> Enough | None:
        """Why the run has to end now; None if it does not.

        Args:
            progress: progress of the run.
            out_of_time: whether `seconds_left` is below 0 on any process.
        """
        settings, epoch, waited = self.settings, progress["epoch"], progress["since_best"]
        if epoch >= settings.epochs:
            return None
        if settings.patience and waited >= settings.patience:
            better = "higher" if self.higher_is_better else "lower"
            after = f"after {counted(waited, 'evaluation')} without a {better} {settings.best}"
            return Enough(
                f"stopped at epoch {epoch} of {settings.epochs}, {after} (--training.patience)", resumable=False
            )
        if out_of_time:
            where = f"in epoch {epoch + 1}" if progress["batches"] else f"after epoch {epoch}"
            limit = f"--training.max-minutes {settings.max_minutes:g}"
            return Enough(f"stopped {where} of {settings.epochs}: {limit} reached", resumable=True)
        return None
