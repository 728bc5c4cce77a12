"""The images with most errors of a class, or of a pair of confused classes, at the best threshold of each class."""

from typing import TYPE_CHECKING

import numpy as np

from .confusion import CLASS

if TYPE_CHECKING:
    from .report import Report


def worst_images_of_classes(report: "Report", limit: int) -> list[np.ndarray]:
    """For each entry of `Report.per_class`, (n, 3): positions of up to `limit` images, the worst first, and the false positives and
    missed objects of the class there.

    Among equals, the image with more missed objects is worse, then the earlier one.
    """
    matches, thresholds = report.matches, report.thresholds()
    is_false = (matches.outcome == 0) & report.analysis.kept
    is_missed = ~(matches.object_score >= thresholds[matches.object_category])
    images = len(report.matched.ground_truth.images)
    false, missed = (
        category[chosen].astype(np.int64) * images + image[chosen]
        for category, image, chosen in (
            (matches.category, matches.image, is_false),
            (matches.object_category, matches.object_image, is_missed),
        )
    )
    codes, place = np.unique(np.concatenate([false, missed]), return_inverse=True)
    num_false, num_missed = (np.bincount(part, minlength=len(codes)) for part in np.split(place, [len(false)]))
    category, image = np.divmod(codes, images)
    order = np.lexsort((image, -num_missed, -num_false - num_missed, category))
    rows = np.stack([image, num_false, num_missed], axis=1)[order]
    shown = np.unique(matches.object_category)
    starts, ends = (np.searchsorted(category[order], shown, side) for side in ("left", "right"))
    return [rows[start : min(end, start + limit)] for start, end in zip(starts.tolist(), ends.tolist(), strict=True)]


def worst_images_of_pair(report: "Report", detected: int, object_: int, limit: int) -> list[int]:
    """Positions of up to `limit` images with the highest-scoring detections of one class that are objects of another one."""
    errors, matches = report.analysis.errors, report.matches
    rows = np.flatnonzero((errors.kind == CLASS) & report.analysis.kept & (matches.category == detected))
    rows = rows[report.matched.ground_truth.category[errors.object[rows]] == object_]  # by descending score
    return list(dict.fromkeys(matches.image[rows].tolist()))[:limit]
