"""Handling of losses and gradients that are NaN or infinite."""

import contextlib
import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from safetensors.torch import load_file, safe_open, save
from torch import Tensor, nn

from ..data.batch import Batch
from ..data.ids import Id
from ..whole_file import replace_file
from ..words import listed

if TYPE_CHECKING:
    from .module import DetectorModule

_MOST_SKIPPED = 10  # consecutive steps, after which the batches are not to blame
_ADVICE = "Start again with a lower --optimizer.lr, with --optimizer.clip-norm, or with --training.precision 32-true"
_MOST_KEPT = 20  # batches saved by each process


class Diverged(ValueError):
    """A loss, a gradient or a weight is not finite."""


@dataclass
class _Step:
    """What has to be known about a step if it turns out not to be finite."""

    batch: Batch
    index: int  # of the batch in its epoch
    epoch: int  # from 0
    number: int  # of the optimiser step in the run, from 1
    seed: int  # of all random draws in it
    losses: dict[str, Tensor] = field(default_factory=dict)  # of this process
    reason: str = ""  # message of the error that a loss raised
    finite_loss: Tensor | None = None  # bool, for the mean over all processes
    finite_gradient: Tensor | None = None  # bool; the same on all processes
    ready: Any = None  # CUDA event: both have been copied from the device
    is_bad: bool = False


