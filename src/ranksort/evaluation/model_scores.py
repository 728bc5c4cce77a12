"""Thresholds and calibrations of a model from validation data: find them with its checkpoint, and apply them to its detections."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ..data.coco_columns import Category
from ..data.json_source import JsonSource
from .calibration import Calibrator, Target
from .calibration_file import load_calibrator, read_calibrator
from .thresholds import Reached, Thresholds, Wish, lowered, read_thresholds

if TYPE_CHECKING:
    from ..models import Detector

THRESHOLDS = "thresholds"
FILES = {THRESHOLDS: "thresholds.json", "iou": "calibration.json", "precision": "calibration_precision.json"}
MEANINGS = {"iou": "expected IoU", "precision": "probability of being a true positive at IoU .5"}


@dataclass(frozen=True)
class ModelThresholds:
    """Thresholds of a model's labels, for raw scores."""

    thresholds: Thresholds
    categories: Sequence[Category]  # in the order of the labels
    _reached: dict[Wish, Reached] = field(default_factory=dict, init=False, repr=False)  # `predict` asks for each image

    def __post_init__(self) -> None:
        """Raise ValueError if there is none of any label."""
        self.reach(Wish("lrp"))

    def reach(self, wish: Wish) -> Reached:
        """The threshold of each label that comes closest to a wish; see `Thresholds.reach`."""
        if wish not in self._reached:
            self._reached[wish] = self.thresholds.reach(wish, self.categories)
        return self._reached[wish]


