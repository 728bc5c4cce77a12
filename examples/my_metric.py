"""Your own metric in the report: F1 at each class's best threshold, and the share of true positives with IoU .75 or more.

python examples/my_metric.py truth.json detections.json [report]     # COCO files; `report`: a folder to write
"""

import sys
from collections.abc import Mapping

import numpy as np

from ranksort import evaluate_detections
from ranksort.evaluation.lrp import OptimalLRP
from ranksort.evaluation.metrics import AreaResult, Family, Metric

FIT = Family("Fit", higher_is_better=True)  # metrics whose names start alike share a line of the report


def f1(results: Mapping[str, AreaResult]) -> np.ndarray:
    """[C]: harmonic mean of precision and recall at the score threshold with the lowest LRP error; NaN without objects."""
    best = OptimalLRP(*results[""].lrp.optima.T)  # columns [C] of all sizes; "s", "m" and "l" are there, too
    precision, recall = 1 - best.false_positive, 1 - best.false_negative
    found_nothing = recall == 0  # there is no precision then
    return np.where(found_nothing, 0.0, 2 * precision * recall / (precision + recall))


def tight(results: Mapping[str, AreaResult]) -> np.ndarray:
    """[C]: share of the true positives, whatever their scores, that overlap their objects by .75 or more; NaN where there are none."""
    overall = results[""]
    matches, classes = overall.lrp.matches, len(overall.num_objects)
    right = matches.outcome == 1
    counts = np.bincount(matches.category[right], minlength=classes)
    close = np.bincount(matches.category[right], matches.iou[right] >= 0.75, minlength=classes)
    return np.divide(close, counts, out=np.full(classes, np.nan), where=counts > 0)


METRICS = [
    Metric("FitF1", f1, FIT, in_table=True, heading="F1", help="F1 at the best threshold"),
    Metric("FitTight", tight, FIT, in_table=True, heading="tight", help="true positives with IoU .75 or more"),
]

if __name__ == "__main__":
    report = evaluate_detections(sys.argv[1], sys.argv[2], metrics=METRICS)
    print(report)
    print({name: round(report.as_dict()[name], 3) for name in ("FitF1", "FitTight")})
    if len(sys.argv) > 3:
        report.save(sys.argv[3])  # report.json and per_class.csv have the metrics, too
