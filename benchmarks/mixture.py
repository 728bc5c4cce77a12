"""Is a mixture of calibrated detectors better than the best of them? RS-ATSS, RS-PAA and RS-Faster R-CNN; see mixture.md beside this.

    python benchmarks/mixture.py BCCD drawn --epochs 12 --min-size 192       # trains what is not trained yet, merges, prints the table
    python benchmarks/mixture.py BCCD drawn --detectors concordance          # trains what benchmarks/concordance.py is about
    python benchmarks/mixture.py BCCD drawn --table

A data set is a folder in COCO format with annotations/instances_{train,val,test}.json; `drawn` is the embedded one, written below --out. A
run is a data set, a detector and a seed; finished ones are lines of results.jsonl and not run again, interrupted ones go on. Calibrations
are fitted to the validation images, everything is judged on the test images, and merged are the detectors of one seed.
"""

import argparse
import dataclasses
import json
import platform
import statistics
import subprocess
import time
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

from small_recipes import paa

from ranksort.recipes import Recipe, get_recipe

MIXED = ("atss", "paa", "faster_rcnn")
CONCORDANT = f"{Path(__file__).with_name('concordance.py')}:ConcordantATSS"
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
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    if not options.table:
        for seed, data, detector in product(options.seeds, options.data, options.detectors):
            train(root(data, options.out), detector, seed, options)


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
    report = engine.test(checkpoint, folder / "test")
    import torch

    assert report is not None
    about = {
        "test": numbers(report),
        "CPU seconds": [round(trained - start), round(time.process_time() - trained)],
        "torch": torch.__version__,
        "machine": platform.machine(),
        "date": time.strftime("%Y-%m-%d %H:%M"),
        "commit": commit(),
    }
    with results.open("a", encoding="utf-8") as file:
        file.write(json.dumps(cell | about) + "\n")


def numbers(report: Any) -> dict[str, float]:
    """In %."""
    found = report.as_dict() | {"LaECE": report.analysis.scores.before.all.laece}
    return {name: round(100 * found[name], 2) for name in METRICS}


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
