"""Weights on disk: a run's checkpoints, safetensors, and the weights published with the paper.

Files are untrusted: tensors and plain values are read from them, never code.
"""

import contextlib
import copy
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
from .data.coco import COCO_CATEGORIES
from .data.coco_columns import Category
from .device import usable_device
from .evaluation.calibration import Target
from .evaluation.model_scores import find_calibration, find_thresholds
from .mmdetection import from_mmdetection, to_mmdetection
from .models import Detector
from .recipes import Recipe, create_model, get_recipe, list_recipes
from .recipes.build import with_pixel_statistics
from .recipes.detectors import DETECTORS
from .whole_file import replace_file
from .words import counted, listed


@dataclass
class Checkpoint:
    """A trained model on disk."""

    recipe: Recipe  # with which it was trained
    categories: list[Category]
    """its classes, in the order of their labels; none: as many as the recipe says, of unknown names"""
    state_dict: dict[str, Tensor]
    fingerprint: str = ""  # of the images and objects it was trained on; unknown for models that are not a run's
    scores: dict[str, Any] = field(default_factory=dict)
    """what validation data say of its scores: contents of `evaluation.model_scores.FILES`, by their kind"""
    path: Path | None = None  # its file
    progress: dict[str, Any] = field(default_factory=dict)  # of a run, see `engine.stopping.Progress`
    note: str = ""  # why another checkpoint of the run is passed over for this one

    def build(self, device: str | torch.device = "cpu", **model_overrides: Any) -> Detector:
        """Returns the model in evaluation mode; see `create_model` for the overrides.

        Raises:
            ValueError: where the device cannot be used, the weights do not fit, or the detector is from a file of somebody's own, and not
                among the overrides.
        """
        place = usable_device(device)
        self.check_fits(num_classes=len(self.categories), **model_overrides)
        model = create_model(self.recipe, num_classes=len(self.categories), **model_overrides)
        load_weights(model, self.state_dict, self._name)
        model.class_names = tuple(category.name for category in self.categories)
        model.white = self.recipe.data.white
        return model.to(place).eval()

    def check_fits(self, **model_overrides: Any) -> None:
        """Looks whether the weights are those of the recipe's model, before memory is taken for one that may be of any size.

        A detector of somebody's own is not looked at: its constructor may need tensors that hold something.

        Raises:
            ValueError: they are not.
        """
        if model_overrides.get("detector", self.recipe.model.detector) not in DETECTORS:
            return
        try:
            with torch.device("meta"):  # names and shapes without weights
                model = create_model(self.recipe, **model_overrides)
        except (RuntimeError, OverflowError) as error:
            raise ValueError(f"no model can be built by the settings of {self._name} ({_line(error)})") from None
        _check_fit(model, self.state_dict, self._name)

    @property
    def _name(self) -> str:
        return str(self.path or "the checkpoint")


def metadata(recipe: Recipe, categories: Sequence[Category], scores: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """What a checkpoint has to say besides weights, as plain values. What its recipe leaves to the backbone is settled."""
    recipe = dataclasses.replace(recipe, model=with_pixel_statistics(recipe.model))
    about = {"recipe": recipe.as_dict(), "categories": [{"id": c.id, "name": c.name} for c in categories]}
    return about | ({"scores": dict(scores)} if scores else {})


def save_model(
    path: str | Path,
    model: nn.Module,
    recipe: Recipe,
    categories: Sequence[Category],
    scores: Mapping[str, Any] | None = None,
) -> None:
    """Writes a model as safetensors with its recipe and classes as JSON in the header; `read_checkpoint` reads it.

    `scores` are its thresholds and calibrations, as of `Checkpoint.scores`: the best checkpoint of a run has them.
    """
    tensors = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    about = metadata(recipe, categories, scores)
    about["checksum"] = _checksum(tensors, about)
    replace_file(Path(path), save(tensors, metadata={"ranksort": json.dumps(about)}))


def carry_scores(path: Path, scores: Mapping[str, Any]) -> None:
    """Writes a .ckpt of a run again, as it is, but with thresholds and calibrations, as of `Checkpoint.scores`."""
    content, times = load_checkpoint(path), path.stat()
    content["ranksort"]["scores"] = dict(scores)
    save_checkpoint(content, path)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))  # the weights are no newer than the report on them


def _checksum(tensors: Mapping[str, Tensor], about: dict[str, Any]) -> int:
    """Of weights and what is said of them: the format of safetensors has none."""
    total = zlib.crc32(json.dumps(about, sort_keys=True).encode())
    for name, tensor in sorted(tensors.items()):
        kind = f"{name} {tensor.dtype} {tuple(tensor.shape)}"
        content: Any = tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy() if tensor.numel() else b""
        total = zlib.crc32(content, zlib.crc32(kind.encode(), total))
    return total


