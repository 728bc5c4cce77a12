"""Lightning's trainer, with progress output and logs."""

import logging
import sys
import warnings
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import EMAWeightAveraging, RichProgressBar
from pytorch_lightning.loggers import TensorBoardLogger
from pytorch_lightning.plugins.environments import LightningEnvironment

from ..interrupt import Interrupt
from .log_lines import LogLines
from .metrics_file import MetricsFile
from .module import DetectorModule
from .saving import CheckpointFiles, Checkpoints

LOG_EVERY = 10  # steps; in smaller epochs once
_MISLEADING = (  # warnings of Lightning and PyTorch that do not help our users
    ".*does not have many workers.*",
    ".*ended before the epoch ended.*",  # we do resume there
    ".*in eval mode at the start of training.*",  # the frozen batch norms
    ".*isinstance.treespec, LeafSpec.*",
    ".*recommended to use .*sync_dist=True.*",  # all processes log the same report
    ".*This DataLoader will create.*",  # a run says it in a sentence
)


def build_trainer(
    module: DetectorModule,
    run: Path | None = None,
    interrupt: Interrupt | None = None,
    rows: int | None = 0,
) -> pl.Trainer:
    """Build Lightning's trainer; without a run folder and `interrupt`, one that only evaluates.

    `rows` is the number of rows of an existing `metrics.csv` to keep; None: all.
    """
    for message in _MISLEADING:
        warnings.filterwarnings("ignore", message)
    recipe, training = module.recipe, module.recipe.training
    steps = len(module.train_set) // training.batch_size if module.train_set else 0
    callbacks: list[pl.Callback] = [_ProgressBar() if sys.stdout.isatty() else LogLines(module.stopping)]
    loggers: list[Any] = []
    # Evaluation runs in one process, however many SLURM has started.
    plugins: list[Any] = [] if run else [LightningEnvironment()]
    if run is not None and interrupt is not None:
        if training.ema_decay:
            callbacks.append(EMAWeightAveraging(decay=training.ema_decay))
        # Last, because the others have state to save.
        files = CheckpointFiles()
        plugins.append(files)
        callbacks.append(Checkpoints(module, run / "checkpoints", interrupt, files))
        metrics = MetricsFile(run / "metrics.csv", rows)
        # Later steps in TensorBoard's log are logged again.
        purged = int(float(metrics.rows[-1]["step"])) + 1 if metrics.rows else None
        loggers = [metrics, TensorBoardLogger(run, name="", version="tensorboard", purge_step=purged)]
    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
    trainer = pl.Trainer(
        default_root_dir=run,  # not the working directory: there Lightning would resume what another SLURM job left behind
        accelerator="auto",
        plugins=plugins,
        devices=training.devices if run else 1,
        num_nodes=training.nodes if run else 1,
        precision=training.precision,
        max_epochs=training.epochs,
        accumulate_grad_batches=training.accumulate,
        gradient_clip_val=recipe.optimizer.clip_norm or None,
        check_val_every_n_epoch=training.validate_every,
        log_every_n_steps=min(max(steps, 1), LOG_EVERY),
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        enable_progress_bar=sys.stdout.isatty(),
        callbacks=callbacks,
        logger=loggers,
    )
    # Lightning's handlers would end a run unsaved, or save in the middle of a batch; `Interrupt` has its own.
    trainer._signal_connector.register_signal_handlers = lambda: None  # type: ignore[method-assign]
    return trainer


class _ProgressBar(RichProgressBar):
    def _get_train_description(self, current_epoch: int) -> str:
        return f"Epoch {current_epoch + 1} of {self.trainer.max_epochs}"  # Lightning counts from 0

    def get_metrics(self, *args: Any) -> dict[str, Any]:
        return {name: value for name, value in super().get_metrics(*args).items() if name != "v_num"}
