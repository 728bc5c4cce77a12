"""Weights on disk: checkpoints of runs, and safetensors.

Files are untrusted: only tensors and plain values are read from them, never code.
"""

import contextlib
import dataclasses
import json
import os
import warnings
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from .checkpoint_file import load_checkpoint, save_checkpoint
from .data.coco_columns import Category
from .device import usable_device
from .evaluation.calibration import Target
from .evaluation.model_scores import find_calibration, find_thresholds
from .mmdetection import is_of_loss
from .models import Detector
from .recipes import Recipe, create_model
from .recipes.build import with_pixel_statistics
from .recipes.detectors import DETECTORS
from .whole_file import replace_file
from .words import counted, listed


@dataclass
class Checkpoint:
    """A trained model on disk."""

    recipe: Recipe  # it was trained with
    categories: list[Category]
    """its classes, in the order of their labels; empty: the recipe gives their number, and their names are unknown"""
    state_dict: dict[str, Tensor]
    fingerprint: str = ""  # of the training images and objects; "" for models that are not from a run
    scores: dict[str, Any] = field(default_factory=dict)
    """thresholds and calibrations from validation data: contents of `evaluation.model_scores.FILES`, by kind"""
    path: Path | None = None  # its file
    progress: dict[str, Any] = field(default_factory=dict)  # of a run; see `engine.stopping.Progress`
    note: str = ""  # why this checkpoint of the run is used instead of another one

    def build(self, device: str | torch.device = "cpu", **model_overrides: Any) -> Detector:
        """Return the model in evaluation mode; see `create_model` for the overrides.

        Detections do not depend on the training loss. If the model was trained with another one than the recipe's, such as `losses=` of
        `create_model`, the state of that loss is left out.

        Raises:
            ValueError: the device cannot be used, the weights do not fit, or the detector is from a user's file and not among the
                overrides.
        """
        place = usable_device(device)
        self.check_fits(num_classes=len(self.categories), **model_overrides)
        model = create_model(self.recipe, num_classes=len(self.categories), **model_overrides)
        load_weights(model, _with_loss_of(model, self.state_dict), self._name)
        model.class_names = tuple(category.name for category in self.categories)
        model.white = self.recipe.data.white
        return model.to(place).eval()

    def check_fits(self, **model_overrides: Any) -> None:
        """Check that the weights fit the recipe's model, before memory is allocated for it, which may be of any size.

        A user's own detector is not checked, because its constructor may need tensors with values.

        Raises:
            ValueError: they do not fit.
        """
        if model_overrides.get("detector", self.recipe.model.detector) not in DETECTORS:
            return
        try:
            with torch.device("meta"):  # names and shapes without weights
                model = create_model(self.recipe, **model_overrides)
        except (RuntimeError, OverflowError) as error:
            raise ValueError(f"no model can be built from the settings of {self._name} ({_line(error)})") from None
        check_fit(model, _with_loss_of(model, self.state_dict), self._name)

    @property
    def _name(self) -> str:
        return str(self.path or "the checkpoint")


def metadata(recipe: Recipe, categories: Sequence[Category], scores: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The contents of a checkpoint besides weights, as plain values, with the backbone's pixel statistics filled in."""
    recipe = dataclasses.replace(recipe, model=with_pixel_statistics(recipe.model))
    about = {"recipe": recipe.as_dict(), "categories": [{"id": c.id, "name": c.name} for c in categories]}
    return about | ({"scores": dict(scores)} if scores else {})


def save_model(
    path: str | Path,
    model: Detector,
    recipe: Recipe,
    categories: Sequence[Category],
    scores: Mapping[str, Any] | None = None,
) -> None:
    """Save a model as safetensors, with its recipe and classes as JSON in the header; `read_checkpoint` reads it.

    `scores` are its thresholds and calibrations, as in `Checkpoint.scores`; the best checkpoint of a run has them.

    Raises:
        ValueError: there is not one category for each class of the model.
    """
    if len(categories) != model.num_classes:
        raise ValueError(
            f"the model has {counted(model.num_classes, 'class')}, but the number of categories is {len(categories)}"
        )
    tensors = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    about = metadata(recipe, categories, scores)
    about["checksum"] = _checksum(tensors, about)
    replace_file(Path(path), save(tensors, metadata={"ranksort": json.dumps(about)}))


def carry_scores(path: Path, scores: Mapping[str, Any]) -> None:
    """Add thresholds and calibrations, as in `Checkpoint.scores`, to a .ckpt of a run."""
    content, times = load_checkpoint(path), path.stat()
    content["ranksort"]["scores"] = dict(scores)
    save_checkpoint(content, path)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))  # the weights must not be newer than their report


