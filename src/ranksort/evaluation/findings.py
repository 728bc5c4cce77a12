"""What is wrong with a detector, in plain words, for readers who have a minute for a report."""

import math

import numpy as np

from ..words import counted
from .lrp import SCORE_GRID
from .metrics import percent
from .report import Report, olrp_parts, rank_correlation

FEW_OBJECTS = 10


def findings(report: Report) -> list[str]:
    """What is wrong, one sentence each, the most serious first."""
    number, rows, matches = report.summary, report.worst_first(), report.matches
    shape = "mask" if report.iou_type == "segm" else "box"
    is_tp = matches.outcome == 1
    if not is_tp.any():
        none = f"No true positives: none of the {counted(len(is_tp), 'detection')} overlaps an object of its class at IoU .5."
        return [none, *_cut(report), *_without_area(report)]
    parts = olrp_parts(rows).mean(axis=0)
    if parts.sum() == 0:
        number_of_objects = len(matches.object_score)
        all_ = f"all {number_of_objects} objects are" if number_of_objects > 1 else "the only object is"
        perfect = f"No errors: {all_} detected exactly, without false positives."
        return [perfect, *_cut(report), *_without_area(report)]
    names = ("poor localisation", "false positives", "missed objects")
    falling = np.argsort(-parts)
    first, second, third = (f"{names[i]} ({parts[i] / parts.sum():.0%})" for i in falling)
    share = "Most" if parts.max() > parts.sum() / 2 else "The largest share"
    among = f"among the {report.cut.limit} highest-scoring {_where(report)} " if report.cut.num_detections else ""
    sentences = [
        f"{share} of the error (oLRP {percent(number['oLRP'])} of 100) comes from {first}, followed by {second} and {third}.",
        f"{np.isnan(matches.object_score).mean():.0%} of the {counted(len(matches.object_score), 'object')} are not detected at all "
        f"(no {shape} of their class {among}overlaps them at IoU .5, whatever its score), and "
        f"{(matches.object_score < report.thresholds()[matches.object_category]).mean():.0%} are detected only below the "
        "best score threshold of their class.",
        *_cut(report),
    ]
    sizes = {"Small": report.small_ap, "Medium-sized": number["APm"], "Large": number["APl"]}
    by_size = {size: ap for size, ap in sizes.items() if not math.isnan(ap)}
    if len(by_size) > 1:
        weakest = min(by_size, key=by_size.__getitem__)
        others = ", ".join(f"{size.lower()} {percent(ap)}" for size, ap in by_size.items() if size != weakest)
        sentences.append(f"{weakest} objects are detected worst: AP {percent(by_size[weakest])} ({others}).")
    sentences += _without_area(report)
    missed = [row["class"] for row in rows if math.isnan(row["oLRP_threshold"])]
    if missed:
        more = ", ..." if len(missed) > 5 else ""
        sentences.append(f"Classes with no true positives: {len(missed)} ({', '.join(missed[:5])}{more}).")
    found = [f"{row['class']} ({percent(row['oLRP'])})" for row in rows if not math.isnan(row["oLRP_threshold"])]
    if len(found) > 3:
        sentences.append(
            f"{'Other classes' if missed else 'Classes'} with the highest oLRP: {', '.join(found[:3])}; "
            f"with the lowest: {', '.join(found[:-4:-1])}."
        )
    error = report.lrp.mean(axis=0)
    above = (matches.outcome >= 0) & (matches.score >= SCORE_GRID[error.argmin()])
    sentences += [
        f"True positives overlap their objects by IoU {matches.iou[is_tp].mean():.2f} on average; AP is "
        f"{percent(number['AP50'])} at IoU .5 and {percent(number['AP75'])} at .75.",
        f"The best single score threshold for all classes is {SCORE_GRID[error.argmin()]:.2f}: "
        f"{is_tp[above].mean():.0%} of the detections above it are true positives, and they find "
        f"{is_tp[above].sum() / len(matches.object_score):.0%} of the objects. It costs "
        f"{percent(error.min() - number['oLRP'])} points of LRP error compared with the per-class thresholds in the table.",
    ]
    sentences += [*report.analysis.error_lines(report.categories), *report.analysis.score_lines()[:1]]
    correlation = rank_correlation(matches.score[is_tp], matches.iou[is_tp])
    if not math.isnan(correlation):
        order = (
            "do not rank true positives by IoU",
            *(f"rank true positives by IoU {how}" for how in ("only weakly", "moderately", "well")),
        )
        sentences.append(
            f"Scores {order[np.searchsorted((0.1, 0.3, 0.6), correlation)]}: rank correlation {correlation:.2f}, where 1 is "
            "perfect."
        )
    few = sum(row["objects"] < FEW_OBJECTS for row in rows)
    if few:
        sentences.append(
            f"Classes with fewer than {FEW_OBJECTS} objects, whose numbers are noisy: {few} of {len(rows)}."
        )
    sentences += report.notes()
    if report.classes_without_objects:
        sentences.append(f"Classes without ground truth here, which do not count: {report.classes_without_objects}.")
    return sentences


def _cut(report: Report) -> list[str]:
    """What the limit on the number of detections left out, if anything."""
    cut = report.cut
    if not cut.num_detections:
        return []
    return [
        f"{report.style.upper()}'s limit of {cut.limit} detections {_where(report)} left out {cut.num_detections} "
        f"detections. Objects that only these overlap count as missed. `ranksort evaluate --max-detections {cut.most}` "
        "counts all of them."
    ]


def _where(report: Report) -> str:
    return "per image" if report.style == "lvis" else "per class and image"


def _without_area(report: Report) -> list[str]:
    count = report.num_without_area
    if not count:
        return []
    return [
        f"Objects whose area is 0 in the annotations: {count} of {len(report.matches.object_score)}. APs counts them as "
        "small, whatever the size of their boxes."
    ]