class Guard:
    """Watch for numbers that are not finite in a run.

    If training stops at the first of them, the host on CUDA learns of it one step later, so that no step waits for the device; until then
    nothing is saved. If such batches are skipped, and on other devices, it is known before the weights change.

    Args:
        module: the module of the run.
    """

    def __init__(self, module: "DetectorModule") -> None:
        self.module = module
        self.skips = module.recipe.training.on_nan == "skip"
        self.step: _Step | None = None
        self.previous: _Step | None = None
        self.buffers: list[Tensor] = []
        self.in_a_row, self.kept = 0, 0
        self.used = 0  # batches whose gradients the next optimiser step uses

    @property
    def _waits(self) -> bool:
        """Whether the host waits for the device, to know immediately."""
        return self.skips or self.module.device.type != "cuda"

    def begin(self, batch: Batch, index: int, seed: int) -> None:
        """Call before each batch."""
        self.previous = None if self._waits else self.step
        if self.step is None or not self.step.is_bad:
            self.in_a_row = 0
        number = self.module.trainer.global_step + 1
        self.step = _Step(batch, index, self.module.current_epoch, number, seed)
        if self.skips:  # batch norms take non-finite values into their statistics
            self.buffers = [buffer.clone() for buffer in self.module.model.buffers()]

    def look_at(self, losses: dict[str, Tensor], means: Tensor, reason: str = "") -> bool:
        """Call after the forward pass; returns whether to use the batch.

        Args:
            losses: of this process, by name; empty if one could not be computed.
            means: losses averaged over all processes.
            reason: the error message in that case.

        Raises:
            Diverged: on the first process, if the run has to stop; the others exit.
        """
        step = self.step
        assert step is not None
        step.losses, step.reason = losses, reason
        step.finite_loss = self._expect(step, means.isfinite().all())
        self.judge_previous()
        is_used = not self._waits or self._judge(step)
        if not is_used:
            step.finite_loss = None  # done; accumulated batches before it may have left a gradient
        self.used += is_used
        return is_used

    def judge_previous(self) -> None:
        """Look at the previous step, if that has not been done.

        Raises:
            Diverged: as for `look_at`.
        """
        previous, self.previous = self.previous, None
        if previous is not None:
            self._judge(previous)

    def look_at_gradients(self, parameters: list[nn.Parameter]) -> None:
        """Call before each optimiser step, which is skipped if gradients are not finite or no batch is used.

        The gradients become the mean over the batches that are used, which may be fewer than `training.accumulate`.

        All processes have the same gradients. With `16-mixed`, overflows are expected: the loss scale is adjusted by them.

        Raises:
            Diverged: as `look_at`.
        """
        step, gradients = self.step, [p.grad for p in parameters if p.grad is not None]
        used, self.used = self.used, 0
        if not used:
            for parameter in parameters:
                parameter.grad = None
        elif gradients and used != (wanted := self.module.recipe.training.accumulate):  # Lightning has divided by it
            torch._foreach_mul_(gradients, wanted / used)
        if step is None or not gradients or not used or self.module.recipe.training.precision == "16-mixed":
            return
        step.finite_gradient = self._expect(step, torch.nn.utils.get_total_norm(gradients).isfinite())
        if self._waits and not self._judge(step):
            for parameter in parameters:
                parameter.grad = None

    def unnamed(self, reason: str) -> Diverged:
        """The error to raise if the very first batch has no loss, so that not even the names of the losses are known."""
        assert self.step is not None
        self.step.reason = reason
        return Diverged(f"{self._describe(self.step, 'the loss is not finite')}. {_ADVICE}")

    def settle(self) -> None:
        """Look at pending results and at the weights, before these are saved.

        Raises:
            Diverged: as `look_at`.
        """
        self.judge_previous()
        if self.step is not None and not self.step.is_bad:
            self._judge(self.step)
        model = self.module.model
        bad = [~p.isfinite().all() for p in model.parameters()] + [b.isnan().any() for b in model.buffers()]
        found = torch.stack([x.to(bad[0].device) for x in bad]).any().int()
        if self.module.trainer.world_size > 1:  # buffers may differ
            dist.all_reduce(found, dist.ReduceOp.MAX)
        if bool(found):
            self._stop([f"the weights are not finite after step {self.module.trainer.global_step}"])

    def _expect(self, step: _Step, finite: Tensor) -> Tensor:
        """Copy `finite` to the host, without waiting for it."""
        if finite.device.type != "cuda" or self._waits:
            return finite
        finite = finite.to("cpu", non_blocking=True)
        step.ready = torch.cuda.Event()
        step.ready.record()
        return finite

    def _judge(self, step: _Step) -> bool:
        """Whether a step was finite on all processes; all of them have to call this."""
        if step.ready is not None:
            step.ready.synchronize()
        by_loss = step.finite_loss is None or bool(step.finite_loss)
        if by_loss and (step.finite_gradient is None or bool(step.finite_gradient)):
            return True
        step.is_bad = True
        is_own = by_loss or bool(step.reason) or not _are_finite(step.losses)
        what = "the gradient is not finite, although the loss is," if by_loss else "the loss is not finite"
        own = [self._describe(step, what)] if is_own else []
        sentences = own
        if self.module.trainer.world_size > 1:
            gathered: list[Any] = [None] * self.module.trainer.world_size
            dist.all_gather_object(gathered, own)
            sentences = [sentence for part in gathered for sentence in part]
        self.in_a_row += 1
        if not self.skips:
            self._stop(sentences)
        if self.in_a_row >= _MOST_SKIPPED:
            self._stop([*sentences[:1], f"as in the {_MOST_SKIPPED - 1} steps before it"])
        for buffer, before in zip(self.module.model.buffers(), self.buffers, strict=True):
            buffer.copy_(before)
        if self.module.trainer.is_global_zero:
            print(f"\nskipped: {'; '.join(sentences)}", file=sys.stderr)
        return False

    def _stop(self, sentences: list[str]) -> None:
        if not self.module.trainer.is_global_zero:
            sys.exit(0)
        or_skip = "" if self.skips else "; or resume with --training.on-nan skip to skip such batches"
        raise Diverged(f"{'; '.join(sentences)}. The last checkpoint was saved before that. {_ADVICE}{or_skip}")

    def _describe(self, step: _Step, what: str) -> str:
        """Describe what is wrong and where, after saving the batch."""
        bad = [f"{name} {float(loss):g}" for name, loss in step.losses.items() if not bool(loss.isfinite())]
        images = listed([_file_name(self.module, target["image_id"]) for target in step.batch[1]], 8)
        module = _first_module(self.module.model, step) if self._waits else ""
        where = f", first in {module}" if module else ""
        reason = f" ({', '.join(bad) or step.reason}{where})" if bad or step.reason or where else ""
        sentence = f"{what} at step {step.number}, epoch {step.epoch + 1}{reason}, in the batch of images {images}"
        return f"{sentence}; {self._keep(step, what)}"

    def _keep(self, step: _Step, what: str) -> str:
        """Save a batch in the run folder; returns a sentence that says where."""
        folder = self.module.run / "not_finite" if self.module.run else None
        if folder is None or self.kept >= _MOST_KEPT:
            return "its batch is not saved"
        self.kept += 1
        path = folder / f"step_{step.number}_process_{self.module.global_rank}.safetensors"
        try:
            save_batch(path, step, what, self.module)
        except OSError as error:
            return f"its batch is not saved ({error})"
        return f"the batch is saved as {path}"


