"""95 % intervals in reports, and differences between runs on the same images."""

import hashlib
from typing import Any

import numpy as np

from ..words import counted
from .bootstrap import RESAMPLES, SEED, Bootstrap, Resampled, paired_difference
from .inputs import GroundTruth
from .metrics import percent, without_nan

_NAMES = {"ap": "AP", "olrp": "oLRP"}
METRICS = tuple(_NAMES.values())


def intervals_as_dict(result: Bootstrap, ground_truth: GroundTruth) -> dict[str, Any]:
    """The intervals for report.json; `values`, one per resample, are for comparing runs."""
    metrics = {
        _NAMES[field]: {
            "measured": values.measured,
            "low": _bounds(values)[0],
            "high": _bounds(values)[1],
            "values": without_nan(values.values.round(6).tolist()),
        }
        for field, values in result._asdict().items()
    }
    return {"resamples": RESAMPLES, "seed": SEED, "objects": fingerprint(ground_truth), **metrics}


def _bounds(metric: Resampled) -> tuple[float, float]:
    """The interval of AP or oLRP within 0..1: its shift may take it beyond, where neither can be."""
    low, high = np.clip(metric.interval, 0, 1).tolist()
    return low, high


def fingerprint(ground_truth: GroundTruth) -> str:
    """Hash the images, classes and objects without their shapes, 64 hexadecimal digits: equal hashes and seeds draw equal images."""
    ids = [str([image.id for image in ground_truth.images]), str([c.id for c in ground_truth.categories])]
    content = hashlib.sha256("\n".join(ids).encode("utf-8", "surrogatepass"))
    order = np.lexsort((ground_truth.crowd, ground_truth.category, ground_truth.image))
    for column in (ground_truth.image, ground_truth.category, ground_truth.crowd):
        content.update(column[order].astype("<i4").tobytes())
    return content.hexdigest()


def interval_line(result: Bootstrap, num_images: int) -> str:
    """Both intervals, for a terminal."""
    bounds = {field: _bounds(values) for field, values in result._asdict().items()}
    parts = [f"{_NAMES[field]} {percent(low)} to {percent(high)}" for field, (low, high) in bounds.items()]
    return f"95 % intervals over {counted(num_images, 'image')}: {', '.join(parts)}."


def differences(base: dict[str, Any], other: dict[str, Any]) -> Bootstrap | None:
    """The difference of `other` from `base`, two entries `intervals` of report.json; None if the objects are not the same."""
    if any(base[key] != other[key] for key in ("resamples", "seed", "objects")):
        return None
    first, second = (
        Bootstrap(
            *(Resampled(run[name]["measured"], np.array(run[name]["values"], dtype=np.float64)) for name in METRICS)
        )
        for run in (base, other)
    )
    return paired_difference(first, second)


def difference_in_words(base: dict[str, Any], other: dict[str, Any]) -> str:
    """Compare two entries `intervals` of report.json: "AP better by 1.2 ± 0.9, oLRP the same (± 0.7)", ± half the 95 % interval."""
    found = differences(base, other)
    if found is None:
        return "not evaluated on the same images and objects, so there is no paired difference"
    return ", ".join(_words(_NAMES[field], values) for field, values in found._asdict().items())


def _words(name: str, difference: Resampled) -> str:
    low, high = difference.interval
    size, half = percent(abs(difference.measured)), percent((high - low) / 2)
    if size == "0.0":
        return f"{name} the same (± {half})"
    better = (difference.measured > 0) == (name == "AP")
    chance = " (may be chance)" if low <= 0 <= high or abs(difference.measured) <= (high - low) / 2 else ""
    return f"{name} {'better' if better else 'worse'} by {size} ± {half}{chance}"
