"""Is a mixture of calibrated detectors better than the best of them? RS-ATSS, RS-PAA and RS-Faster R-CNN; see mixture.md beside this.

    python benchmarks/mixture.py BCCD drawn --epochs 12 --min-size 192       # trains what is not trained yet, merges, prints the table
    python benchmarks/mixture.py BCCD drawn --detectors concordance          # trains what benchmarks/concordance.py is about
    python benchmarks/mixture.py BCCD drawn --table                          # the test images
    python benchmarks/mixture.py BCCD drawn --table --validation             # by which choices were made

A data set is a folder in COCO format with annotations/instances_{train,val,test}.json; `drawn` is the embedded one, written below --out. A
run is a data set, a detector and a seed; finished ones are lines of results.jsonl and not run again, interrupted ones go on. Calibrations
are fitted to the validation images and judged on the test images, or to each half of the validation images and judged on the other one.
Merged are the detectors of one seed, with scores as `merge_rows` makes them, or where each detection keeps its own ("alone").
"""

import argparse
import dataclasses
import json
import platform
import statistics
import subprocess
import time
from collections import defaultdict
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
from small_recipes import paa

from ranksort.data.layouts import find_split
from ranksort.evaluation import evaluate
from ranksort.evaluation.calibration import calibration_errors, fit_calibrator
from ranksort.evaluation.calibration_file import calibrate_rows
from ranksort.evaluation.inputs import read_detections, read_ground_truth
from ranksort.evaluation.merging import merge_rows
from ranksort.evaluation.overlaps import assess
from ranksort.evaluation.result_rows import Row, read_rows
from ranksort.recipes import Recipe, get_recipe

Truth, Found = dict[str, Any], dict[str, list[Row]]  # annotations; detections by detector
MIXED = ("atss", "paa", "faster_rcnn")
CONCORDANT = f"{Path(__file__).with_name('concordance.py')}:ConcordantATSS"
SCORES = ("raw", "isotonic", "linear")
ORDER = (*MIXED, "concordance", "alone", "mixture")
METRICS = ("AP", "AP50", "oLRP", "LaECE")
DRAWN = (400, 150)  # images to train on, and to validate as to test on


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="+", help="folders in COCO format, or drawn")
    parser.add_argument("--detectors", nargs="+", choices=[*MIXED, "concordance"], default=MIXED)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--min-size", type=int, default=192)
    parser.add_argument("--out", type=Path, default=Path("runs/mixture"))
    parser.add_argument("--table", action="store_true", help="run nothing")
    parser.add_argument(
        "--validation", action="store_true", help="the table of the validation images instead, in halves"
    )
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    if not options.table:
        for seed, data, detector in product(options.seeds, options.data, options.detectors):
            train(root(data, options.out), detector, seed, options)
    for data in options.data:
        cells = [cell for cell in read(options.out / "results.jsonl") if cell["seed"] in options.seeds]
        print(table(cells, options.out, root(data, options.out), options.validation))


def root(data: str, out: Path) -> Path:
    """The folder of a data set; the drawn one has pictures of other seeds to test on."""
    if data != "drawn":
        return Path(data).resolve()
    from ranksort.data.synthetic import write_synthetic_dataset

    write_synthetic_dataset(out / "drawn", train_images=DRAWN[0], val_images=DRAWN[1], seed=0)
    write_synthetic_dataset(out / "drawn_test", train_images=0, val_images=DRAWN[1], seed=1)
    return (out / "drawn").resolve()


def test_split(root: Path) -> tuple[Path, Path]:
    """Annotations and images to test on."""
    own = root / "annotations" / "instances_test.json"
    if own.is_file():
        return own, root / "images"
    other = root.with_name(f"{root.name}_test")
    return other / "annotations" / "instances_val.json", other / "images"


