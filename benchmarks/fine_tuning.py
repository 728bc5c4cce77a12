"""How much does starting from a trained detector help, and at which learning rate?

BCCD from the weights of another model, compared with ImageNet weights only. Every cell is a separate run of the command line, with its
schedule, and is evaluated once, at the end; finished cells are not run again.

    python benchmarks/fine_tuning.py BCCD WEIGHTS --out DIR [--cells rates compare NAME ...]
    python benchmarks/fine_tuning.py BCCD WEIGHTS --out DIR --table

A cell is called START-FACTOR-WARMUP-EPOCHS-SEED-SPLIT, for example weights-0.5-10-3-0-val: from the weights, half the recipe's learning
rate, 10 steps of warm-up, 3 epochs, seed 0, evaluated on the validation images. `rates` are the cells for choosing the learning rate,
on the validation images; `compare` those for comparing the two starts, on the test images.
"""

import argparse
import csv
import statistics
import subprocess
import sys
import time
from pathlib import Path

from ranksort.commands.defaults import FINE_TUNING_RATE, FINE_TUNING_WARMUP
from ranksort.recipes import get_recipe

RECIPE = "ranksort_atss_lite0_small"
METRICS = ("AP", "AP50", "oLRP")


def cells_of(name: str) -> list[str]:
    """The cells of a group, or a cell itself."""
    warmup = get_recipe(RECIPE).optimizer.warmup_steps
    short = round(FINE_TUNING_WARMUP * warmup)
    if name == "rates":
        return [f"weights-{factor}-{short}-3-0-val" for factor in (1, 0.5, 0.25)] + [
            f"weights-{FINE_TUNING_RATE:g}-{warmup}-3-0-val"
        ]
    if name == "compare":
        starts = f"imagenet-1-{warmup}", f"weights-{FINE_TUNING_RATE:g}-{short}"
        return [f"{start}-{epochs}-{seed}-test" for seed in range(3) for epochs in (1, 3, 12) for start in starts]
    return [name]


def run_cell(bccd: Path, weights: Path, cell: str, folder: Path) -> dict[str, float]:
    """Train in `folder`, with the output of the run in log.txt, and return the metrics."""
    start, factor, warmup, epochs, seed, split = cell.split("-")
    recipe, images = get_recipe(RECIPE), bccd / "images"
    milestones = [round(m * int(epochs) / recipe.training.epochs) for m in recipe.optimizer.milestones]
    options: dict[str, list[object]] = {
        "model.min-size": [256],
        "model.max-size": [384],
        "data.train-annotations": [bccd / "annotations/instances_train.json"],
        "data.train-images": [images],
        "data.val-annotations": [bccd / f"annotations/instances_{split}.json"],
        "data.val-images": [images],
        "data.workers": [1],
        "optimizer.lr": [recipe.optimizer.lr * float(factor)],
        "optimizer.warmup-steps": [warmup],
        "optimizer.milestones": milestones,
        "training.epochs": [epochs],
        "training.validate-every": [epochs],
        "training.seed": [seed],
        "training.output": [folder / f"runs-{time.time_ns()}"],  # so that a stopped run is not mistaken for this one
        "evaluation.pictures": [0],
    }
    if start == "weights":
        options["training.weights"] = [weights]
    command: list[object] = [sys.executable, "-c", "from ranksort.cli import main; main()", "train", RECIPE]
    for option, values in options.items():
        command += [f"--{option}", *values]
    folder.mkdir(parents=True, exist_ok=True)
    started_at = time.monotonic()
    with (folder / "log.txt").open("w") as log:
        subprocess.run(list(map(str, command)), stdout=log, stderr=subprocess.STDOUT, check=True)
    (metrics,) = Path(str(options["training.output"][0])).glob("*/*/metrics.csv")
    evaluated = [row for row in csv.DictReader(metrics.open()) if row["val/AP"]]
    return {name: float(evaluated[-1][f"val/{name}"]) for name in METRICS} | {"seconds": time.monotonic() - started_at}


def read_results(file: Path) -> dict[str, dict[str, str]]:
    return {row["cell"]: row for row in csv.DictReader(file.open())} if file.is_file() else {}


def print_table(results: dict[str, dict[str, str]]) -> None:
    """Print mean and range over the seeds."""
    groups: dict[tuple[str, ...], list[dict[str, str]]] = {}
    for cell, row in results.items():
        start, factor, warmup, epochs, _, split = cell.split("-")
        groups.setdefault((split, f"{int(epochs):02}", start, factor, warmup), []).append(row)
    print(
        "| images | epochs | start | learning rate | warm-up | runs | AP | AP50 | oLRP | minutes |\n"
        + "|---" * 10
        + "|"
    )
    for (split, epochs, start, factor, warmup), rows in sorted(groups.items()):
        shown = [split, str(int(epochs)), start, f"x {factor}", f"{warmup} steps", str(len(rows))]
        for name in METRICS:
            values = [100 * float(row[name]) for row in rows]
            spread = f" ({min(values):.1f} to {max(values):.1f})" if len(values) > 1 else ""
            shown.append(f"{statistics.mean(values):.1f}{spread}")
        print(
            "| " + " | ".join([*shown, f"{statistics.median(float(row['seconds']) for row in rows) / 60:.1f}"]) + " |"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bccd", type=Path, help="folder with annotations/instances_{train,val,test}.json and images/")
    parser.add_argument("weights", type=Path, help="what to start from, such as the run of `ranksort quickstart`")
    parser.add_argument("--out", type=Path, required=True, help="folder of the runs and of results.csv")
    parser.add_argument("--cells", nargs="+", default=["rates", "compare"], metavar="CELL", help="some, or groups")
    parser.add_argument("--table", action="store_true", help="print what is done and stop")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    file = arguments.out / "results.csv"
    for cell in [] if arguments.table else [cell for name in arguments.cells for cell in cells_of(name)]:
        if cell in read_results(file):
            continue
        print(cell, flush=True)
        row = {"cell": cell, **run_cell(arguments.bccd, arguments.weights, cell, arguments.out / cell)}
        with file.open("a", newline="") as out:
            writer = csv.DictWriter(out, row)
            if file.stat().st_size == 0:
                writer.writeheader()
            writer.writerow(row)
    print_table(read_results(file))


if __name__ == "__main__":
    main()
