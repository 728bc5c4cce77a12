"""`export`."""

import contextlib
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import arg

from ..words import listed
from .arguments import CheckpointPath


def export(
    checkpoint: CheckpointPath,
    /,
    out: Annotated[Path, arg(metavar="ONNX")],
    calibration: Annotated[Path | None, arg(metavar="JSON")] = None,
    images: Annotated[list[Path], arg(metavar="IMAGE|FOLDER")] = [],  # noqa: B006
    verify: bool = True,
    overwrite: bool = False,
    detector: Annotated[str, arg(name="model.detector", aliases=["--detector"])] = "",
) -> None:
    """Export a trained detector to ONNX, including resizing and NMS, for images of any size.

    The file runs without PyTorch: `ranksort predict model.onnx IMAGE... --out DIR`.

    Args:
        checkpoint: a run folder, .ckpt or .safetensors.
        out: output file.
        calibration: file of `ranksort calibrate` for this model, to include; by default the one in the run's report or the checkpoint.
        images: images to compare ONNX Runtime with PyTorch on (the first three are used); by default synthetic ones.
        verify: compare the two, and write no file if they differ.
        overwrite: replace an existing file.
        detector: file.py:Class, if the checkpoint was trained with your own detector; the file is executed.
    """
    for package in ("onnx", "onnxscript", *(["onnxruntime"] if verify else [])):
        _require(package)
    from ..checkpoints import load_model, read_checkpoint
    from ..evaluation.model_scores import find_calibration
    from ..export.onnx_file import check_path, export_onnx
    from ..export.verification import drawn_images
    from ..prediction.images import VIDEOS, find_images, load_pixels

    check_path(out, overwrite)
    trained = read_checkpoint(checkpoint)
    model = load_model(checkpoint, detector=detector or None, calibration=calibration)  # whose thresholds come first
    calibrations = []
    targets: tuple[Literal["iou", "precision"], ...] = ("iou", "precision")
    for target in targets if calibration is None else targets[:1]:
        with contextlib.suppress(*([FileNotFoundError] if calibration is None else [])):
            found = find_calibration(checkpoint, trained.scores, trained.categories, target, calibration)
            calibrations.append(found)
    files = [file for file in find_images(images)[0] if file.suffix.lower() not in VIDEOS]
    if images and not files:
        raise ValueError(f"there are no images in {listed(images)}: name files or folders")
    pictures = [load_pixels(file, model.white) for file in files[:3]] or drawn_images()
    comparison = export_onnx(
        model,
        out,
        trained.categories,
        calibrations=calibrations,
        images=pictures if verify else [],
        overwrite=overwrite,
    )
    print(comparison or "not compared with PyTorch")
    print(f"wrote {out} ({out.stat().st_size / 1e6:.1f} MB); next: ranksort predict {out} IMAGE... --out DIR")


def _require(package: str) -> None:
    import importlib.util

    if importlib.util.find_spec(package) is None:
        raise ValueError(f'export needs {package}: pip install "ranksort[export]"')