class ModelCalibration:
    """Calibrate the scores of a model's detections.

    Args:
        calibrator: the calibrator.
        name: its source, for messages.
        categories: classes of the model, in the order of the labels; found in the calibrator by id and name.

    Raises:
        ValueError: the calibrator knows none of them.
    """

    def __init__(self, calibrator: Calibrator, name: str, categories: Sequence[Category]) -> None:
        self.calibrator, self.name, self.target = calibrator, name, calibrator.target
        places = {(category.id, category.name): n for n, category in enumerate(calibrator.categories)}
        self._places = np.array(
            [places.get((category.id, category.name), -1) for category in categories], dtype=np.int64
        )
        if not (self._places >= 0).any():
            raise ValueError(f"{name} belongs to another model: it has none of the classes of this one")
        self.with_own_curve = sum(
            place >= 0 and calibrator.curves[place] is not None for place in self._places.tolist()
        )

    def __call__(self, found: dict[str, Tensor]) -> dict[str, Tensor]:
        """The detections of an image, as from `Detector.forward`, sorted by their calibrated scores, which are float64.

        Different scores could become equal in float32, because one thousandth of a calibrated score breaks ties. It is float32 only on
        devices without float64 (MPS).
        """
        scores = self.calibrated(found["scores"].cpu().double().numpy(), found["labels"].cpu().numpy())
        device = found["scores"].device
        new = torch.from_numpy(scores).to(device, torch.float32 if device.type == "mps" else torch.float64)
        order = new.argsort(descending=True, stable=True)
        return {key: value[order] for key, value in {**found, "scores": new}.items()}

    def calibrated(self, scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
        """Scores (N,) of labels (N,), calibrated, float64."""
        return self.calibrator(scores, self._places[labels])

    def __str__(self) -> str:
        return (
            f"scores are the {MEANINGS[self.target]}, from {self.name} "
            f"({self.with_own_curve} of {len(self._places)} classes have their own calibration)"
        )


def least_scores(asked: float | Wish, model: "Detector") -> Reached:
    """The score threshold of each label of a model that meets a request, for scores as the model now reports them.

    Thresholds from a report are `lowered`, so that they keep the detections that they were found at.

    Raises:
        ValueError: a `Wish` is given, but the model has no thresholds.
    """
    if not isinstance(asked, Wish):
        return Reached([asked] * model.num_classes, [])
    if model.thresholds is None:
        raise ValueError(
            f'there is no report with thresholds for this model, which score_threshold="{asked}" needs: '
            "load it from its run folder, or set a number from 0 to 1"
        )
    exact, remarks = model.thresholds.reach(asked)
    values = [lowered(value) for value in exact]
    # Calibration keeps the order in each class, and so the detections at or above the threshold.
    if model.calibration is not None:
        values = model.calibration.calibrated(np.array(values), np.arange(len(values))).tolist()
    return Reached(values, remarks)


def find_thresholds(
    checkpoint: Path, carried: Mapping[str, Any], categories: Sequence[Category], file: Path | None = None
) -> ModelThresholds:
    """The thresholds in a calibration file, or else those that come with a checkpoint; see `_find`.

    Raises:
        FileNotFoundError: there are none; the message says how to create them.
        ValueError: they cannot be used.
    """
    if file is not None and (content := read_object(file).get(THRESHOLDS)) is not None:
        return ModelThresholds(read_thresholds(content, str(file)), categories)
    content, name = _find(checkpoint, carried, THRESHOLDS)
    if content is None:
        raise FileNotFoundError(
            f"there is no {name}, which this score threshold needs: create it with {_advice(checkpoint)}, or set a number from 0 to 1"
        )
    return ModelThresholds(read_thresholds(content, name), categories)


def find_calibration(
    checkpoint: Path,
    carried: Mapping[str, Any],
    categories: Sequence[Category],
    target: Target = "iou",
    file: Path | None = None,
) -> ModelCalibration:
    """The calibration in a file, or else the one for this target that comes with a checkpoint; see `_find`.

    Raises:
        FileNotFoundError: there is none; the message says how to create one.
        ValueError: it cannot be used.
    """
    if file is not None:
        calibrator, name = load_calibrator(file), str(file)
        if target == "precision" != calibrator.target:
            raise ValueError(
                f"{file} gives the {MEANINGS['iou']}, not the {MEANINGS['precision']}: "
                "create one with `ranksort calibrate --target precision`"
            )
        return ModelCalibration(calibrator, name, categories)
    content, name = _find(checkpoint, carried, target)
    if content is None:
        raise FileNotFoundError(
            f"{checkpoint} has no calibration, and there is no {name}: create it with {_advice(checkpoint)}, or name the output "
            "of `ranksort calibrate` on validation data with --calibration FILE"
        )
    return ModelCalibration(read_calibrator(content, name), name, categories)


def _find(checkpoint: Path, carried: Mapping[str, Any], kind: str) -> tuple[Any, str]:
    """The parsed contents of one of FILES and its source; None and where it was expected if there is none.

    The report of the checkpoint's run comes first, then the contents of the checkpoint, then files beside it. Reports on masks come
    before reports on boxes.
    """
    is_run, parent = checkpoint.is_dir(), checkpoint.absolute().parent
    run = checkpoint if is_run else parent.parent if parent.name == "checkpoints" else None
    reports = [run / "report"] if run else []
    beside = [] if is_run else [parent / "report", parent, parent.parent / "report"]
    for folders, content in ((reports, carried.get(kind)), (beside, None)):
        files = [file for f in folders for file in (f / "masks" / FILES[kind], f / FILES[kind]) if file.is_file()]
        if files:
            return read_object(files[0]), str(files[0])
        if content is not None:
            return content, str(checkpoint)
    return None, str((reports or beside)[0] / FILES[kind])


def read_object(file: Path) -> dict[str, Any]:
    """The JSON object in a file of a report.

    Raises:
        ValueError: it is damaged.
    """
    try:
        content = JsonSource.open(file, "file").parse()
        if isinstance(content, dict):
            return content
    except ValueError:
        pass
    raise ValueError(f"{file} is damaged: evaluate the run again with `ranksort test`")


def _advice(checkpoint: Path) -> str:
    run = checkpoint if checkpoint.is_dir() else checkpoint.absolute().parent
    run = run.parent if run.name == "checkpoints" else run
    return f"`ranksort test {checkpoint} --out {run / 'report'}`"


def read_report(folder: Path) -> dict[str, Any]:
    """The scores to store in a checkpoint of a run: the contents of FILES in the folder of its report, of masks if there are any."""
    places = [folder / "masks", folder]
    found = {kind: [f / name for f in places if (f / name).is_file()] for kind, name in FILES.items()}
    return {kind: read_object(files[0]) for kind, files in found.items() if files}
