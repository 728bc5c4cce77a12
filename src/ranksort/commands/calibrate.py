"""`calibrate`, `apply-calibration` and `merge`, for the results of any detector."""

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

from tyro.conf import Positional, arg

from .arguments import JsonPath, check_file


def calibrate(
    ground_truth: JsonPath,
    detections: JsonPath,
    /,
    out: Path = Path("calibration.json"),
    target: Literal["iou", "precision"] = "iou",
    method: Literal["isotonic", "linear"] = "isotonic",
    iou_type: Literal["bbox", "segm"] = "bbox",
    style: Literal["coco", "lvis"] = "coco",
    max_detections: int | None = None,
) -> None:
    """Fit a calibration of a detector's scores to validation data, and show its errors before and after.

    The errors shown are measured by cross-fitting: each half of the images is calibrated on the other half. The file written is
    fitted to all images.

    Args:
        ground_truth: COCO or LVIS annotations.
        detections: COCO results of any model.
        out: output file, for apply-calibration.
        target: what a calibrated score means: the expected IoU, or the probability of an IoU of .5 or more.
        method: isotonic regression (a rising step function) or linear regression.
        iou_type: compare boxes or masks.
        style: evaluation rules of COCO or LVIS.
        max_detections: see evaluate.
    """
    from ..evaluation import evaluate
    from ..evaluation.calibration import fit_calibrator
    from ..evaluation.calibration_file import save_calibrator
    from ..evaluation.calibration_summary import summarize
    from ..evaluation.inputs import read_detections, read_ground_truth
    from ..evaluation.overlaps import assess
    from ..evaluation.thresholds import thresholds_content

    _keep(out, [ground_truth, detections])
    truth = read_ground_truth(ground_truth, iou_type, style)
    found = read_detections(detections, truth, iou_type)
    if found.calibrated:
        raise ValueError(
            f"the scores of {detections} are already calibrated: fit the calibration to the raw scores of the model"
        )
    samples = assess(truth, found, style, max_detections)
    calibrator = fit_calibrator(samples, truth.categories, target=target, method=method)
    in_use = replace(found, scores=calibrator(found.scores, found.category))
    reports = [evaluate(truth, scored, style, max_detections) for scored in (found, in_use)]
    summary = summarize(samples, calibrator, samples.score >= reports[0].thresholds()[samples.category])
    summary.metrics = [(report.summary["AP"], report.summary["oLRP"]) for report in reports]
    about = {
        "ground_truth": str(ground_truth),
        "detections": str(detections),
        "iou_type": iou_type,
        "date": time.strftime("%Y-%m-%d %H:%M"),
        "errors": summary.as_dict(),
    }
    save_calibrator(calibrator, out, about, thresholds_content(reports[0]))
    print(f"{summary}\n\ncalibration: {out}")


def apply_calibration(
    calibration: JsonPath, detections: JsonPath, /, out: Annotated[Path, arg(metavar="JSON")] = Path("calibrated.json")
) -> None:
    """Replace the scores of a model's detections with calibrated ones.

    Args:
        calibration: file written by calibrate for the same model.
        detections: COCO results.
        out: output file.
    """
    from ..evaluation.calibration_file import calibrate_rows, load_calibrator
    from ..evaluation.result_rows import read_rows, write_rows

    _keep(out, [calibration, detections])
    calibrator = load_calibrator(calibration)
    rows, num_unknown = calibrate_rows(calibrator, read_rows(detections))
    write_rows(rows, out)
    if num_unknown:
        print(
            f"{num_unknown} detections have categories unknown to the calibration: the curve of all classes was applied to them"
        )
    print(f"{len(rows)} calibrated detections: {out}")


def merge(
    detections: Annotated[list[Path], Positional, arg(metavar="JSON")],
    /,
    out: Annotated[Path, arg(metavar="JSON")] = Path("merged.json"),
    detections_per_image: int = 100,
) -> None:
    """Merge the detections of several models. Calibrate each of them first, with --method linear.

    Args:
        detections: COCO results of two or more models on the same images.
        out: output file.
        detections_per_image: maximum number of detections kept per image.
    """
    from ..evaluation.merging import merge_rows
    from ..evaluation.result_rows import CALIBRATED, read_rows, write_rows

    if len(detections) < 2:
        raise ValueError("name the results of two or more models to merge.")
    if detections_per_image < 1:
        raise ValueError(f"--detections-per-image must be 1 or more; got {detections_per_image}.")
    _keep(out, detections)
    parts = {str(path): read_rows(path) for path in detections}
    meanings = {str(row.get(CALIBRATED)) for part in parts.values() for row in part}
    if len(meanings) > 1:
        of_each = "; ".join(f"{path}: {_meaning(part)}" for path, part in parts.items())
        print(
            f"warning: the scores of these detectors are on different scales, so the wrong detections may win: {of_each}"
        )
    rows = merge_rows(parts, detections_per_image)
    write_rows(rows, out)
    print(f"{len(rows)} of {sum(map(len, parts.values()))} detections: {out}")


def _meaning(rows: Sequence[dict[str, Any]]) -> str:
    """The meaning of the scores in a results file, if it is stated."""
    from ..evaluation.result_rows import CALIBRATED

    names = {
        "None": "as the model gives them",
        "iou": "the expected IoU",
        "precision": "the probability of IoU .5 or more",
    }
    found = {str(row.get(CALIBRATED)) for row in rows}
    return " and ".join(sorted(names.get(mark, mark) for mark in found)) or "there are none"


def _keep(out: Path, inputs: Sequence[Path]) -> None:
    """Refuse to overwrite an input, or to write where nothing can be written."""
    check_file(out)
    for path in inputs:
        if out.resolve() == path.resolve():
            raise ValueError(f"--out {out} is also an input: name another file.")
