"""`predict`."""

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from tyro.conf import Positional, arg

from ..words import counted, listed
from .arguments import CheckpointPath, check_folder, default

if TYPE_CHECKING:
    from ..data.coco_columns import Category


def predict(
    checkpoint: CheckpointPath,
    images: Annotated[list[Path], Positional, arg(metavar="IMAGE|FOLDER|VIDEO", help_behavior_hint="(required)")],
    /,
    out: Path,
    score_threshold: Annotated[
        float | Literal["lrp"] | None, default("lrp where the run has a report, else 0.3")
    ] = None,
    device: Annotated[str, default("an accelerator where there is one, else cpu")] = "",
    batch_size: Annotated[int | None, default("1 on a CPU, else 8")] = None,
    tile: Annotated[int | None, default("the image as a whole")] = None,
    overlap: float = 0.2,
    every: int = 1,
    annotations: Annotated[Path | None, default("image ids 1, 2, ... in the order of the files")] = None,
    pictures: bool = True,
    detector: Annotated[
        str, arg(name="model.detector", aliases=["--detector"], help_behavior_hint="(default: the checkpoint's)")
    ] = "",
) -> None:
    """Detect objects in images and videos: pictures with boxes, COCO results and CSV.

    Args:
        checkpoint: a run folder, .ckpt or .safetensors.
        images: image and video files, folders in depth, .txt files with a path a line, and patterns such as "photos/*.jpg".
        out: folder for the results.
        score_threshold: least score of a detection; "lrp": the best one for each class by oLRP, from the run's report.
        device: such as cpu, cuda:1 or mps.
        batch_size: images or tiles at once, fewer where they do not fit into memory.
        tile: look at squares of this many pixels of the image one by one, for objects that are small in large images.
        overlap: of neighbouring tiles, as a share of their side.
        every: look at every n-th frame of videos.
        annotations: COCO file whose image ids the results get, by the names of the files, so that they can be evaluated on it.
        pictures: draw the detections.
        detector: file.py:Class, where the checkpoint was trained with a detector of your own; its file is run.
    """
    from PIL import Image

    from ..checkpoints import read_checkpoint
    from ..data.image_ids import read_image_ids
    from ..device import usable_device
    from ..prediction import Predictor
    from ..prediction.folder import PredictionFolder
    from ..prediction.images import RESULTS, find_images

    check_folder(out)
    if (out / RESULTS).exists():
        raise ValueError(
            f"{out} holds the results of an earlier prediction: name another folder by --out, or delete it"
        )
    if tile:  # which is for images of more pixels than Pillow reads unasked
        Image.MAX_IMAGE_PIXELS = None
    warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)  # half as many; they are read
    files, passed_over = find_images(images, out)
    if passed_over:
        print(f"passed over: {passed_over}")
    if not files:
        raise ValueError(
            f"there are no images in {', '.join(map(str, images)) or 'the arguments'}: name files or folders"
        )
    if every < 1:
        raise ValueError(f"--every must be 1 or more, got {every}")
    trained = read_checkpoint(checkpoint)
    model = trained.build(usable_device(device), **({"detector": detector} if detector else {}))
    if score_threshold in (None, "lrp"):
        model.lrp_thresholds = _lrp_thresholds(checkpoint, trained.categories, is_needed=score_threshold == "lrp")
    predictor = Predictor(model, score_threshold, batch_size=batch_size, tile=tile, overlap=overlap)
    image_ids = None
    if annotations:
        found = zip(files, read_image_ids(annotations, files, trained.categories), strict=True)
        known = {file: id for file, id in found if id is not None}
        if unknown := [str(file) for file in files if file not in known]:
            message = f"{counted(len(unknown), 'image')} that {annotations} does not have: {listed(unknown)}"
            if not known:
                raise ValueError(f"there is nothing but {message}")
            print(f"passed over: {message}")
        files, image_ids = list(known), known.values()
    print(f"detections {predictor.threshold_text()}")
    folder = PredictionFolder(out, predictor, trained.categories, pictures=pictures, every=every)
    folder.predict(files, image_ids)
    counts = ", ".join(f"{count} {name}" for name, count in folder.detections.most_common(10))
    numbers = f"{counted(folder.images, 'image')}, {counted(folder.detections.total(), 'detection')}"
    print(f"{numbers}{f' ({counts})' if counts else ''}: {out}")
    if folder.failures:
        raise ValueError(
            f"{len(folder.failures)} of {counted(len(files), 'image')} could not be read or processed: {'; '.join(folder.failures[:5])}"
        )


def _lrp_thresholds(checkpoint: Path, categories: "list[Category]", is_needed: bool) -> tuple[float, ...] | None:
    """The LRP-optimal threshold of each class, None where there are none and none are needed."""
    from ..evaluation.thresholds import read_thresholds

    try:
        return tuple(read_thresholds(checkpoint, categories))
    except FileNotFoundError:
        if is_needed:
            raise
    except ValueError as error:
        if is_needed:
            raise
        print(error)
    return None
