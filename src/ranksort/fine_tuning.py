"""Start from the weights of another model: everything that fits is copied, and class outputs go to the class of the same name.

weights of a run, a .safetensors or a published .pth
    -> the backbone, completely or not at all: ImageNet weights are better than half of another network
    -> every other layer with the same name and shapes
    -> of layers with outputs per class, the outputs for classes that the new model has, too
everything else is initialised as usual
"""

import dataclasses
import itertools
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from .checkpoints import Checkpoint, read_checkpoint
from .mmdetection import is_of_loss
from .models import Detector
from .models.backbones import build_backbone
from .published import read_published
from .recipes.detectors import as_named, get_detector
from .recipes.recipe import ModelSettings, Recipe
from .whole_file import replace_file

_LEAST = 0.1  # fraction of the weights outside the backbone; with fewer of them and another backbone, nothing is gained
_SHOWN = 5  # names per line


@dataclass
class Weights:
    """A model on disk to start from.

    Attributes:
        path: its path.
        checkpoint: the model.
        has_backbone: whether it has the backbone of the recipe to train.
    """

    path: str
    checkpoint: Checkpoint
    has_backbone: bool

    @property
    def trained_backbone(self) -> ModelSettings | None:
        """The settings that the backbone was trained with, if it is copied from here."""
        return self.checkpoint.recipe.model if self.has_backbone else None


@dataclass
class Taken:
    """What a model has copied from the weights it starts from. `str` is a short table.

    Attributes:
        source: path and model of the weights.
        parts: part of the model -> how many of its tensors were copied, out of how many; without layers with outputs per class.
        by_name: whether classes were matched by name; otherwise by position.
        classes: the classes whose outputs were copied -> their names in the weights.
        new_classes: classes that start from the prior.
        dropped_classes: classes of the weights that the model does not have.
        new_tensors: tensors that are initialised as usual.
        notes: further remarks, one sentence each.
    """

    source: str
    parts: dict[str, tuple[int, int]]
    by_name: bool
    classes: dict[str, str]
    new_classes: list[str]
    dropped_classes: list[str]
    new_tensors: list[str]
    notes: list[str]

    def __str__(self) -> str:
        kept = [new if old == new else f"{old} as {new}" for new, old in self.classes.items()]
        how = f" by {'name' if self.by_name else 'place'}" if kept else ""
        classes = f"{len(kept) or 'none'} of {len(kept) + len(self.new_classes)}{how}"
        for label, names in (("", kept), ("new: ", self.new_classes), ("dropped: ", self.dropped_classes)):
            if names:
                shown = ", ".join(names[:_SHOWN])
                classes += f"; {label}{shown}{f' and {len(names) - _SHOWN} more' if len(names) > _SHOWN else ''}"
        rows = {part: f"{taken} of {of} tensors" for part, (taken, of) in self.parts.items()} | {"classes": classes}
        width = max(map(len, rows))
        lines = [f"  {part:{width}}  {text}" for part, text in rows.items()]
        return "\n".join([f"weights of {self.source}", *lines, *(f"  {note}" for note in self.notes)])

    def save(self, path: Path) -> None:
        """Write everything as JSON."""
        text = json.dumps(dataclasses.asdict(self), indent=2, ensure_ascii=False) + "\n"
        replace_file(path, text.encode("utf-8"))


def read_weights(path: str | Path, recipe: Recipe) -> Weights:
    """Read weights to start the model of a recipe from.

    Args:
        path: a run folder, a .ckpt of a run, a .safetensors file of this package, or a published .pth file of the authors.
        recipe: the recipe to train.

    Raises:
        FileNotFoundError: there are no weights.
        ValueError: they cannot be read.
    """
    path = Path(path)
    ours = path.is_dir() or path.suffix in (".ckpt", ".safetensors")
    checkpoint = read_checkpoint(path) if ours else read_published(path, recipe)
    if checkpoint.note:
        print(f"warning: {checkpoint.note}: using the weights of {checkpoint.path}")
    settings = recipe.model
    # Names and shapes without weights; offsets of deformable convolutions may be initialised as usual.
    with torch.device("meta"):
        backbone = build_backbone(
            settings.backbone,
            pretrained=False,
            levels=get_detector(settings.detector).backbone_levels,
        )
    own, given = backbone.state_dict(prefix="backbone."), checkpoint.state_dict
    return Weights(str(path), checkpoint, all(name in given and _fits(given[name], x) for name, x in own.items()))


