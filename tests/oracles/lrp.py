"""oLRP of one class by plain loops, from the equations of the paper and COCO's description of its matching."""

from collections.abc import Callable, Iterator
from typing import Any

Row = dict[str, Any]


def box_iou(detection: Row, annotation: Row) -> float:
    """IoU of [x, y, width, height] boxes; of a crowd the share of the detection that lies inside."""
    (x, y, w, h), (u, v, s, t) = detection["bbox"], annotation["bbox"]
    overlap = max(0, min(x + w, u + s) - max(x, u)) * max(0, min(y + h, v + t) - max(y, v))
    union = w * h if annotation["iscrowd"] else w * h + s * t - overlap
    return overlap / union if union else 0.0


def lrp_curve(
    annotations: list[Row],
    detections: list[Row],
    area_range: tuple[float, float] = (0, 1e10),
    iou: Callable[[Row, Row], float] = box_iou,
    tau: float = 0.5,
    max_detections: int = 100,
) -> Iterator[tuple[float, int, int, int, float, float]]:
    """LRP error, TP, FP, FN, summed 1 - IoU and score at each score of a detection of one class, by falling score."""

    def outside(row: Row) -> bool:
        return not area_range[0] <= row["area"] <= area_range[1]

    ignored = [bool(row["iscrowd"]) or outside(row) for row in annotations]
    num_objects = ignored.count(False)
    taken: set[int] = set()
    seen: dict[int, int] = {}
    tp, fp, localization = 0, 0, 0.0
    points: dict[float, tuple[float, int, int, int, float, float]] = {}  # of equal scores the last one counts
    for detection in sorted(detections, key=lambda row: (-row["score"], row["image_id"])):
        image = detection["image_id"]
        seen[image] = seen.get(image, 0) + 1
        if seen[image] > max_detections:
            continue
        possible = [
            (not ignored[a], iou(detection, row), a)
            for a, row in enumerate(annotations)
            if row["image_id"] == image and iou(detection, row) >= tau and (a not in taken or row["iscrowd"])
        ]
        if possible:
            to_be_found, overlap, a = max(possible)
            taken.add(a)
            if to_be_found:
                tp += 1
                localization += 1 - overlap
        elif not outside(detection):
            fp += 1
        fn = num_objects - tp
        error = (localization / (1 - tau) + fp + fn) / (tp + fp + fn)
        points[detection["score"]] = error, tp, fp, fn, localization, detection["score"]
    yield from points.values()


def optimal_lrp(annotations: list[Row], detections: list[Row], **settings: Any) -> list[tuple[float | None, ...]]:
    """oLRP, its localisation, FP and FN components and the threshold, None for undefined.

    More than one where equal errors are found at several thresholds, since rounding decides which of them is first.
    """
    curve = list(lrp_curve(annotations, detections, **settings))
    smallest = min((point[0] for point in curve), default=1.0)
    minima = [point for point in curve if point[0] <= smallest + 1e-12]
    if not minima or minima[0][1] == 0:
        return [(1.0, None, None, 1.0, None)]
    return [
        (error, localization / tp, fp / (tp + fp), fn / (tp + fn), score)
        for error, tp, fp, fn, localization, score in minima
        if tp
    ]
