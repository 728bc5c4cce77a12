"""Recipes by name. Nothing here imports torch, so that the command line can list and describe them quickly."""

import inspect
from collections.abc import Callable

from . import coco, lvis
from .detectors import from_file, is_file
from .recipe import Recipe


def recipe_functions() -> dict[str, Callable[[], Recipe]]:
    """The functions of our recipes and the paper's, by recipe name."""
    functions = {name: f for module in (coco, lvis) for name, f in vars(module).items() if inspect.isfunction(f)}
    return {name.replace("_plus_", "+_"): f for name, f in functions.items() if name.startswith("ranksort_")}


def list_recipes() -> list[str]:
    """The names of the recipes, ours and the paper's.

    Examples:
        >>> from ranksort import list_recipes
        >>> [name for name in list_recipes() if name.endswith("_small")]
        ['ranksort_atss_lite0_small', 'ranksort_mask_rcnn_lite0_small']
    """
    return list(recipe_functions())


def get_recipe(name: str) -> Recipe:
    """The recipe with this name in `list_recipes()`, or the result of "path/to/file.py:function", which is executed.

    Raises:
        ValueError: there is no such recipe, or the function does not return one.
        FileNotFoundError: there is no such file.

    Examples:
        >>> from ranksort.recipes import get_recipe
        >>> recipe = get_recipe("ranksort_atss_r50_fpn_1x_coco")
        >>> recipe.model.detector, recipe.model.backbone, recipe.optimizer.lr
        ('atss', 'resnet50', 0.008)
    """
    function = name.rpartition(":")[2]
    if is_file(name):
        recipe = from_file(name, "recipe")()
        if not isinstance(recipe, Recipe):
            raise ValueError(f"{name} must return a ranksort Recipe, not a {type(recipe).__name__}")
    elif name in recipe_functions():
        recipe = recipe_functions()[name]()
    else:
        raise ValueError(f"there is no recipe {name!r}: `ranksort recipes` lists them, file.py:function names your own")
    recipe.name = recipe.name or function
    return recipe
