"""`ranksort predict model.onnx`, also where nothing but onnxruntime, numpy and Pillow is installed."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from ..prediction.images import RESULTS, VIDEOS, find_images
from ..words import counted
from .detector import OnnxDetector
from .folder import ResultFolder


def predict_exported(
    model: Path,
    images: Sequence[Path],
    out: Path,
    score_threshold: float | str | None = None,
    *,
    scores: str = "raw",
    pictures: bool = True,
    threads: int | None = None,
) -> None:
    """Detect objects in images with an ONNX file, and write results and pictures to `out`.

    Raises:
        FileNotFoundError, ValueError: something cannot be used, or an image cannot be read; the results of the others are written.
    """
    if (out / RESULTS).exists():
        raise ValueError(
            f"{out} holds the results of an earlier prediction: name another folder by --out, or delete it"
        )
    files, passed_over = find_images(images, out)
    if passed_over:
        print(f"passed over: {passed_over}")
    if not files:
        raise ValueError(
            f"there are no images in {', '.join(map(str, images)) or 'the arguments'}: name files or folders"
        )
    if films := [file for file in files if file.suffix.lower() in VIDEOS]:
        raise ValueError(f"{films[0]} is a video, which ONNX models do not take: predict with the checkpoint")
    detector = OnnxDetector(model, threads)
    thresholds = detector.thresholds(score_threshold)
    detector.curves(scores)
    low, high = float(thresholds.min()), float(thresholds.max())
    print(f"detections from score {low:.3g}{f' to {high:.3g}, by class,' if high > low else ''} on")
    folder = ResultFolder(out, detector, pictures=pictures)
    folder.predict(files, score_threshold, scores=scores)
    counts = ", ".join(f"{count} {name}" for name, count in folder.detections.most_common(10))
    numbers = f"{counted(folder.images, 'image')}, {counted(folder.detections.total(), 'detection')}"
    print(f"{numbers}{f' ({counts})' if counts else ''}: {out}")
    if folder.failures:
        raise ValueError(
            f"{len(folder.failures)} of {len(files)} images could not be read or processed: {'; '.join(folder.failures[:5])}"
        )


def main(arguments: Sequence[str]) -> int:
    """Run `predict model.onnx ...` without the toolbox; returns the exit code."""
    parser = argparse.ArgumentParser(prog="ranksort predict", description="Detect objects in images with an ONNX file.")
    parser.add_argument("model", type=Path, metavar="MODEL.onnx")
    parser.add_argument("images", type=Path, nargs="+", metavar="IMAGE|FOLDER")
    parser.add_argument("--out", type=Path, required=True, help="folder for the results")
    parser.add_argument("--score-threshold", help='least score of a detection, or "lrp"')
    parser.add_argument("--scores", choices=["raw", "calibrated", "precision"], default="raw")
    parser.add_argument("--no-pictures", action="store_true", help="write results alone")
    given = parser.parse_args(arguments)
    try:
        predict_exported(
            given.model,
            given.images,
            given.out,
            given.score_threshold,
            scores=given.scores,
            pictures=not given.no_pictures,
        )
    except KeyboardInterrupt:
        return 130
    except (ValueError, OSError) as error:
        print(f"ranksort: {error}", file=sys.stderr)
        return 2
    return 0
