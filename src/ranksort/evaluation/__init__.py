"""Evaluation: AP, AR and oLRP by COCO's and LVIS' rules, and the report of them."""

from .coco import evaluate, evaluate_detections
from .report import Report

__all__ = ["Report", "evaluate", "evaluate_detections"]
