"""`ranksort predict model.onnx`, also where nothing but onnxruntime, numpy and Pillow is installed."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from ..prediction.images import RESULTS, VIDEOS, check_exist, find_images, say_what_was_found
from .detector import OnnxDetector
from .folder import ResultFolder


def predict_exported(arguments: Sequence[str]) -> None:
    """Run `predict` with what follows it on the command line: detect objects in images, and write results and pictures.

    Raises:
        FileNotFoundError, ValueError: something cannot be used, or an image cannot be read; the results of the others are written.
    """
    parser = argparse.ArgumentParser(
        prog="ranksort predict",
        description="Detect objects in images with an ONNX file: pictures with boxes, COCO results and CSV.",
        allow_abbrev=False,
    )
    parser.add_argument("model", type=Path, metavar="MODEL.onnx", help="file written by `ranksort export`")
    parser.add_argument("images", type=Path, nargs="+", metavar="IMAGE|FOLDER")
    parser.add_argument("--out", type=Path, required=True, help="folder for the results")
    parser.add_argument(
        "--score-threshold", help='minimum score of a detection, or "lrp"; default: lrp if the file has them, else 0.3'
    )
    parser.add_argument("--scores", choices=["raw", "calibrated", "precision"], default="raw")
    parser.add_argument("--no-pictures", action="store_true", help="write no pictures")
    parser.add_argument("--threads", type=int, help="default: the number of cores")
    given, unknown = parser.parse_known_args(arguments)
    if options := [argument.partition("=")[0] for argument in unknown if argument.startswith("-")]:
        raise ValueError(
            f"an ONNX file does not take {' '.join(options)}, only --out, --score-threshold, --scores, --no-pictures and --threads: "
            "predict with the checkpoint, which has all options"
        )
    if unknown:
        parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    _predict(given)


def _predict(given: argparse.Namespace) -> None:
    out: Path = given.out
    if (out / RESULTS).exists():
        raise ValueError(
            f"{out} holds the results of an earlier prediction: name another folder with --out, or delete it"
        )
    files, passed_over = find_images(given.images, out)
    if passed_over:
        print(f"skipped: {passed_over}")
    if not files:
        raise ValueError(f"there are no images in {', '.join(map(str, given.images))}: name files or folders")
    if films := [file for file in files if file.suffix.lower() in VIDEOS]:
        raise ValueError(f"{films[0]} is a video, which ONNX models do not take: predict with the checkpoint")
    if given.threads is not None and given.threads < 1:
        raise ValueError(f"--threads must be 1 or more, got {given.threads}")
    detector = OnnxDetector(given.model, given.threads)
    check_exist(files)
    thresholds = detector.thresholds(given.score_threshold)
    detector.curves(given.scores)
    low, high = float(thresholds.min()), float(thresholds.max())
    # A number applies to calibrated scores, the model's own thresholds to raw ones.
    is_number = detector.is_number(given.score_threshold)
    of_model = "" if given.scores == "raw" or is_number else ", before calibration"
    print(f"detections with a score of {low:.3g}{f' to {high:.3g}, by class,' if high > low else ''} or more{of_model}")
    folder = ResultFolder(out, detector, pictures=not given.no_pictures)
    folder.predict(files, given.score_threshold, scores=given.scores)
    say_what_was_found(folder.images, folder.detections, folder.failures, len(files), out)
