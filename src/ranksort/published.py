"""Weights of other projects: the authors' published checkpoints and those of mmdetection 3, read and written."""

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .checkpoint_file import load_checkpoint, save_checkpoint
from .checkpoints import Checkpoint, check_fit
from .data.coco import COCO_CATEGORIES
from .data.coco_columns import Category
from .mmdetection import from_mmdetection, is_of_loss, to_mmdetection
from .recipes import Recipe, create_model, get_recipe, list_recipes
from .recipes.build import with_pixel_statistics


def convert_checkpoint(source: str | Path | Mapping[str, Any], recipe: str | Recipe) -> dict[str, Tensor]:
    """Convert the authors' published weights, or those of mmdetection 3, to the names of this package.

    Args:
        source: the .pth file, its contents, or its state dict.
        recipe: the recipe of that model. For other classes than COCO's, a `Recipe` with that `num_classes`.

    Returns:
        A state dict for `create_model(recipe)`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a tensor is missing, unexpected or has another shape.

    Examples:
        >>> from ranksort import Recipe, convert_checkpoint, create_model
        >>> from ranksort.mmdetection import to_mmdetection
        >>> recipe = Recipe(name="mine")
        >>> recipe.model.backbone, recipe.model.channels = "resnet18", 64
        >>> ours = create_model(recipe).state_dict()
        >>> theirs = to_mmdetection(ours, "atss")
        >>> "bbox_head.atss_cls.weight" in theirs, convert_checkpoint(theirs, recipe).keys() == ours.keys()
        (True, True)
    """
    recipe = get_recipe(recipe) if isinstance(recipe, str) else recipe
    converted = _renamed(source if isinstance(source, Mapping) else load_checkpoint(Path(source)))
    return _fitting(converted, recipe, "the published checkpoint" if isinstance(source, Mapping) else str(source))


def read_foreign(path: str | Path, recipe: Recipe) -> Checkpoint:
    """Read the authors' published weights, or those of mmdetection 3, for the model of a recipe with any number of classes.

    Raises:
        FileNotFoundError, ValueError: as `convert_checkpoint`.
    """
    content, recipe = load_checkpoint(Path(path)), copy.deepcopy(recipe)
    converted = _renamed(content)
    recipe.model.num_classes = _count_classes(converted, recipe) or recipe.model.num_classes
    converted = _fitting(converted, recipe, str(path))
    return Checkpoint(recipe, _published_categories(content, recipe.model.num_classes), converted)


def _fitting(state_dict: dict[str, Tensor], recipe: Recipe, source: str) -> dict[str, Tensor]:
    """A state dict for `create_model(recipe)`, with the initial state of a loss that has one.

    Raises:
        ValueError: as `convert_checkpoint`.
    """
    with torch.device("meta"):  # names and shapes without weights
        model = create_model(recipe)
    if any(map(is_of_loss, model.state_dict())):
        state = create_model(recipe).state_dict()
        state_dict = {name: tensor for name, tensor in state.items() if is_of_loss(name)} | state_dict
    check_fit(model, state_dict, source)
    return state_dict


def save_mmdetection(path: str | Path, checkpoint: Checkpoint) -> None:
    """Save one of our models as a checkpoint of mmdetection 3, with the names of its classes.

    Raises:
        ValueError: mmdetection has no such detector or backbone.
    """
    weights = to_mmdetection(checkpoint.state_dict, checkpoint.recipe.model.detector)
    about = {"dataset_meta": {"classes": tuple(category.name for category in checkpoint.categories)}}
    save_checkpoint({"meta": about, "state_dict": weights}, Path(path))


def read_published(path: str | Path, recipe: Recipe) -> Checkpoint:
    """Read the authors' published weights, with any classes.

    Args:
        path: the .pth file.
        recipe: tried first; then all recipes of this package are tried.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it fits none of these.
    """
    content = load_checkpoint(Path(path))
    converted = _renamed(content)
    recipes = [get_recipe(name) for name in list_recipes()]
    recipes.append(copy.deepcopy(recipe))
    # First the recipe of that name as published, then as the user may have changed it, then the others.
    recipes.sort(key=lambda known: (known.name != recipe.name, known.model.detector != recipe.model.detector))
    for candidate in recipes if converted else []:
        if count := _count_classes(converted, candidate):
            candidate.model = with_pixel_statistics(candidate.model)
            candidate.model.num_classes = count
            return Checkpoint(candidate, _published_categories(content, count), converted)
    raise ValueError(
        f"{path} is neither a ranksort model nor published weights of a recipe that `ranksort recipes` lists"
    )


def _published_categories(content: Mapping[str, Any], count: int) -> list[Category]:
    """The classes of published weights: those named in the file, else COCO's if the number matches, else none."""
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
    """The number of classes with which these weights fit a recipe's model; 0 if they do not fit."""
    with torch.device("meta"):
        model = create_model(recipe, num_classes=1)
    own = {name: tensor for name, tensor in model.state_dict().items() if not is_of_loss(name)}
    if own.keys() != state_dict.keys():
        return 0
    counts = {1}
    for name, tensor in own.items():
        given = state_dict[name].shape
        if given != tensor.shape:
            of_classes = model.outputs_per_class(name) and len(given) == tensor.ndim
            if not of_classes or given[1:] != tensor.shape[1:] or given[0] % tensor.shape[0]:
                return 0
            counts.add(given[0] // tensor.shape[0])
    return max(counts) if len(counts) <= 2 else 0
