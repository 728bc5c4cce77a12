"""Arguments that several commands share."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from tyro.conf import Positional, arg

if TYPE_CHECKING:
    from ..checkpoints import Checkpoint
    from ..evaluation.calibration import Target
    from ..evaluation.model_scores import ModelCalibration

RecipeName = Annotated[str, Positional, arg(metavar="RECIPE")]
CheckpointPath = Annotated[Path, Positional, arg(metavar="CHECKPOINT")]
JsonPath = Annotated[Path, Positional, arg(metavar="JSON")]
Scores = Literal["raw", "calibrated", "precision"]
CalibrationPath = Annotated[Path | None, arg(metavar="JSON")]
ThresholdText = Annotated[str | None, arg(metavar="NUMBER|lrp|precision:P|recall:R")]
TIME = "%Y-%m-%d_%H-%M-%S"  # names of folders


def asked_calibration(
    checkpoint: Path, trained: "Checkpoint", scores: Scores, calibration: Path | None
) -> "ModelCalibration | None":
    """The calibration that --scores and --calibration ask for, None for raw scores.

    Raises:
        FileNotFoundError: there is no calibration.
        ValueError: it cannot be used.
    """
    from ..evaluation.model_scores import find_calibration

    if scores == "raw":
        if calibration is not None:
            raise ValueError(
                "--calibration applies to calibrated scores only: add --scores calibrated or --scores precision"
            )
        return None
    target: Target = "precision" if scores == "precision" else "iou"
    return find_calibration(checkpoint, trained.scores, trained.categories, target, calibration)


def default(text: str) -> Any:
    """The help text of a default that is not a value a user can type."""
    return arg(help_behavior_hint=f"(default: {text})")


def check_folder(out: Path) -> None:
    """Raise ValueError, before there is anything to lose, unless `out` can be a folder to write to."""
    if out.exists() and not out.is_dir():
        raise ValueError(f"--out {out} is a file: name a folder")
    _check_writable(out, out)


def check_file(out: Path) -> None:
    """Raise ValueError unless `out` can be a file to write."""
    if out.is_dir():
        raise ValueError(f"--out {out} is a folder: name a file")
    _check_writable(out, out.parent)


def _check_writable(out: Path, folder: Path) -> None:
    place = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    if not place.is_dir():
        raise ValueError(f"--out {out} cannot be written: {place} is a file")
    if not os.access(place, os.W_OK | os.X_OK):
        raise ValueError(f"--out {out} cannot be written: {place} is not writable")
