"""Run detectors in ONNX files with onnxruntime, numpy and Pillow, without PyTorch. `ranksort export` writes the files."""

from .detector import Found, OnnxDetector

__all__ = ["Found", "OnnxDetector"]
