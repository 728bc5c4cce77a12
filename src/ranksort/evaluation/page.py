"""The page that shows a report, or several side by side: one self-contained HTML file."""

import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..whole_file import replace_file
from .intervals import METRICS as INTERVALS
from .intervals import difference_in_words
from .metrics import list_metrics
from .report import Report

TEMPLATE = Path(__file__).with_name("page.html")
CURVE_POINTS = 300  # of a training curve
_LARGEST_EXACT = 2**53 - 1  # integer that JavaScript does not round
METRICS = [metric for metric in list_metrics([]) if metric.in_table or metric.in_classes]
COLUMNS = ("class", "category_id", "objects", *(metric.name for metric in METRICS if metric.in_classes))
Pictures = Mapping[str, list[dict[str, Any]]]  # iou_type to what `visualize.worst_and_best_images` makes


def save_reports(
    folder: Path,
    reports: Collection[Report],
    settings: dict[str, str] | None = None,
    pictures: Pictures | None = None,
    run: Path | None = None,
) -> None:
    """Save the reports of one evaluation and their page.

    Args:
        folder: gets report.json, per_class.csv and index.html; if there are reports of boxes and of masks, those of masks go
            to its subfolder `masks`.
        reports: at most one of boxes and one of masks.
        settings: how the reports were made, in words.
        pictures: to show.
        run: the run folder whose training curves are shown.
    """
    for report in reports:
        report.save_numbers(folder / "masks" if report.iou_type == "segm" and len(reports) > 1 else folder, settings)
    if len(reports) == 1:  # of an earlier evaluation
        for name in ("report.json", "thresholds.json"):
            (folder / "masks" / name).unlink(missing_ok=True)
    save_page([run or folder], folder / "index.html", pictures)


def save_page(runs: Sequence[Path], out: Path, pictures: Pictures | None = None) -> None:
    """Write the page of one run, or the page that compares several.

    Args:
        runs: run folders, or folders that reports were saved to.
        out: the HTML file.
        pictures: of the run, if there is only one.

    Raises:
        FileNotFoundError: one of them has no report.
        ValueError: a report cannot be read.
    """
    read = [_read_run(run) for run in runs]
    _compare_runs(read)
    for evaluation in read[0]["evaluations"] if pictures else []:
        evaluation["pictures"] = (pictures or {})[evaluation["iou_type"]]
    # Class and file names are untrusted: as JSON without "<" none of them can end the script element.
    content = _exact({"runs": read, **_shown_metrics()})
    data = json.dumps(content, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")
    replace_file(out, TEMPLATE.read_text(encoding="utf-8").replace("{{data}}", data).encode())


def _exact(value: Any) -> Any:
    """The same with strings for the integers that JavaScript would round, such as ids that are hashes."""
    if isinstance(value, dict):
        return {key: _exact(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return list(map(_exact, value))
    return str(value) if isinstance(value, int) and abs(value) > _LARGEST_EXACT else value


def compare_reports(runs: Sequence[Path]) -> list[str]:
    """How much better each run is than the first, with 95 % intervals: one line each, also if that is unknown.

    Raises:
        FileNotFoundError: as for `save_page`.
        ValueError: as for `save_page`.
    """
    read = [_read_run(run) for run in runs]
    _compare_runs(read)
    kinds = {"bbox": "", "segm": " (masks)"}
    return [
        f"{run['name']} against {read[0]['name']}{kinds[evaluation['iou_type']] if len(run['evaluations']) > 1 else ''}: "
        f"{evaluation['difference']}"
        for run in read[1:]
        for evaluation in run["evaluations"]
        if evaluation["difference"]
    ]


def _compare_runs(runs: list[dict[str, Any]]) -> None:
    """Add to each evaluation its `difference` from the first run, in words; remove the resamples, which are not needed after that."""
    first = {evaluation["iou_type"]: evaluation for evaluation in runs[0]["evaluations"]}
    for n, run in enumerate(runs):
        for evaluation in run["evaluations"]:
            base = first.get(evaluation["iou_type"])
            evaluation["difference"] = _difference(base, evaluation) if n and base else ""
    for run in runs:
        for evaluation in run["evaluations"]:
            for name in INTERVALS if evaluation.get("intervals") else ():
                evaluation["intervals"][name].pop("values", None)


def _difference(base: dict[str, Any], other: dict[str, Any]) -> str:
    if base.get("style") != other.get("style"):
        return "not compared, because one was evaluated by COCO's rules and the other by LVIS'"
    if not base.get("intervals") or not other.get("intervals"):
        return "not compared, because one of the reports has no intervals"
    return difference_in_words(base["intervals"], other["intervals"])


def _shown_metrics() -> dict[str, Any]:
    """What the page has to know about metrics: which to show, and the name prefixes of those where lower is better."""
    lower = sorted({metric.family.prefix for metric in METRICS if not metric.family.higher_is_better})
    keys = ("name", "title", "help", "is_fraction", "in_summary", "in_table", "in_classes", "in_comparison")
    return {"metrics": [{key: getattr(metric, key) for key in keys} for metric in METRICS], "lower_is_better": lower}


def _read_run(run: Path) -> dict[str, Any]:
    if run.is_file():
        raise ValueError(
            f"{run} is a file: name a folder with a report, such as `ranksort evaluate TRUTH.json {run} --out FOLDER` writes"
        )
    folder = run if (run / "report.json").is_file() else run / "report"
    files = [file for file in (folder / "report.json", folder / "masks" / "report.json") if file.is_file()]
    if not files:
        raise FileNotFoundError(
            f"there is no report in {run}: name a run folder, or the --out folder of test or evaluate"
        )
    evaluations = []
    for file in files:
        try:
            report = json.loads(file.read_bytes())
            report["per_class"] = [{name: row[name] for name in COLUMNS} for row in report["per_class"]]
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise ValueError(f"{file} is not a ranksort report, or it is damaged ({error}): evaluate again") from None
        missing = {"settings", "findings", "scores"} - report.keys()
        if missing:
            raise ValueError(
                f"{file} has no {', '.join(sorted(missing))}: it was written by an older version; evaluate again"
            )
        evaluations.append(report)
    name = "/".join(run.resolve().parts[-2:])
    return {"name": name, "evaluations": evaluations, "training": _training_curves(run / "metrics.csv")}


def _training_curves(path: Path) -> dict[str, list[tuple[int, float]]]:
    """Name to (step, value) of what was logged, at most `CURVE_POINTS` of them; empty if there is no such file."""
    curves: dict[str, list[tuple[int, float]]] = {}
    if path.is_file() and path.stat().st_size:
        rows = np.genfromtxt(
            path, delimiter=",", names=True, deletechars="", invalid_raise=False, encoding="utf-8", ndmin=1
        )
        for name in sorted(set(rows.dtype.names or ()) - {"epoch", "step"}):
            logged = rows[np.isfinite(rows[name]) & np.isfinite(rows["step"])]
            picked = logged[np.linspace(0, len(logged) - 1, min(len(logged), CURVE_POINTS)).astype(int)]
            if len(picked):
                curves[name] = [(int(row["step"]) + 1, float(f"{row[name]:.4g}")) for row in picked]
    return curves
