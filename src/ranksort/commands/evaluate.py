"""`test`, `evaluate` and `report`."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from tyro.conf import Positional, arg

from .. import __version__
from ..recipes.recipe import DataSettings, ModelSettings, Recipe
from .arguments import (
    TIME,
    CalibrationPath,
    CheckpointPath,
    Scores,
    ThresholdText,
    asked_calibration,
    check_file,
    check_folder,
    default,
)

if TYPE_CHECKING:
    from ..evaluation import Report


def test_command(defaults: Recipe) -> Callable[..., None]:
    """Make the command `test`, whose options default to the settings of a checkpoint's recipe."""

    def test(
        checkpoint: CheckpointPath,
        /,
        data: DataSettings = defaults.data,
        model: ModelSettings = defaults.model,
        out: Annotated[Path | None, default("reports/TIME")] = None,
        overwrite: bool = False,
        scores: Scores = "raw",
        calibration: CalibrationPath = None,
        score_threshold: ThresholdText = None,
    ) -> None:
        """Evaluate a checkpoint on the validation data. `ranksort test CHECKPOINT --help` has the checkpoint's settings as defaults.

        Args:
            checkpoint: a run folder, .ckpt or .safetensors.
            out: folder for the report, with pictures, score calibrations, and the detections as COCO results and CSV.
            overwrite: replace an existing report in the folder.
            scores: see predict; new calibrations are fitted to raw scores only.
            calibration: see predict.
            score_threshold: see predict; evaluate only detections above it, and report precision and recall there.
        """
        from ..checkpoints import read_checkpoint
        from ..engine import test as run_test
        from ..evaluation.model_scores import find_thresholds
        from ..evaluation.thresholds import Wish, parse_threshold

        out = out or Path("reports") / time.strftime(TIME)
        check_folder(out)
        keep_report(out, overwrite)
        trained = read_checkpoint(checkpoint)
        if trained.note:
            print(f"warning: {trained.note}: evaluating {trained.path}")
        trained.recipe.data, trained.recipe.model = data, model
        asked, thresholds = None if score_threshold is None else parse_threshold(score_threshold), None
        if isinstance(asked, Wish):
            thresholds = find_thresholds(checkpoint, trained.scores, trained.categories, calibration)
        given = asked_calibration(checkpoint, trained, scores, calibration)
        if given is not None:
            print(given)
        run_test(trained, out, calibration=given, thresholds=thresholds, score_threshold=asked)

    return test


def evaluate(
    ground_truth: Annotated[Path, Positional, arg(metavar="TRUTH")],
    detections: Annotated[Path, Positional, arg(metavar="DETECTIONS")],
    /,
    iou_type: Literal["bbox", "segm"] = "bbox",
    style: Literal["coco", "lvis"] = "coco",
    max_detections: Annotated[int | None, default("100 in coco, 300 in lvis")] = None,
    images: Annotated[Path | None, default("no pictures")] = None,
    out: Annotated[Path | None, default("no report is written")] = None,
    overwrite: bool = False,
) -> None:
    """Evaluate detections from any model: AP and oLRP with 95 % intervals, kinds of error, calibration errors.

    Args:
        ground_truth: COCO or LVIS annotations, a JSON file.
        detections: COCO results, a JSON file such as results_bbox.json of test and predict.
        iou_type: compare boxes or masks.
        style: evaluation rules of COCO or LVIS.
        max_detections: how many detections count per class and image (coco) or per image (lvis).
        images: folder of the images, for the pictures in the report.
        out: folder for the report.
        overwrite: replace an existing report in the folder.
    """
    from ..data.images import require_folder
    from ..evaluation import evaluate_detections
    from ..evaluation.calibration_summary import remove_calibrations
    from ..evaluation.page import save_reports

    if out:
        check_folder(out)
        keep_report(out, overwrite)
    elif images:
        raise ValueError("--images is for the pictures of the report: name a folder for the report with --out.")
    if images:
        require_folder(images)
    result = evaluate_detections(ground_truth, detections, iou_type, style, max_detections)
    print(result.text())
    if out:
        settings = {"ground truth": str(ground_truth), "detections": str(detections)}
        settings |= {"date": time.strftime("%Y-%m-%d %H:%M"), "versions": f"ranksort {__version__}"}
        pictures = {str(iou_type): _pictures(images, ground_truth, result)} if images else None
        save_reports(out, [result], settings, pictures)
        for folder in (out, out / "masks"):  # of an earlier evaluation
            remove_calibrations(folder)
        print(f"\nreport: {out / 'index.html'}")


def _pictures(images: Path, ground_truth: Path, result: "Report") -> list[dict[str, Any]]:
    """Images for the page of a report."""
    from ..data.coco import CocoDataset
    from ..recipes.recipe import EvaluationSettings
    from ..visualize import report_pictures

    dataset = CocoDataset(images, ground_truth, training=False, masks=result.iou_type == "segm")
    return report_pictures(dataset, result, EvaluationSettings().pictures)


def keep_report(folder: Path, overwrite: bool) -> None:
    """Refuse to overwrite a report, which may be the result of hours, unless told to."""
    if (folder / "report.json").exists() and not overwrite:
        raise ValueError(f"{folder} already holds a report: name another folder, or replace it with --overwrite.")


def report(runs: Annotated[list[Path], Positional, arg(metavar="RUN")], /, out: Path = Path("comparison.html")) -> None:
    """Compare runs: write a page with metrics, classes and curves side by side, and print how much better each run is than the first.

    Args:
        runs: run folders, or report folders of test or evaluate.
        out: output HTML file.
    """
    from ..evaluation.page import compare_reports, save_page

    if not runs:
        raise ValueError("name one or more runs to report on")
    check_file(out)
    save_page(runs, out)
    for line in compare_reports(runs):
        print(line)
    print(f"report: {out}")