def start_from(weights: Weights, model: Detector, recipe: Recipe, class_names: Sequence[str] | None = None) -> Taken:
    """Copy all weights that fit into a model.

    Args:
        weights: from `read_weights` for the recipe.
        model: an untrained model; its `class_layers` name the layers with outputs per class.
        recipe: recipe of the model, to tell which settings differ.
        class_names: names of the model's labels. If these or those of the weights are unknown, the classes are assumed to be the same
            if their number is equal, otherwise new.

    Raises:
        ValueError: hardly anything fits, or the weights are not finite.
    """
    checkpoint, own = weights.checkpoint, _tensors(model)
    old_names = [category.name for category in checkpoint.categories]
    old_count, new_count = len(old_names) or checkpoint.recipe.model.num_classes, model.num_classes
    same = {i: i for i in range(old_count)}
    pairs = match_names(class_names, old_names) if class_names and old_names else same if new_count == old_count else {}
    outputs = {name: n for name in own if (n := model.outputs_per_class(name))}
    if not outputs and pairs != same:
        raise ValueError(f"{type(model).__name__} does not name its layers with outputs per class: set `class_layers`")
    copies = _copies(weights, model, pairs, old_count)
    _check(weights, recipe, copies, {name: x.numel() for name, x in own.items() if name not in outputs})
    with torch.no_grad():
        for into, value in itertools.chain(*copies.values()):
            into.copy_(value)

    taken = copies.keys()
    parts = {}
    for part in dict.fromkeys(_part(name) for name in own):
        tensors = [name for name in own if _part(name) == part and name not in outputs]
        parts[part] = (len(taken & set(tensors)), len(tensors))
    unfitting = [name for name in outputs if name not in taken] if pairs else []
    pairs = pairs if taken & outputs.keys() else {}
    names = list(class_names or (old_names if pairs else ())) or [f"class {i}" for i in range(new_count)]
    olds = old_names or names
    return Taken(
        source=f"{weights.path} ({_network(checkpoint.recipe)})",
        parts={part: counts for part, counts in parts.items() if counts[1]},
        by_name=bool(class_names and old_names),
        classes={names[new]: olds[old] for new, old in pairs.items()},
        new_classes=[name for i, name in enumerate(names) if i not in pairs],
        dropped_classes=[name for i, name in enumerate(old_names) if i not in pairs.values()],
        new_tensors=[name for name in own if name not in taken],
        notes=_notes(weights, recipe, model, unfitting),
    )


def _copies(
    weights: Weights, model: Detector, pairs: dict[int, int], old_count: int
) -> dict[str, list[tuple[Tensor, Tensor]]]:
    """Names of tensors that fit, like all others of their layer -> parts of them in the model, and their new values.

    `pairs` maps labels of the model to labels of the weights, which have `old_count` classes, for classes that both have.
    """
    copies, unfitting = {}, set()
    for name, tensor in _tensors(model).items():
        given = weights.checkpoint.state_dict.get(name)
        if given is None or (_part(name) == "backbone" and not weights.has_backbone):
            continue
        if outputs := model.outputs_per_class(name):
            ours, theirs = _by_class(tensor, model.num_classes, outputs), _by_class(given, old_count, outputs)
            if pairs and ours is not None and theirs is not None and _fits(theirs[:, 0], ours[:, 0]):
                copies[name] = [(ours[:, new], theirs[:, old]) for new, old in pairs.items()]
        elif _fits(given, tensor):
            copies[name] = [(tensor, given)]
        if name not in copies:
            unfitting.add(_layer(name))
    return {name: parts for name, parts in copies.items() if _layer(name) not in unfitting}


