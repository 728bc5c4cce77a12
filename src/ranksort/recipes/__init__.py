"""Recipes: all settings of a training run, as plain dataclasses. `recipe.py` has the fields, `coco.py` the recipes."""

from typing import TYPE_CHECKING, Any

from .find import get_recipe, list_recipes
from .recipe import Recipe

if TYPE_CHECKING:
    from .build import create_model

__all__ = ["Recipe", "create_model", "get_recipe", "list_recipes"]


def __getattr__(name: str) -> Any:
    # It needs torch, torchvision and all detectors; the other names need nothing.
    if name == "create_model":
        from .build import create_model

        return create_model
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
