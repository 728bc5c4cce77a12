"""What the arguments of several commands are."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

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
        FileNotFoundError, ValueError: there is none, or it cannot be used.
    """
    from ..evaluation.model_scores import find_calibration

    if scores == "raw":
        if calibration is not None:
            raise ValueError("--calibration is for calibrated scores: add --scores calibrated or --scores precision")
        return None
    target: Target = "precision" if scores == "precision" else "iou"
    return find_calibration(checkpoint, trained.scores, trained.categories, target, calibration)
