"""Do the confidence weights of the boxes hold back classes that are found late? ATSS whose positives count equally in the box loss.

RS Loss and quality focal loss weigh the box loss of each positive by its own score: boxes of low scores are hardly trained, and in both
losses the score follows the box. `benchmarks/compare_losses.py DATA --detector benchmarks/even_boxes.py:EvenATSS` trains without these
weights; numbers are in benchmarks/losses.md.
"""

import dataclasses
from typing import Any

from torch import Tensor

from ranksort.losses.criteria import FixedWeights
from ranksort.losses.detection import DetectionLosses, localization, rank_sort_detection_losses
from ranksort.models.atss import ATSS


def rank_sort_evenly(
    logits: Tensor, positive: Tensor, labels: Tensor, boxes: Tensor, object_boxes: Tensor, **options: Any
) -> DetectionLosses:
    """RS Loss, with an unweighted mean as the box loss."""
    quality, box = localization(boxes, object_boxes, options.pop("quality", None))
    assert box is not None
    found = rank_sort_detection_losses(logits, positive, labels, None, None, quality=quality, **options)
    return found._replace(weights=None).with_task("box", box)


class EvenATSS(ATSS):
    """ATSS whose positives count equally in the box loss, with any of the losses but aLRP Loss, which ranks the boxes themselves."""

    def __init__(self, *args: Any, losses: Any = None, **settings: Any):
        if isinstance(losses, FixedWeights):
            losses = dataclasses.replace(losses, weights=None)
        elif losses in (None, rank_sort_detection_losses):
            losses = rank_sort_evenly
        else:
            raise ValueError("the boxes of this loss have no weights to take away: choose another with --losses")
        super().__init__(*args, losses=losses, **settings)
