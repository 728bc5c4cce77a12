"""Rank & Sort Loss, and detectors trained with it. Each name imports what it needs on first use; the losses need only torch."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .checkpoints import load_model
    from .evaluation import Report, evaluate_detections
    from .hub import from_pretrained, save_pretrained
    from .losses import (
        ALRPLoss,
        APLoss,
        AverageLRPOutput,
        RankSortLoss,
        RankSortOutput,
        average_lrp_loss,
        average_precision_loss,
        rank_sort_loss,
    )
    from .published import convert_checkpoint
    from .recipes import Recipe, create_model, list_recipes

__version__ = "0.1.0"

_TOOLBOX = {
    "Recipe": "recipes",
    "Report": "evaluation",
    "convert_checkpoint": "published",
    "create_model": "recipes",
    "evaluate_detections": "evaluation",
    "from_pretrained": "hub",
    "list_recipes": "recipes",
    "load_model": "checkpoints",
    "save_pretrained": "hub",
}

__all__ = [
    "ALRPLoss",
    "APLoss",
    "AverageLRPOutput",
    "RankSortLoss",
    "RankSortOutput",
    "Recipe",
    "Report",
    "average_lrp_loss",
    "average_precision_loss",
    "convert_checkpoint",
    "create_model",
    "evaluate_detections",
    "from_pretrained",
    "list_recipes",
    "load_model",
    "rank_sort_loss",
    "save_pretrained",
]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        return getattr(importlib.import_module(f".{_TOOLBOX.get(name, 'losses')}", __name__), name)
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f'ranksort.{name} belongs to the toolbox and needs {error.name}: pip install "ranksort[detection]"'
        ) from error
