"""`predict`."""

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from tyro.conf import Positional, arg

from ..words import counted, listed
from .arguments import (
    CalibrationPath,
    CheckpointPath,
    Scores,
    ThresholdText,
    asked_calibration,
    check_folder,
    default,
)

if TYPE_CHECKING:
    from ..checkpoints import Checkpoint
    from ..evaluation.model_scores import ModelThresholds


def predict(
    checkpoint: CheckpointPath,
    images: Annotated[list[Path], Positional, arg(metavar="IMAGE|FOLDER|VIDEO", help_behavior_hint="(required)")],
    /,
    out: Path,
    score_threshold: Annotated[ThresholdText, default("lrp if the run has a report, else 0.3")] = None,
    scores: Scores = "raw",
    calibration: CalibrationPath = None,
    device: Annotated[str, default("an accelerator if there is one, else cpu")] = "",
    batch_size: Annotated[int | None, default("1 on a CPU, else 8")] = None,
    tile: Annotated[int | None, default("the whole image at once")] = None,
    overlap: float = 0.2,
    every: int = 1,
    annotations: Annotated[Path | None, default("image ids 1, 2, ... in the order of the files")] = None,
    pictures: bool = True,
    detector: Annotated[
        str, arg(name="model.detector", aliases=["--detector"], help_behavior_hint="(default: the checkpoint's)")
    ] = "",
) -> None:
    """Detect objects in images and videos, and write pictures with boxes, COCO results and CSV.

    Args:
        checkpoint: a run folder, .ckpt or .safetensors; or an .onnx file from `ranksort export`.
        images: image and video files, folders (searched recursively), .txt files with one path per line, and patterns like "photos/*.jpg".
        out: folder for the results.
        score_threshold: minimum score of a detection: a number; or, for each class, the threshold that has the best oLRP in the
            run's report (lrp) or reaches a precision or recall there (precision:.9, recall:.8).
        scores: raw: the model's own; calibrated: the expected IoU of a detection; precision: the probability of an IoU of .5 or more.
        calibration: calibration file for calibrated scores; by default the one in the run's report or the checkpoint.
        device: such as cpu, cuda:1 or mps.
        batch_size: images or tiles per batch; fewer if they do not fit into memory.
        tile: side in pixels of square tiles to detect on one by one, for small objects in large images.
        overlap: overlap of neighbouring tiles, as a fraction of their side.
        every: detect in every n-th frame of videos.
        annotations: COCO file from which the results take their image ids, by file name, so that they can be evaluated on it.
        pictures: draw the detections.
        detector: file.py:Class, if the checkpoint was trained with your own detector; the file is executed.
    """
    from PIL import Image

    from ..checkpoints import read_checkpoint
    from ..data.image_ids import read_image_ids
    from ..device import usable_device
    from ..evaluation.thresholds import parse_threshold
    from ..prediction import Predictor
    from ..prediction.folder import PredictionFolder
    from ..prediction.images import RESULTS, check_exist, find_images, say_what_was_found

    check_folder(out)
    if (out / RESULTS).exists():
        raise ValueError(
            f"{out} already holds results of an earlier prediction: name another folder with --out, or delete it"
        )
    if tile:  # tiles are for images with more pixels than Pillow opens by default
        Image.MAX_IMAGE_PIXELS = None
    # Pillow warns from half as many pixels on; such images are read.
    warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
    files, passed_over = find_images(images, out)
    if passed_over:
        print(f"skipped: {passed_over}")
    if not files:
        raise ValueError(
            f"there are no images in {', '.join(map(str, images)) or 'the arguments'}: name files or folders"
        )
    if every < 1:
        raise ValueError(f"--every must be 1 or more, got {every}")
    trained = read_checkpoint(checkpoint)
    if trained.note:
        print(f"warning: {trained.note}: detecting with {trained.path}")
    model = trained.build(usable_device(device), **({"detector": detector} if detector else {}))
    asked = None if score_threshold is None else parse_threshold(score_threshold)
    if not isinstance(asked, float):
        model.thresholds = _thresholds(checkpoint, trained, calibration, is_needed=asked is not None)
    model.calibration = asked_calibration(checkpoint, trained, scores, calibration)
    if model.calibration is not None:
        print(model.calibration)
    predictor = Predictor(model, score_threshold, batch_size=batch_size, tile=tile, overlap=overlap)
    image_ids = None
    if annotations:
        found = zip(files, read_image_ids(annotations, files, trained.categories), strict=True)
        known = {file: id for file, id in found if id is not None}
        if unknown := [str(file) for file in files if file not in known]:
            message = f"{counted(len(unknown), 'image')} not listed in {annotations}: {listed(unknown)}"
            if not known:
                raise ValueError(f"there is nothing to detect in: {message}")
            print(f"skipped: {message}")
        files, image_ids = list(known), known.values()
    check_exist(files)
    print(f"detections {predictor.threshold_text()}")
    for remark in predictor.remarks if score_threshold else ():
        print(remark)
    folder = PredictionFolder(out, predictor, trained.categories, pictures=pictures, every=every)
    folder.predict(files, image_ids)
    say_what_was_found(folder.images, folder.detections, folder.failures, len(files), out)


def _thresholds(
    checkpoint: Path, trained: "Checkpoint", calibration: Path | None, is_needed: bool
) -> "ModelThresholds | None":
    """The score thresholds that reach each precision, recall and LRP error; None if there are none and none are needed."""
    from ..evaluation.model_scores import find_thresholds

    try:
        return find_thresholds(checkpoint, trained.scores, trained.categories, calibration)
    except FileNotFoundError:
        if is_needed:
            raise
    except ValueError as error:
        if is_needed:
            raise
        print(error)
    return None