def recipe_of(detector: str, root: Path, epochs: int, min_size: int, seed: int) -> Recipe:
    """All with the backbone, image size, optimiser and steps of ranksort_atss_lite0_small."""
    recipe = get_recipe("ranksort_atss_lite0_small")
    if detector == "paa":
        recipe.model = paa().model
    elif detector == "faster_rcnn":
        recipe = get_recipe("ranksort_mask_rcnn_lite0_small")  # for its rate; without masks
        recipe.model.detector, recipe.model.proposals = "faster_rcnn", 100
    elif detector == "concordance":
        recipe.model.detector = CONCORDANT
    recipe.name = "mixture"
    recipe.data.root, recipe.data.workers = str(root), 0
    recipe.model.min_size, recipe.model.max_size = min_size, min_size * 8 // 5
    recipe.optimizer.milestones = tuple(epochs * m // recipe.training.epochs for m in recipe.optimizer.milestones)
    recipe.training.epochs = recipe.training.validate_every = epochs  # the last epoch counts, none is picked
    recipe.training.seed, recipe.evaluation.pictures = seed, 0
    return recipe


def train(root: Path, detector: str, seed: int, options: argparse.Namespace) -> None:
    """Train, calibrate by the validation images and find objects in the test images, unless this has been done."""
    cell = {
        "data": root.name,
        "detector": detector,
        "epochs": options.epochs,
        "min_size": options.min_size,
        "seed": seed,
    }
    results = options.out / "results.jsonl"
    if any(cell.items() <= done.items() for done in read(results)):
        return
    from ranksort import engine
    from ranksort.checkpoints import read_checkpoint

    recipe, start = recipe_of(detector, root, options.epochs, options.min_size, seed), time.process_time()
    folder = options.out / "-".join(str(value) for value in cell.values())
    engine.train(recipe, folder, resume=(folder / "checkpoints" / "last.ckpt").is_file())
    trained = time.process_time()
    checkpoint = read_checkpoint(folder)
    checkpoint.recipe.model = dataclasses.replace(checkpoint.recipe.model, detector=recipe.model.detector)
    annotations, images = test_split(root)
    checkpoint.recipe.data.val_annotations, checkpoint.recipe.data.val_images = str(annotations), str(images)
    engine.test(checkpoint, folder / "test")
    import torch

    about = {
        "test": judge(annotations, read_rows(folder / "test" / "results_bbox.json")),
        "CPU seconds": [round(trained - start), round(time.process_time() - trained)],
        "torch": torch.__version__,
        "machine": platform.machine(),
        "date": time.strftime("%Y-%m-%d %H:%M"),
        "commit": commit(),
    }
    with results.open("a", encoding="utf-8") as file:
        file.write(json.dumps(cell | about) + "\n")


def table(cells: list[dict[str, Any]], out: Path, root: Path, on_validation: bool) -> str:
    """Each detector and the mixtures, by what became of the scores: mean ± standard deviation over the seeds."""
    runs: dict[tuple[int, int], dict[int, list[str]]] = defaultdict(lambda: defaultdict(list))
    for cell in cells:
        if cell["data"] == root.name:
            runs[cell["epochs"], cell["min_size"]][cell["seed"]].append(cell["detector"])
    lines = []
    for (epochs, min_size), seeds in runs.items():
        found: dict[tuple[str, str], list[dict[str, float]]] = defaultdict(list)
        for seed, detectors in sorted(seeds.items()):
            folders = {d: out / f"{root.name}-{d}-{epochs}-{min_size}-{seed}" for d in sorted(detectors)}
            val, test = (
                {d: read_rows(folder / part / "results_bbox.json") for d, folder in folders.items()}
                for part in ("report", "test")
            )
            truths = [json.loads(file.read_bytes()) for file in (find_split(root, "val")[1], test_split(root)[0])]
            if not on_validation:
                compared = [compare(truths[0], val, truths[1], test)]
            else:
                compared = [
                    compare(truths[0], val, truths[0], val, *halves) for halves in halves_of(truths[0]["images"])
                ]
            for key in compared[0]:
                found[key].append(
                    {metric: statistics.mean(numbers[key][metric] for numbers in compared) for metric in METRICS}
                )
        where = "halves of the validation images" if on_validation else "test images"
        lines += [f"**{root.name}**, {epochs} epochs, {min_size} px, {where}", ""]
        lines += [f"| | scores | {' | '.join(METRICS)} | seeds |", f"|---|---|{'---|' * len(METRICS)}---|"]
        for (name, scores), values in sorted(found.items(), key=lambda item: ORDER.index(item[0][0].split(" of ")[0])):
            columns = (mean_and_spread([value[metric] for value in values]) for metric in METRICS)
            lines.append(f"| {name} | {scores} | {' | '.join(columns)} | {len(values)} |")
        lines.append("")
    return "\n".join(lines)


def halves_of(images: list[dict[str, Any]]) -> list[tuple[set[Any], set[Any]]]:
    """The ids of random halves, each of which comes first once, twice."""
    ids, halves = [image["id"] for image in images], []
    for seed in (0, 1):
        drawn = np.random.default_rng(seed).permutation(ids).tolist()
        first, second = set(drawn[: len(ids) // 2]), set(drawn[len(ids) // 2 :])
        halves += [(first, second), (second, first)]
    return halves


def compare(
    fit_truth: Truth,
    fit_rows: Found,
    truth: Truth,
    rows: Found,
    fit_images: set[Any] | None = None,
    images: set[Any] | None = None,
) -> dict[tuple[str, str], dict[str, float]]:
    """METRICS by detector or mixture and by calibration, which is fitted to other images; of both, some images or all."""
    fit_truth, fit_rows = of_images(fit_truth, fit_rows, fit_images)
    truth, rows = of_images(truth, rows, images)
    found = {}
    for scores in SCORES:
        parts = {d: calibrated(fit_truth, fit_rows[d], own, scores) for d, own in rows.items()}
        found |= {(d, scores): judge(truth, own) for d, own in parts.items()}
        mixed = {d: parts[d] for d in MIXED if d in parts}
        if len(mixed) > 1:
            found[f"mixture of {', '.join(mixed)}", scores] = judge(truth, merge_rows(mixed))
            with patch("ranksort.evaluation.merging._AGREEMENT_SIGMA", 1e-12):  # nothing is near enough
                found[f"alone of {', '.join(mixed)}", scores] = judge(truth, merge_rows(mixed))
    return found


def of_images(truth: Truth, rows: Found, ids: set[Any] | None) -> tuple[Truth, Found]:
    if ids is None:
        return truth, rows
    images = [image for image in truth["images"] if image["id"] in ids]
    objects = [row for row in truth["annotations"] if row["image_id"] in ids]
    kept = {d: [row for row in own if row["image_id"] in ids] for d, own in rows.items()}
    return truth | {"images": images, "annotations": objects}, kept


def calibrated(truth: Truth, fit_rows: list[Row], rows: list[Row], method: str) -> list[Row]:
    if method == "raw":
        return rows
    read_truth = read_ground_truth(truth, "bbox", "coco")
    samples = assess(read_truth, read_detections(fit_rows, read_truth, "bbox"))
    return calibrate_rows(fit_calibrator(samples, read_truth.categories, method=method), rows)[0]  # type: ignore[arg-type]


def judge(annotations: Path | Truth, rows: list[Row]) -> dict[str, float]:
    """METRICS of detections, in %."""
    truth = read_ground_truth(annotations, "bbox", "coco")
    detections = read_detections(rows, truth, "bbox")
    samples = assess(truth, detections)
    found = evaluate(truth, detections).as_dict() | {"LaECE": calibration_errors(samples, samples.score).laece}
    return {name: 100 * found[name] for name in METRICS}


def read(results: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in results.read_text(encoding="utf-8").splitlines()] if results.is_file() else []


def commit() -> str:
    found = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, cwd=Path(__file__).parent
    )
    return found.stdout.strip()


def mean_and_spread(values: Sequence[float]) -> str:
    spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.1f}{spread}" if values else "-"


if __name__ == "__main__":
    main()
