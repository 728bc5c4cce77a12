"""Detections in a user's own images: from Python, `model.predict("photo.jpg")`; by the command line, `ranksort predict`."""

from .predictor import Predictor, predict
from .result import Prediction

__all__ = ["Prediction", "Predictor", "predict"]
