"""Recipes by name. Nothing here needs torch, so that the command line can list and describe them at once."""

import inspect
from collections.abc import Callable

from . import coco, lvis
from .detectors import from_file, is_file
from .recipe import Recipe


def recipe_functions() -> dict[str, Callable[[], Recipe]]:
    """The functions which make our recipes and the paper's, by the recipes' names."""
    functions = {name: f for module in (coco, lvis) for name, f in vars(module).items() if inspect.isfunction(f)}
    return {name.replace("_plus_", "+_"): f for name, f in functions.items() if name.startswith("ranksort_")}


def list_recipes() -> list[str]:
    """The names of the recipes, ours and the paper's."""
    return list(recipe_functions())


def get_recipe(name: str) -> Recipe:
    """Returns the recipe of that name, one of `list_recipes()`, or what "path/to/file.py:function" returns, which is run.

    Raises:
        ValueError: where there is no such recipe, or the function returns none.
        FileNotFoundError: where there is no such file.
    """
    function = name.rpartition(":")[2]
    if is_file(name):
        recipe = from_file(name, "recipe")()
        if not isinstance(recipe, Recipe):
            raise ValueError(f"{name} must return a ranksort Recipe, it returned a {type(recipe).__name__}")
    elif name in recipe_functions():
        recipe = recipe_functions()[name]()
    else:
        raise ValueError(
            f"there is no recipe {name!r}: `ranksort recipes` lists them, file.py:function names one of your own"
        )
    recipe.name = recipe.name or function
    return recipe
