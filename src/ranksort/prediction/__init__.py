"""Detections in a user's own images: `model.predict("photo.jpg")` in Python, `ranksort predict` on the command line."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .predictor import Predictor, predict
    from .result import Prediction

__all__ = ["Prediction", "Predictor", "predict"]


def __getattr__(name: str) -> Any:
    # These need PyTorch; `images`, which exported models use, does not.
    if name == "Prediction":
        from .result import Prediction

        return Prediction
    if name in __all__:
        from . import predictor

        return getattr(predictor, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
