"""The interface between Lightning and a detector."""

import math
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
import torch.distributed as dist
from torch import Tensor

from ..checkpoints import metadata
from ..data.batch import data_loader
from ..data.coco import CocoDataset
from ..data.fingerprint import fingerprint
from ..evaluation import Report
from ..evaluation.evaluator import Evaluator
from ..losses.not_finite import NotFinite
from ..models import Detector
from ..recipes import Recipe
from ..recipes.build import build_optimizer, build_sampler, parameter_groups, rate_factor
from ..words import counted
from .guard import Guard
from .metrics_file import MetricsFile
from .stopping import Stopping
from .validation import ValidationLosses, computed_once


class DetectorModule(pl.LightningModule):
    """The interface between Lightning and a detector: its losses, its optimiser and its evaluation."""

    reports: dict[str, Report]  # of the last evaluation, on the first process
    numbers: dict[str, dict[str, float]]  # the same numbers, on all processes

    def __init__(self, recipe: Recipe, model: Detector, train_set: CocoDataset | None, val_set: CocoDataset):
        super().__init__()
        self.recipe, self.train_set, self.val_set = recipe, train_set, val_set
        self.model = model.to(memory_format=torch.channels_last)  # makes convolutions a third faster, on CPU and GPU
        assert val_set.file is not None
        self.evaluator = Evaluator(
            val_set.file,
            val_set.categories,
            masks=recipe.model.has_masks,
            style=recipe.evaluation.style,
            max_detections=recipe.evaluation.max_detections or None,
        )
        self.iou_types = tuple(self.evaluator.truths)
        self.losses = ValidationLosses(recipe.data.min_box_size)
        self.stopping = Stopping(recipe.training)
        self.progress = self.stopping.start()
        self.guard = Guard(self)
        self.run: Path | None = None  # its folder, in training
        self.loss: Tensor | None = None  # of the last batch, averaged over all processes; None: it was skipped
        # Names of what is logged for a batch: its loss, the losses it is the sum of, and others.
        self.logged: tuple[str, ...] = ()
        self.num_losses = 0  # how many of these are losses
        self.is_restored = False  # whether the state of a resumed run has been loaded from its checkpoint
        self.awaits_evaluation = False  # whether a checkpoint saved now still has to be evaluated
        self.fingerprint = fingerprint(train_set) if train_set else ""

    def train_dataloader(self) -> Any:
        assert self.train_set is not None
        sampler = build_sampler(self.recipe, self.train_set, self.trainer.global_rank, self.trainer.world_size)
        sampler.set_epoch(self.progress["epoch"])
        sampler.skip(self.progress["batches"])
        return data_loader(self.train_set, batch_sampler=sampler, workers=self.recipe.data.workers)

    def val_dataloader(self) -> Any:
        mine = range(self.trainer.global_rank, len(self.val_set), self.trainer.world_size)  # no image twice
        return data_loader(self.val_set, sampler=mine, workers=self.recipe.data.workers)

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        seed = hash((self.recipe.training.seed, self.current_epoch, batch_idx, self.global_rank)) & (2**63 - 1)
        torch.manual_seed(seed)
        self.guard.begin(batch, batch_idx, seed)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        images, targets = batch
        losses: dict[str, Tensor] = {}
        total: Any
        try:
            found = self.model(images, targets, True)
        except NotFinite as error:
            reason = str(error)
            if not self.logged:
                raise self.guard.unnamed(reason) from None
            total = self._no_loss()
            values = [total.new_full((), math.nan)] * len(self.logged)
        except Exception:
            self.guard.judge_previous()  # which may be the cause
            raise
        else:
            reason, losses = "", {name: loss.detach() for name, loss in found.losses.items()}
            total = sum(found.losses.values())
            logs = {"loss": total.detach(), **losses, **found.logs()}
            self.logged, self.num_losses = tuple(logs), 1 + len(losses)
            values = [x if isinstance(x, Tensor) else total.new_full((), x) for x in logs.values()]
        means = mean_of_processes(torch.stack([value.detach().float() for value in values]))
        if not self.guard.look_at(losses, means[: self.num_losses], reason):
            self.loss = None
            return self._no_loss()
        size, self.loss = len(images), means[0]
        self.log("train/loss", means[0], prog_bar=True, batch_size=size)
        others = zip(self.logged[1:], means[1:], strict=True)
        self.log_dict({f"train/{name}": value for name, value in others}, batch_size=size)
        rate = self.optimizers().param_groups[0]["lr"]  # type: ignore[union-attr]
        # A number instead of a tensor would be copied to the device, which waits.
        self.log("train/lr", means.new_full((), rate), batch_size=size)
        return total

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        self.guard.look_at_gradients([p for group in optimizer.param_groups for p in group["params"]])

    def _no_loss(self) -> Tensor:
        """Replacement for a loss that is not finite: its gradients are 0, and the other processes wait for them."""
        return sum((0 * p.sum() for p in self.parameters() if p.requires_grad), torch.zeros((), device=self.device))

    def on_validation_epoch_start(self) -> None:
        self.evaluator.reset()
        self.losses.reset()

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        images, targets = batch
        with computed_once(self.model.backbone):
            self.evaluator.update(self.model(images), [target["image_id"] for target in targets])
            if self.trainer.state.fn == "fit":
                self.losses.update(self.model, images, targets)

    def on_validation_epoch_end(self) -> None:
        self.evaluator.merge(self.device)
        self.reports = self.evaluator.compute() if self.trainer.is_global_zero else {}
        numbers = {kind: report.as_dict() for kind, report in self.reports.items()}
        self.numbers = self.trainer.strategy.broadcast(numbers)
        if self.trainer.state.fn == "fit":
            for kind, values in self.numbers.items():
                prefix = "val/mask_" if kind == "segm" else "val/"
                self.log_dict({f"{prefix}{name}": v for name, v in values.items()}, rank_zero_only=False)
            self.log_dict({f"val/{name}": loss for name, loss in self.losses.compute().items()}, rank_zero_only=False)
            text = "\n\n".join(map(str, self.reports.values()))
            self.print(f"\nepoch {self.current_epoch + 1} of {self.trainer.max_epochs}\n{text}\n")
        if self.trainer.is_global_zero:
            self._explain_what_is_missing()

    def _explain_what_is_missing(self) -> None:
        """Print which setting may be the reason for fewer detections than objects."""
        model = self.recipe.model
        found, num_objects = len(self.evaluator), len(self.report.matches.object_score)
        if at_limit := self.evaluator.missing(model.detections_per_image):
            self.print(
                f"--model.detections-per-image {model.detections_per_image} leaves {counted(at_limit, 'object')} without a detection, "
                "in images with more objects than that.\n"
            )
        if found + at_limit < num_objects and self.evaluator.thresholds is None:  # otherwise it was asked for
            self.print(
                f"only {counted(found, 'detection')} for {counted(num_objects, 'object')}: "
                f"--model.score-threshold {model.score_threshold} may be too "
                f"high. After short runs, scores are still close to --model.prior {model.prior}.\n"
            )

    @property
    def report(self) -> Report:
        """The report of the last evaluation: of masks if the detector has them, else of boxes."""
        return self.reports[self.iou_types[-1]]

    def configure_optimizers(self) -> Any:
        epochs, optimizer = self.recipe.training.epochs, build_optimizer(self.recipe, self.model)
        steps = int(self.trainer.estimated_stepping_batches) // epochs
        factor = rate_factor(self.recipe.optimizer, steps, epochs)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.progress["rows"] = sum(len(logger.rows) for logger in self.loggers if isinstance(logger, MetricsFile))
        about = {"progress": dict(self.progress), "fingerprint": self.fingerprint}
        checkpoint["ranksort"] = metadata(self.recipe, self.val_set.categories) | about
        if self.awaits_evaluation:
            # To Lightning, an evaluation that has not started looks like a finished one; an evaluation in its first batch is repeated.
            evaluated = checkpoint["loops"]["fit_loop"]["epoch_loop.val_loop.batch_progress"]["total"]
            evaluated |= {"ready": 1, "started": 1, "processed": 0, "completed": 0}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.progress |= checkpoint["ranksort"]["progress"]  # a checkpoint of an older version has only its best AP
        trained = [p for group in parameter_groups(self.recipe, self.model) for p in group["params"]]
        for optimizer in checkpoint["optimizer_states"]:
            for number, state in optimizer["state"].items():
                for value in state.values():
                    fits = not isinstance(value, Tensor) or value.shape in ((), trained[number].shape)
                    if not fits or not isinstance(value, Tensor | float | int | None):
                        raise TypeError(f"the state of the optimiser does not fit parameter {number}")


def mean_of_processes(values: Tensor) -> Tensor:
    """The mean of a tensor over the processes of a run (same shape on all), without waiting for the device."""
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(values)
        values /= dist.get_world_size()
    return values
