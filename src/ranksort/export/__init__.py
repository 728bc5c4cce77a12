"""Detectors as ONNX files. What runs them, without PyTorch, is `ranksort.exported`."""

from .onnx_file import export_onnx

__all__ = ["export_onnx"]
