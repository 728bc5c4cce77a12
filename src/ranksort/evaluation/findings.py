"""What is wrong with a detector, in plain words: for those who have a minute to look at a report."""

import math

import numpy as np

from ..words import counted
from .lrp import SCORE_GRID
from .metrics import percent
from .report import Report, olrp_parts, rank_correlation

FEW_OBJECTS = 10


def findings(report: Report) -> list[str]:
    """What is wrong, sentence by sentence, the gravest first."""
    number, rows, matches = report.summary, report.worst_first(), report.matches
    shape = "mask" if report.iou_type == "segm" else "box"
    is_tp = matches.outcome == 1
    if not is_tp.any():
        none = f"Everything: none of the {counted(len(is_tp), 'detection')} overlaps an object of its class by IoU .5."
        return [none, *_cut(report), *_without_area(report)]
    parts = olrp_parts(rows).mean(axis=0)
    if parts.sum() == 0:
        number_of_objects = len(matches.object_score)
        all_ = f"all {number_of_objects} objects are" if number_of_objects > 1 else "the only object is"
        perfect = f"Nothing: {all_} found exactly, without a false positive."
        return [perfect, *_cut(report), *_without_area(report)]
    names = ("poor localisation", "false positives", "missed objects")
    falling = np.argsort(-parts)
    first, second, third = (f"{names[i]} ({parts[i] / parts.sum():.0%})" for i in falling)
    much = "Most" if parts.max() > parts.sum() / 2 else "The largest part"
    among = f"among the {report.cut.limit} best {_where(report)} " if report.cut.num_detections else ""
    said = [
        f"{much} of the error (oLRP {percent(number['oLRP'])} of 100) is {first}; then come {second} and {third}.",
        f"{np.isnan(matches.object_score).mean():.0%} of the {counted(len(matches.object_score), 'object')} are not detected at all "
        f"(no {shape} of their class {among}overlaps them by IoU .5, whatever its score), and "
        f"{(matches.object_score < report.thresholds()[matches.object_category]).mean():.0%} only with a score under the "
        "best threshold of their class.",
        *_cut(report),
    ]
    sizes = {"Small": report.small_ap, "Medium-sized": number["APm"], "Large": number["APl"]}
    by_size = {size: ap for size, ap in sizes.items() if not math.isnan(ap)}
    if len(by_size) > 1:
        weakest = min(by_size, key=by_size.__getitem__)
        others = ", ".join(f"{size.lower()} {percent(ap)}" for size, ap in by_size.items() if size != weakest)
        said.append(f"{weakest} objects are the weakest: AP {percent(by_size[weakest])} ({others}).")
    said += _without_area(report)
    missed = [row["class"] for row in rows if math.isnan(row["oLRP_threshold"])]
    if missed:
        more = ", ..." if len(missed) > 5 else ""
        said.append(f"Classes of which nothing is found: {len(missed)} ({', '.join(missed[:5])}{more}).")
    found = [f"{row['class']} ({percent(row['oLRP'])})" for row in rows if not math.isnan(row["oLRP_threshold"])]
    if len(found) > 3:
        said.append(
            f"The {'other ' if missed else ''}classes of most error: {', '.join(found[:3])}; of least: {', '.join(found[:-4:-1])}."
        )
    error = report.lrp.mean(axis=0)
    above = (matches.outcome >= 0) & (matches.score >= SCORE_GRID[error.argmin()])
    said += [
        f"True positives overlap their objects by IoU {matches.iou[is_tp].mean():.2f} on average; AP is "
        f"{percent(number['AP50'])} at IoU .5 and {percent(number['AP75'])} at .75.",
        f"If one score threshold is to serve all classes, {SCORE_GRID[error.argmin()]:.2f} is best: "
        f"{is_tp[above].mean():.0%} of the detections above it are right, and they find "
        f"{is_tp[above].sum() / len(matches.object_score):.0%} of the objects; it costs "
        f"{percent(error.min() - number['oLRP'])} points of LRP error over each class's own, which the table has.",
    ]
    said += [*report.analysis.error_lines(report.categories), *report.analysis.score_lines()[:1]]
    correlation = rank_correlation(matches.score[is_tp], matches.iou[is_tp])
    if not math.isnan(correlation):
        order = (
            "do not rank true positives by IoU",
            *(f"rank true positives by IoU {how}" for how in ("only weakly", "in part", "well")),
        )
        said.append(
            f"Scores {order[np.searchsorted((0.1, 0.3, 0.6), correlation)]}: rank correlation {correlation:.2f}, where 1 is "
            "perfect."
        )
    few = sum(row["objects"] < FEW_OBJECTS for row in rows)
    if few:
        said.append(f"Classes of fewer than {FEW_OBJECTS} objects, whose numbers are noisy: {few} of {len(rows)}.")
    said += report.notes()
    if report.classes_without_objects:
        said.append(f"Classes without objects here, which do not count: {report.classes_without_objects}.")
    return said


def _cut(report: Report) -> list[str]:
    """What the limit on detections left out, if anything."""
    cut = report.cut
    if not cut.num_detections:
        return []
    return [
        f"{report.style.upper()}'s limit of {cut.limit} detections {_where(report)} left out {cut.num_detections} "
        f"detections; objects which only these overlap are not found. With `ranksort evaluate --max-detections {cut.most}` "
        "all of them count."
    ]


def _where(report: Report) -> str:
    return "of an image" if report.style == "lvis" else "of each class in an image"


def _without_area(report: Report) -> list[str]:
    count = report.num_without_area
    if not count:
        return []
    return [
        f"Objects whose area is 0 in the annotations: {count} of {len(report.matches.object_score)}. APs counts them as "
        "small, whatever their boxes are."
    ]