def _checksum(tensors: Mapping[str, Tensor], about: dict[str, Any]) -> int:
    """Checksum of the weights and their description; the safetensors format has none."""
    total = zlib.crc32(json.dumps(about, sort_keys=True).encode())
    for name, tensor in sorted(tensors.items()):
        kind = f"{name} {tensor.dtype} {tuple(tensor.shape)}"
        content: Any = tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy() if tensor.numel() else b""
        total = zlib.crc32(content, zlib.crc32(kind.encode(), total))
    return total


def read_checkpoint(path: str | Path) -> Checkpoint:
    """Read a model of this package.

    Args:
        path: a run folder, a .ckpt of a run, or a .safetensors file. For a run folder, the best checkpoint is read, else the last; if one
            cannot be read, the other one is, and `note` says so.

    Raises:
        FileNotFoundError: the path does not exist.
        ValueError: the file is not a checkpoint of this package, or it is damaged.
    """
    path = Path(path)
    if path.is_dir():
        return _read_run(path, ("best.ckpt", "last.ckpt"))
    try:
        return _read_file(path)
    except ValueError as error:
        others = [path.with_name(name) for name in ("best.ckpt", "last.ckpt") if path.parent.name == "checkpoints"]
        whole = next((other for other in others if other != path and _can_be_read(other)), None)
        if whole is None:
            raise
        raise ValueError(f"{error}; {whole} can be read") from None


def read_to_resume(run: Path) -> Checkpoint:
    """Read the last checkpoint of a run or, if it is missing or cannot be read, the best, whose `note` then says so.

    Raises:
        FileNotFoundError, ValueError: as `read_checkpoint`.
    """
    return _read_run(run, ("last.ckpt", "best.ckpt"))


def _read_run(run: Path, names: tuple[str, str]) -> Checkpoint:
    """Read the first of two checkpoints that is readable."""
    first, second = (run / "checkpoints" / name for name in names)
    if not first.is_file() and not second.is_file():
        raise FileNotFoundError(f"{run} is not a run folder: it has neither checkpoints/best.ckpt nor last.ckpt")
    try:
        return _read_file(first)
    except FileNotFoundError:
        # A run has no best checkpoint before its first evaluation.
        return replace(_read_file(second), note="" if first.name == "best.ckpt" else f"there is no {first}")
    except ValueError as error:
        try:
            return replace(_read_file(second), note=str(error))
        except FileNotFoundError:
            raise error from None
        except ValueError as too:
            raise ValueError(f"{error}; {too}") from None


def _can_be_read(path: Path) -> bool:
    try:
        _read_file(path)
    except (OSError, ValueError):
        return False
    return True


def _read_file(path: Path) -> Checkpoint:
    if not path.is_file():
        raise FileNotFoundError(f"there is no checkpoint {path}")
    try:
        if path.suffix == ".safetensors":
            with safe_open(path, framework="pt") as file:
                about = json.loads(file.metadata()["ranksort"])
                state_dict = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            if about.pop("checksum", None) not in (None, _checksum(state_dict, about)):
                raise ValueError(f"{path} is damaged: its checksum is wrong")
        else:
            content = load_checkpoint(path)
            about, prefix = content["ranksort"], "model."
            state_dict = {k.removeprefix(prefix): v for k, v in content["state_dict"].items() if k.startswith(prefix)}
        recipe = Recipe.from_dict(about["recipe"])
        categories = [Category(c["id"], c["name"]) for c in about["categories"]]
        trained_on, progress = str(about.get("fingerprint", "")), about.get("progress", {})
        scores = dict(about.get("scores", {}))
    except SafetensorError as error:
        raise ValueError(f"{path} is not a safetensors file, or it is damaged ({error})") from None
    except (AttributeError, KeyError, TypeError, json.JSONDecodeError):  # not a description by `metadata`
        recipe, categories, state_dict, trained_on, progress, scores = None, [], {}, "", {}, {}
    are_weights = all(isinstance(tensor, Tensor) for tensor in state_dict.values())
    are_classes = all(isinstance(c.id, int | str) and isinstance(c.name, str) for c in categories)
    if recipe is None or not state_dict or not are_weights or not are_classes:
        raise ValueError(f"{path} is not a ranksort model; convert the authors' weights with `ranksort convert`")
    if spoilt := [name for name, tensor in state_dict.items() if tensor.is_floating_point() and _has_nan(tensor)]:
        raise ValueError(f"{path} contains numbers that are not finite, in {listed(spoilt, 3)}: its training diverged")
    return Checkpoint(recipe, categories, state_dict, trained_on, scores, path, progress)


def _has_nan(tensor: Tensor) -> bool:
    return tensor.layout == torch.strided and tensor.device.type == "cpu" and bool(tensor.isnan().any())