def read_checkpoint(path: str | Path) -> Checkpoint:
    """Reads a model of this package.

    Args:
        path: a run folder, a .ckpt of a run, or a .safetensors file. Of a run folder it is the best checkpoint, or else the last; where one
            cannot be read the other is, and `note` says so.

    Raises:
        FileNotFoundError: where there is nothing.
        ValueError: where the file is no checkpoint of this package, or damaged.
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
    """Reads the last checkpoint of a run, or, where it cannot be read or is not there, the best, whose `note` says so then.

    Raises:
        FileNotFoundError, ValueError: as `read_checkpoint`.
    """
    return _read_run(run, ("last.ckpt", "best.ckpt"))


def _read_run(run: Path, names: tuple[str, str]) -> Checkpoint:
    """Reads the first of two checkpoints that can be."""
    first, second = (run / "checkpoints" / name for name in names)
    if not first.is_file() and not second.is_file():
        raise FileNotFoundError(f"{run} is no run folder: it has neither checkpoints/best.ckpt nor last.ckpt")
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
        raise ValueError(f"{path} is no safetensors file, or a damaged one ({error})") from None
    except (AttributeError, KeyError, TypeError, json.JSONDecodeError):  # not such as `metadata` describes a model
        recipe, categories, state_dict, trained_on, progress, scores = None, [], {}, "", {}, {}
    are_weights = all(isinstance(tensor, Tensor) for tensor in state_dict.values())
    are_classes = all(isinstance(c.id, int | str) and isinstance(c.name, str) for c in categories)
    if recipe is None or not state_dict or not are_weights or not are_classes:
        raise ValueError(
            f"{path} does not hold a model of ranksort; weights published with the paper come in by `ranksort convert`"
        )
    if spoilt := [name for name, tensor in state_dict.items() if tensor.is_floating_point() and _has_nan(tensor)]:
        raise ValueError(f"{path} holds numbers that are not finite, in {listed(spoilt, 3)}: its training has diverged")
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
    """Returns the trained model of a run folder, .ckpt or .safetensors, in evaluation mode: `load_model(RUN).predict("photo.jpg")`.

    Its attribute `class_names` has the names of the labels.

    Args:
        path: what to load.
        device: where to.
        detector: a class of one's own that it was trained with, or "path/to/file.py:Class", which is run. No checkpoint has code run by
            itself, whatever it names.
        calibrated: give detections calibrated scores, float64: True or "iou" the IoU to expect, "precision" the probability that it is
            at least .5. Their order within each class stays.
        calibration: the file of a calibration; None: that which the run's report, or the checkpoint, has.

    Raises:
        FileNotFoundError, ValueError: as `read_checkpoint` and `Checkpoint.build`, and where there is no calibration but one is wanted.
    """
    if calibrated not in (True, False, "iou", "precision"):
        raise ValueError(f'calibrated must be True, False, "iou" or "precision", got {calibrated!r}')
    checkpoint, file = read_checkpoint(path), None if calibration is None else Path(calibration)
    if checkpoint.note:
        warnings.warn(f"{checkpoint.note}: loading {checkpoint.path}", stacklevel=2)
    model = checkpoint.build(device, **({} if detector is None else {"detector": detector}))
    with contextlib.suppress(FileNotFoundError, ValueError):  # said where they are asked for
        model.thresholds = find_thresholds(Path(path), checkpoint.scores, checkpoint.categories, file)
    if calibrated or file is not None:
        target: Target = "precision" if calibrated == "precision" else "iou"
        model.calibration = find_calibration(Path(path), checkpoint.scores, checkpoint.categories, target, file)
    return model


def load_weights(model: nn.Module, state_dict: Mapping[str, Tensor], source: str) -> None:
    """Loads `state_dict` into `model`; where they do not fit, one sentence says what differs.

    Raises:
        ValueError: naming the first few tensors which are missing, left over or of another shape.
    """
    _check_fit(model, state_dict, source)
    try:
        model.load_state_dict(state_dict)
    except RuntimeError as error:  # tensors of a kind that cannot be copied
        raise ValueError(f"the weights of {source} cannot be used: {_line(error)}") from None


def _line(error: Exception) -> str:
    """What an error says, in one line."""
    return " ".join(str(error).split())


def _check_fit(model: nn.Module, state_dict: Mapping[str, Tensor], source: str) -> None:
    own = model.state_dict()
    shapes = [(k, tuple(state_dict[k].shape), tuple(own[k].shape)) for k in own if k in state_dict]
    problems = {
        "lacks": [k for k in own if k not in state_dict],
        "has in addition": [k for k in state_dict if k not in own],
        "has in other shapes": [f"{k} {given} for {needed}" for k, given, needed in shapes if given != needed],
    }
    found = [f"{what} {counted(len(keys), 'tensor')} ({listed(keys, 3)})" for what, keys in problems.items() if keys]
    if found:
        raise ValueError(f"the weights of {source} do not fit this model: it {' and '.join(found)}")


def convert_checkpoint(source: str | Path | Mapping[str, Any], recipe: str | Recipe) -> dict[str, Tensor]:
    """Takes weights published with the paper, or of mmdetection 3, to our names.

    Args:
        source: such a .pth file, or its content or state dict.
        recipe: the recipe of that model. For weights with other classes than COCO's, a `Recipe` with that `num_classes`.

    Returns:
        A state dict of `create_model(recipe)`.

    Raises:
        FileNotFoundError: where there is no such file.
        ValueError: where a tensor is missing, left over or of another shape.
    """
    recipe = get_recipe(recipe) if isinstance(recipe, str) else recipe
    converted = _renamed(source if isinstance(source, Mapping) else load_checkpoint(Path(source)))
    with torch.device("meta"):  # names and shapes without weights
        model = create_model(recipe)
    _check_fit(model, converted, "the published checkpoint" if isinstance(source, Mapping) else str(source))
    return converted


def read_foreign(path: str | Path, recipe: Recipe) -> Checkpoint:
    """Reads weights published with the paper, or of mmdetection 3, as those of a recipe, but for the number of classes.

    Raises:
        FileNotFoundError, ValueError: as `convert_checkpoint`.
    """
    content, recipe = load_checkpoint(Path(path)), copy.deepcopy(recipe)
    converted = _renamed(content)
    recipe.model.num_classes = _count_classes(converted, recipe) or recipe.model.num_classes
    with torch.device("meta"):
        _check_fit(create_model(recipe), converted, str(path))
    return Checkpoint(recipe, _published_categories(content, recipe.model.num_classes), converted)


def save_mmdetection(path: str | Path, checkpoint: Checkpoint) -> None:
    """Writes a model of ours as a checkpoint of mmdetection 3, with the names of its classes.

    Raises:
        ValueError: where mmdetection has no such detector or backbone.
    """
    weights = to_mmdetection(checkpoint.state_dict, checkpoint.recipe.model.detector)
    about = {"dataset_meta": {"classes": tuple(category.name for category in checkpoint.categories)}}
    save_checkpoint({"meta": about, "state_dict": weights}, Path(path))


def read_published(path: str | Path, recipe: Recipe) -> Checkpoint:
    """Reads weights published with the paper, whatever their classes.

    Args:
        path: the .pth file.
        recipe: which model it may be of; else it is taken for that of one of our recipes, or of the paper's.

    Raises:
        FileNotFoundError: where there is no such file.
        ValueError: where it is none of these.
    """
    content = load_checkpoint(Path(path))
    converted = _renamed(content)
    recipes = [get_recipe(name) for name in list_recipes()]
    recipes.append(copy.deepcopy(recipe))
    # First the recipe of that name as the paper has it, then as the user may have changed it, then the others.
    recipes.sort(key=lambda known: (known.name != recipe.name, known.model.detector != recipe.model.detector))
    for candidate in recipes if converted else []:
        if count := _count_classes(converted, candidate):
            candidate.model = with_pixel_statistics(candidate.model)
            candidate.model.num_classes = count
            return Checkpoint(candidate, _published_categories(content, count), converted)
    raise ValueError(
        f"{path} is neither a model of ranksort nor published weights of a recipe that `ranksort recipes` lists"
    )


def _published_categories(content: Mapping[str, Any], count: int) -> list[Category]:
    """The classes of published weights: those which the file names, or COCO's if they are as many; else none."""
    about = content.get("meta")
    about = about if isinstance(about, Mapping) else {}
    of_data = about.get("dataset_meta")  # mmdetection 3
    names = of_data.get("classes") if isinstance(of_data, Mapping) else about.get("CLASSES")
    if isinstance(names, list | tuple) and len(names) == count and all(isinstance(name, str) for name in names):
        return [Category(i, name) for i, name in enumerate(names, 1)]
    return COCO_CATEGORIES if count == len(COCO_CATEGORIES) else []


def _renamed(content: Mapping[str, Any]) -> dict[str, Tensor]:
    """The published tensors under our names."""
    state_dict = content.get("state_dict", content)
    if not isinstance(state_dict, Mapping) or not all(isinstance(tensor, Tensor) for tensor in state_dict.values()):
        return {}
    return from_mmdetection({str(name): tensor for name, tensor in state_dict.items()})


def _count_classes(state_dict: Mapping[str, Tensor], recipe: Recipe) -> int:
    """For how many classes these are all weights of a recipe's model; 0: they are not."""
    with torch.device("meta"):
        model = create_model(recipe, num_classes=1)
    own = model.state_dict()
    if own.keys() != state_dict.keys():
        return 0
    counts = {1}
    for name, tensor in own.items():
        given = state_dict[name].shape
        if given != tensor.shape:
            if not model.outputs_per_class(name) or given[1:] != tensor.shape[1:] or given[0] % tensor.shape[0]:
                return 0
            counts.add(given[0] // tensor.shape[0])
    return max(counts) if len(counts) <= 2 else 0
