"""Ranking losses for any PyTorch model, and score-based losses for comparison. Needs only torch; start reading in `rank_sort.py`."""

from .average_lrp import ALRPLoss, AverageLRPOutput, average_lrp_loss
from .average_precision import APLoss, average_precision_loss
from .rank_sort import RankSortLoss, RankSortOutput, rank_sort_loss
from .score_based import focal_loss, quality_focal_loss, varifocal_loss

__all__ = [
    "ALRPLoss",
    "APLoss",
    "AverageLRPOutput",
    "RankSortLoss",
    "RankSortOutput",
    "average_lrp_loss",
    "average_precision_loss",
    "focal_loss",
    "quality_focal_loss",
    "rank_sort_loss",
    "varifocal_loss",
]