def _check(weights: Weights, recipe: Recipe, copies: Iterable[str], sizes: dict[str, int]) -> None:
    """Raise ValueError if the weights to copy are not finite or too few; `sizes` are the sizes of tensors shared by all classes."""
    for name in copies:
        if not bool(weights.checkpoint.state_dict[name].isfinite().all()):
            raise ValueError(
                f"the weights of {weights.path} cannot be used: {name} contains numbers that are not finite"
            )
    others = {name: size for name, size in sizes.items() if _part(name) != "backbone"}
    fitting = sum(others.get(name, 0) for name in copies)
    if not weights.has_backbone and fitting < _LEAST * sum(others.values()):
        raise ValueError(
            f"the weights of {weights.path} ({_network(weights.checkpoint.recipe)}) do not fit this model ({_network(recipe)}): "
            "choose weights of a model with the same backbone or the same detector"
        )


def match_names(new: Sequence[str], old: Sequence[str]) -> dict[int, int]:
    """Positions in `new` -> positions of the same names in `old`, ignoring case if there is no exact match.

    Nothing is matched twice.
    """
    pairs: dict[int, int] = {}
    for form in (str, str.casefold):
        places: dict[str, list[int]] = {}
        for i, name in enumerate(old):
            if i not in pairs.values():
                places.setdefault(form(name), []).append(i)
        for i, name in enumerate(new):
            if i not in pairs and places.get(form(name)):
                pairs[i] = places[form(name)].pop(0)
    return dict(sorted(pairs.items()))


def _tensors(model: Detector) -> dict[str, Tensor]:
    """The tensors of a model's state, except for the running statistics of its loss."""
    return {name: tensor for name, tensor in model.state_dict().items() if not is_of_loss(name)}


def _part(name: str) -> str:
    """The part of the model that a tensor belongs to, such as backbone or rpn."""
    return name.partition(".")[0]


def _layer(name: str) -> str:
    return name.rpartition(".")[0]


def _by_class(tensor: Tensor, classes: int, outputs: int) -> Tensor | None:
    """[A · C · outputs, ...] -> [A, C, outputs, ...], a view; None if it cannot belong to C classes."""
    if tensor.ndim == 0 or tensor.shape[0] % (classes * outputs):
        return None
    return tensor.unflatten(0, (-1, classes, outputs))


def _fits(given: Tensor, needed: Tensor) -> bool:
    same = given.shape == needed.shape and given.is_floating_point() == needed.is_floating_point()
    return same and given.layout == torch.strided


def _network(recipe: Recipe) -> str:
    return f"{as_named(str(recipe.model.detector))}, {recipe.model.backbone}"


def _notes(weights: Weights, recipe: Recipe, model: Detector, unfitting: list[str]) -> list[str]:
    """Remarks besides what was copied."""
    ours, theirs = recipe.model, weights.checkpoint.recipe.model
    compared = [
        "detector",
        "backbone",
        "deformable_convs",
        *(s for s in model.settings if s not in ("prior", "proposals")),
    ]
    compared += ["pixel_mean", "pixel_std"] if weights.has_backbone else []
    values = {name: [as_named(str(getattr(settings, name))) for settings in (ours, theirs)] for name in compared}
    differing = [f"{name} {here} ({there} there)" for name, (here, there) in values.items() if here != there]
    notes = [f"initialised from scratch for all classes: {', '.join(unfitting)}"] if unfitting else []
    if not weights.checkpoint.categories:
        notes.append(f"the weights do not name their {theirs.num_classes} classes")
    return notes + ([f"settings that differ: {', '.join(differing)}"] if differing else [])
