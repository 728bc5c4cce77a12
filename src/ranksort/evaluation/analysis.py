"""What a report says beyond its metrics: what each kind of error costs, how good the scores are, and how certain the numbers are."""

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ..words import counted
from .bootstrap import Bootstrap, bootstrap_matched
from .confusion import MISSED, NAMES, Errors, Summary, find_errors, summarize_errors
from .inputs import CategoryInfo
from .intervals import interval_line, intervals_as_dict
from .metrics import percent
from .overlaps import Samples, assess_candidates, compare
from .score_quality import ScoreQuality, judge_scores
from .worst_images import worst_images_of_classes, worst_images_of_pair

if TYPE_CHECKING:
    from .report import Report

PAIRS = 1000  # of confused classes in the file
PAIRS_WITH_IMAGES = 12
IMAGES = 4  # the worst images of a class or pair
PAIRS_IN_WORDS = 3


@dataclass
class Analysis:
    """What `analyse` finds.

    Attributes:
        kept: (N,) bool: detections at or above the best threshold of their class (the one that reaches its oLRP).
        errors: the kind of error, if any, of each detection and object.
        summary: the errors counted.
        samples: the overlap of each detection with its object.
        scores: how well the scores are calibrated.
        intervals: AP and oLRP on resampled images; None if scipy is missing, or all objects are in one image.
    """

    kept: np.ndarray
    errors: Errors
    summary: Summary
    samples: Samples
    scores: ScoreQuality
    intervals: Bootstrap | None

    def lines(self, report: "Report", score_errors: bool = True) -> list[str]:
        """The main results, for a terminal; with LaECE and D-ECE if `score_errors`."""
        sentences = [interval_line(self.intervals, len(report.matched.ground_truth.images))] if self.intervals else []
        sentences += self.error_lines(report.categories)
        return [*sentences, *self.score_lines(score_errors)]

    def error_lines(self, categories: Sequence[CategoryInfo]) -> list[str]:
        """Which kinds of errors there are, what they cost, and which classes are confused."""
        kept, costs = self.summary.kept, self.summary.costs
        sentences = []
        if total := int(kept[:MISSED].sum()):
            falling = sorted(range(MISSED), key=lambda k: -kept[k])
            shares = ", ".join(f"{NAMES[k]} {kept[k] / total:.0%}" for k in falling if kept[k])
            sentences.append(f"{counted(total, 'false positive')} at the best thresholds: {shares}.")
        costly = [k for k in np.argsort(-costs, kind="stable").tolist() if costs[k] >= 0.0005]
        if costly:
            parts = ", ".join(f"{NAMES[k]} {percent(costs[k])}" for k in costly)
            sentences.append(f"Cost of each kind of error in points of AP50: {parts}.")
        if pairs := self.confused(categories)[:PAIRS_IN_WORDS]:
            sentences.append(f"Confused most often: {', '.join(pairs)}.")
        return sentences

    def confused(self, categories: Sequence[CategoryInfo]) -> list[str]:
        """The pairs of classes that are confused more than once at the best thresholds, as in "cat mistaken for dog (3)"."""
        pairs = self.summary.pairs[self.summary.pairs[:, 3] > 1]
        return [f"{categories[o].name} mistaken for {categories[d].name} ({kept})" for d, o, _, kept in pairs.tolist()]

    def score_lines(self, score_errors: bool = True) -> list[str]:
        """What a score means here and, if `score_errors`, how far scores are off."""
        before, after, sentences = self.scores.before.all, self.scores.after, []
        if example := self.scores.example:
            sentences.append(
                f"A score of {example.score:.2f} here means a precision of {example.right:.0%}: that share of the "
                f"{example.number} detections with the nearest scores "
                f"({example.low:.3f} to {example.high:.3f}) is right at IoU .5."
            )
        if score_errors and not np.isnan(before.laece):
            calibrated = (
                f"; after calibration on other images, {percent(after.all.laece)} and {percent(after.all.dece)}"
                if after
                else ""
            )
            sentences.append(
                f"Calibration errors of the scores: LaECE {percent(before.laece)}, D-ECE {percent(before.dece)}{calibrated}."
            )
        return sentences

    def as_dict(self, report: "Report") -> dict[str, Any]:
        """As JSON, with the keys of report.json."""
        return {
            "errors": self.errors_as_dict(report),
            "calibration": self.scores.as_dict(),
            "intervals": self.intervals and intervals_as_dict(self.intervals, report.matched.ground_truth),
        }

    def errors_as_dict(self, report: "Report") -> dict[str, Any]:
        """The errors by kind, by pair of classes, and by class in the order of `Report.per_class`, with the ids of the worst images."""
        shown = np.unique(report.matches.object_category)
        ids = [image.id for image in report.matched.ground_truth.images]
        counts = zip(NAMES, self.summary.number, self.summary.kept, self.summary.costs, strict=True)
        pairs = []
        for n, (d, o, number, kept) in enumerate(self.summary.pairs[:PAIRS].tolist()):
            detected, object_ = report.categories[d], report.categories[o]
            images = worst_images_of_pair(report, d, o, IMAGES) if kept and n < PAIRS_WITH_IMAGES else []
            pairs.append(
                {
                    "detected": detected.name,
                    "detected_id": detected.id,
                    "object": object_.name,
                    "object_id": object_.id,
                    "detections": number,
                    "at_best_thresholds": kept,
                    "images": [ids[i] for i in images],
                }
            )
        return {
            "kinds": [
                {"name": name, "number": int(number), "at_best_thresholds": int(kept), "AP50_cost": float(cost)}
                for name, number, kept, cost in counts
            ],
            "pairs": pairs,
            "per_class": self.summary.of_classes[shown].tolist(),
            "per_class_AP50_cost": self.errors.costs[:, shown].T.round(4).tolist(),
            "worst_images": [
                [[ids[image], *numbers] for image, *numbers in rows.tolist()]
                for rows in worst_images_of_classes(report, IMAGES)
            ],
        }


def analyse(report: "Report") -> Analysis:
    """Find the causes of the errors of a report, the quality of its scores and the uncertainty of its numbers.

    Takes about as long as the evaluation: a few seconds for 5,000 images with 500,000 detections.
    """
    matched, matches = report.matched, report.matches
    overlaps = compare(matched.ground_truth, matched.candidates)
    kept = matches.score >= report.thresholds()[matches.category]
    errors = find_errors(matched, overlaps)
    samples = assess_candidates(matched.ground_truth, matched.candidates, overlaps)
    intervals = None
    if len(np.unique(matches.object_image)) > 1:  # resamples of one image are all equal, whatever others would be like
        with contextlib.suppress(ValueError):  # scipy is missing
            intervals = bootstrap_matched(matched)
    summary = summarize_errors(matched, errors, kept)
    return Analysis(kept, errors, summary, samples, judge_scores(samples, report.categories, kept), intervals)
