"""Export detectors to ONNX. `ranksort.exported` runs the files, without PyTorch."""

from .onnx_file import export_onnx

__all__ = ["export_onnx"]
