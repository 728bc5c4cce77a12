"""`predict`."""

from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from .arguments import CheckpointPath


def predict(
    checkpoint: CheckpointPath,
    images: Annotated[list[Path], Positional, arg(metavar="IMAGE|FOLDER")],
    /,
    out: Path,
    score_threshold: float | Literal["lrp"] = 0.3,
    device: str = "",
    recursive: bool = False,
    detector: Annotated[str, arg(name="model.detector", aliases=["--detector"])] = "",
) -> None:
    """Detect objects in images: pictures with boxes, and detections.json.

    Args:
        checkpoint: a run folder, .ckpt or .safetensors.
        images: image files, and folders of such.
        out: folder for the results.
        score_threshold: least score of a detection; "lrp": the best one for each class by oLRP, from the run's report.
        device: such as cpu, cuda:1 or mps; by default what there is.
        recursive: look for images in the folders below those named, too.
        detector: file.py:Class, where the checkpoint was trained with a detector of your own; its file is run.
    """
    from ..predict import find_images, predict_images

    files, passed_over = find_images(images, out, recursive)
    if passed_over:
        print(f"passed over: {passed_over}")
    if not files:
        raise ValueError(
            f"there are no images in {', '.join(map(str, images)) or 'the arguments'}: name files or folders"
        )
    failures = predict_images(checkpoint, files, out, score_threshold, device, detector)
    print(f"{len(files) - len(failures)} pictures and detections.json: {out}")
    if failures:
        raise ValueError(
            f"{len(failures)} of {len(files)} images could not be read or processed: {'; '.join(failures[:5])}"
        )
