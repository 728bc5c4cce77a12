"""What AP is reached with 20, 50, 100 or 200 labelled images?

The first N of BCCD's training images in an order drawn by the seed, so that small sets are subsets of large ones; evaluated on its 72
test images. Every cell (images x schedule x seed) is a separate run of the command line; finished cells are not run again.

    python benchmarks/small_sets.py BCCD --out DIR [--images 20 50 100 200] [--seeds 0 1 2] [--schedules epochs steps] [--weights FILE]
    python benchmarks/small_sets.py BCCD --out DIR --table

`epochs` is the unchanged recipe, 12 epochs; `steps` trains for as many steps as with 200 images, that is 120 epochs of 20 images.
"""

import argparse
import json
import random
import statistics
import subprocess
import sys
import time
from pathlib import Path

RECIPE, EPOCHS, LARGEST = "ranksort_atss_lite0_small", 12, 200


def subset(annotations: Path, images: int, seed: int, file: Path) -> Path:
    """Write the annotations of some of the images."""
    content = json.loads(annotations.read_text())
    order = sorted(content["images"], key=lambda image: image["id"])
    random.Random(seed).shuffle(order)
    content["images"] = order[:images]
    kept = {image["id"] for image in content["images"]}
    content["annotations"] = [a for a in content["annotations"] if a["image_id"] in kept]
    file.write_text(json.dumps(content))
    return file


def run_cell(arguments: argparse.Namespace, images: int, schedule: str, seed: int, folder: Path) -> None:
    """Train on `images` images, evaluate on the test images, and save the metrics in `folder/result.json`."""
    folder.mkdir(parents=True, exist_ok=True)
    data, epochs = arguments.bccd, EPOCHS if schedule == "epochs" else EPOCHS * LARGEST // images
    train = subset(data / "annotations/instances_train.json", images, seed, folder / "train.json")
    ranksort = [sys.executable, "-c", "from ranksort.cli import main; main()"]
    sizes = ["--model.min-size", str(arguments.min_size), "--model.max-size", str(arguments.min_size * 3 // 2)]
    command = [
        *ranksort,
        "train",
        RECIPE,
        *sizes,
        "--data.train-annotations",
        train,
        "--data.train-images",
        data / "images",
    ]
    # One evaluation, at the end.
    command += [
        "--data.val-annotations",
        data / "annotations/instances_test.json",
        "--data.val-images",
        data / "images",
    ]
    command += ["--training.epochs", epochs, "--training.validate-every", epochs, "--training.seed", seed]
    command += ["--optimizer.milestones", round(epochs * 9 / 12), round(epochs * 11 / 12), "--data.workers", 1]
    command += ["--training.output", folder / "runs", "--evaluation.pictures", 0]
    command += ["--training.weights", arguments.weights] if arguments.weights else []
    started_at = time.monotonic()
    with (folder / "log.txt").open("w") as log:
        subprocess.run(list(map(str, command)), stdout=log, stderr=subprocess.STDOUT, check=True)
    report = next((folder / "runs").glob("*/*/report/report.json"))
    numbers = json.loads(report.read_text())
    numbers = {name: numbers["summary"][name] for name in ("AP", "AP50", "oLRP")} | {
        "seconds": time.monotonic() - started_at
    }
    (folder / "result.json").write_text(json.dumps(numbers))


def table(out: Path) -> None:
    """Print mean and range over the seeds of finished cells."""
    cells: dict[tuple[str, int], list[dict[str, float]]] = {}
    for file in sorted(out.glob("*/result.json")):
        start, schedule, images, _ = file.parent.name.split("-")
        cells.setdefault((f"{start}, {schedule}", int(images)), []).append(json.loads(file.read_text()))
    print("| start, schedule | images | seeds | AP | AP50 | oLRP | minutes |\n|---|---|---|---|---|---|---|")
    for (kind, images), results in sorted(cells.items()):
        spread = [
            f"{100 * statistics.mean(values):.1f} ({100 * min(values):.1f} to {100 * max(values):.1f})"
            for values in ([r[name] for r in results] for name in ("AP", "AP50", "oLRP"))
        ]
        minutes = statistics.median(r["seconds"] for r in results) / 60
        print(f"| {kind} | {images} | {len(results)} | {' | '.join(spread)} | {minutes:.1f} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bccd", type=Path, help="folder with annotations/instances_{train,test}.json and images/")
    parser.add_argument("--out", type=Path, required=True, help="folder of the cells")
    parser.add_argument("--images", type=int, nargs="+", default=[20, 50, 100, 200])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--schedules", nargs="+", choices=["epochs", "steps"], default=["epochs", "steps"])
    parser.add_argument("--min-size", type=int, default=320, help="short side of the images in pixels")
    parser.add_argument("--weights", type=Path, help="a checkpoint to start from instead of ImageNet weights")
    parser.add_argument("--table", action="store_true", help="print what is done and stop")
    arguments = parser.parse_args()
    start = "weights" if arguments.weights else "imagenet"
    for seed in [] if arguments.table else arguments.seeds:
        for schedule in arguments.schedules:
            for images in arguments.images:
                folder = arguments.out / f"{start}-{schedule}-{images}-{seed}"
                if not (folder / "result.json").is_file():
                    print(folder.name, flush=True)
                    run_cell(arguments, images, schedule, seed, folder)
    table(arguments.out)


if __name__ == "__main__":
    main()
