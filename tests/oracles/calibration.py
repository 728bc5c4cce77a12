"""What detections are worth, and calibration errors, by plain loops from the definitions."""

from typing import Any

from .lrp import box_iou

Row = dict[str, Any]


def worth(annotations: list[Row], detections: list[Row], threshold: float) -> dict[int, float | None]:
    """By position among the detections of one class: IoU with the object it takes, 0 without one, None where a crowd takes it."""
    taken: set[int] = set()
    result: dict[int, float | None] = {}
    for n in sorted(range(len(detections)), key=lambda n: -detections[n]["score"]):
        best: tuple[bool, float, int] | None = None
        for a, row in enumerate(annotations):
            iou = box_iou(detections[n], row)
            least = 0.5 if row["iscrowd"] else threshold
            if row["image_id"] != detections[n]["image_id"] or a in taken or iou < least or iou == 0:
                continue
            best = max(best or (False, 0.0, -1), (not row["iscrowd"], iou, a))
        result[n] = 0.0
        if best is not None:
            to_be_found, iou, a = best
            result[n] = iou if to_be_found else None
            if to_be_found:
                taken.add(a)
    return result


def binned_error(scores: list[float], values: list[float], bins: int = 25) -> float:
    """Sum over the bins of the share of the detections times |mean score - mean value|."""
    error = 0.0
    for b in range(bins):
        inside = [n for n, s in enumerate(scores) if b / bins <= s < (b + 1) / bins or (b == bins - 1 and s == 1)]
        if inside:
            mean_score = sum(scores[n] for n in inside) / len(inside)
            mean_value = sum(values[n] for n in inside) / len(inside)
            error += len(inside) / len(scores) * abs(mean_score - mean_value)
    return error
