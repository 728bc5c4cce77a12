"""Detectors in ONNX files: they run with onnxruntime, numpy and Pillow, without PyTorch. `ranksort export` writes the files."""

from .detector import Found, OnnxDetector

__all__ = ["Found", "OnnxDetector"]