def load_model(
    path: str | Path,
    device: str | torch.device = "cpu",
    *,
    detector: str | type[Detector] | None = None,
    calibrated: bool | Target = False,
    calibration: str | Path | None = None,
) -> Detector:
    """Load the trained model of a run folder, .ckpt or .safetensors, in evaluation mode: `load_model(RUN).predict("photo.jpg")`.

    Its attribute `class_names` has the names of the labels.

    Args:
        path: run folder, .ckpt or .safetensors.
        device: device to load it to.
        detector: your own detector class that it was trained with, or "path/to/file.py:Class", which is executed. A checkpoint alone never
            causes code to be executed, whatever it names.
        calibrated: give detections calibrated scores, float64: True or "iou": the expected IoU; "precision": the probability of an IoU of
            at least .5. Their order within each class does not change.
        calibration: a calibration file; None: the calibration in the run's report or the checkpoint.

    Raises:
        FileNotFoundError: there is no such file, or no calibration although one is needed.
        ValueError: as for `read_checkpoint` and `Checkpoint.build`.

    Examples:
        >>> import tempfile
        >>> from ranksort import Recipe, create_model, load_model
        >>> from ranksort.checkpoints import save_model
        >>> from ranksort.data.coco_columns import Category
        >>> recipe = Recipe(name="mine")
        >>> recipe.model.backbone, recipe.model.channels = "resnet18", 64
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     model = create_model(recipe, num_classes=2)
        ...     save_model(f"{folder}/model.safetensors", model, recipe, [Category(1, "cat"), Category(2, "dog")])
        ...     loaded = load_model(f"{folder}/model.safetensors")
        >>> loaded.class_names, loaded.training
        (('cat', 'dog'), False)
    """
    if calibrated not in (True, False, "iou", "precision"):
        raise ValueError(f'calibrated must be True, False, "iou" or "precision", got {calibrated!r}')
    checkpoint, file = read_checkpoint(path), None if calibration is None else Path(calibration)
    if checkpoint.note:
        warnings.warn(f"{checkpoint.note}: loading {checkpoint.path}", stacklevel=2)
    model = checkpoint.build(device, **({} if detector is None else {"detector": detector}))
    with contextlib.suppress(FileNotFoundError, ValueError):  # reported when they are needed
        model.thresholds = find_thresholds(Path(path), checkpoint.scores, checkpoint.categories, file)
    if calibrated or file is not None:
        target: Target = "precision" if calibrated == "precision" else "iou"
        model.calibration = find_calibration(Path(path), checkpoint.scores, checkpoint.categories, target, file)
    return model


def load_weights(model: nn.Module, state_dict: Mapping[str, Tensor], source: str) -> None:
    """Load `state_dict` into `model`; if it does not fit, the error says in one sentence what differs.

    Raises:
        ValueError: naming the first few tensors that are missing, unexpected or have another shape.
    """
    check_fit(model, state_dict, source)
    try:
        model.load_state_dict(state_dict)
    except RuntimeError as error:  # tensors of a layout that cannot be copied
        raise ValueError(f"the weights of {source} cannot be used: {_line(error)}") from None


def _with_loss_of(model: nn.Module, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`state_dict` with the state of the model's own loss wherever it has that of another loss, or none."""
    own = {name: tensor for name, tensor in model.state_dict().items() if is_of_loss(name)}
    same = {name for name, tensor in own.items() if name in state_dict and state_dict[name].shape == tensor.shape}
    return own | {name: tensor for name, tensor in state_dict.items() if name in same or not is_of_loss(name)}


def _line(error: Exception) -> str:
    """The message of an error, in one line."""
    return " ".join(str(error).split())


def check_fit(model: nn.Module, state_dict: Mapping[str, Tensor], source: str) -> None:
    """Check names and shapes only, as `load_weights` does.

    Raises:
        ValueError: as `load_weights`.
    """
    own = model.state_dict()
    shapes = [(k, tuple(state_dict[k].shape), tuple(own[k].shape)) for k in own if k in state_dict]
    problems = {
        ("lacks", "tensor", ""): [k for k in own if k not in state_dict],
        ("has", "unexpected tensor", ""): [k for k in state_dict if k not in own],
        ("has", "tensor", " with another shape"): [f"{k} {a} for {b}" for k, a, b in shapes if a != b],
    }
    found = [
        f"{verb} {counted(len(keys), noun)}{which} ({listed(keys, 3)})"
        for (verb, noun, which), keys in problems.items()
        if keys
    ]
    if found:
        raise ValueError(f"the weights of {source} do not fit this model: it {' and '.join(found)}")