def save_batch(path: Path, step: _Step, what: str, module: "DetectorModule") -> None:
    """Save the images and targets of a step, and what is known about it, as safetensors; `read_batch` reads them."""
    images, targets = step.batch
    tensors = {f"image.{n}": image for n, image in enumerate(images)}
    for n, target in enumerate(targets):
        tensors |= {f"{key}.{n}": value for key, value in target.items() if isinstance(value, Tensor)}
    about = {
        "what": what,
        "step": step.number,
        "epoch": step.epoch + 1,
        "batch": step.index,
        "seed": step.seed,
        "precision": module.recipe.training.precision,
        "image_ids": [target["image_id"] for target in targets],
        "files": [_file_name(module, target["image_id"]) for target in targets],
        "losses": {name: str(float(loss)) for name, loss in step.losses.items()},
        "reason": step.reason,
    }
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    replace_file(path, save(plain, metadata={"ranksort": json.dumps(about)}))


def read_batch(path: str | Path) -> tuple[list[Tensor], list[dict[str, Tensor]], dict[str, Any]]:
    """Read a batch that a run saved in its folder `not_finite`.

    Returns:
        Images and targets, as a detector takes them in training, and a description of the step: its `seed`, for
        `torch.manual_seed`, its `losses`, `files`, ...
    """
    tensors = load_file(path)
    with safe_open(path, framework="pt") as file:
        about = json.loads(file.metadata()["ranksort"])
    count = len(about["image_ids"])
    targets: list[dict[str, Tensor]] = [{} for _ in range(count)]
    for name, tensor in tensors.items():
        key, _, number = name.rpartition(".")
        if key != "image":
            targets[int(number)][key] = tensor
    return [tensors[f"image.{n}"] for n in range(count)], targets, about


def _are_finite(losses: dict[str, Tensor]) -> bool:
    return bool(torch.stack([loss.isfinite() for loss in losses.values()]).all())


def _file_name(module: "DetectorModule", image_id: Id) -> str:
    assert module.train_set is not None
    return module.train_set.file_name(module.train_set.image_ids.index(image_id))


@torch.no_grad()
def _first_module(model: nn.Module, step: _Step) -> str:
    """The first module that turns finite inputs into non-finite outputs; "" if there is none."""
    found: list[str] = []

    def hook(name: str) -> Any:
        def look(_: nn.Module, inputs: Any, output: Any) -> None:
            if not found and not _is_finite(output) and _is_finite(inputs):
                found.append(name)

        return look

    hooks = [
        part.register_forward_hook(hook(name)) for name, part in model.named_modules() if not list(part.children())
    ]
    try:
        devices = [step.batch[0][0].device] if step.batch[0][0].is_cuda else []
        with torch.random.fork_rng(devices=devices), contextlib.suppress(ValueError, torch.OutOfMemoryError):
            torch.manual_seed(step.seed)
            model(*step.batch)
    finally:
        for registered in hooks:
            registered.remove()
    return found[0] if found else ""


def _is_finite(values: Any) -> bool:
    if isinstance(values, Tensor):
        return not values.is_floating_point() or bool(values.isfinite().all())
    return all(map(_is_finite, values)) if isinstance(values, tuple | list) else True
