"""Evaluation: AP, AR and oLRP by the rules of COCO and LVIS, and the report."""

from .coco import evaluate, evaluate_detections
from .report import Report

__all__ = ["Report", "evaluate", "evaluate_detections"]
