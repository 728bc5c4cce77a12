"""Does ranking help? Train the same detector with each loss, all else being equal; benchmarks/losses.md has protocol and results.

    python benchmarks/compare_losses.py nutrigo bccd --epochs 12 --min-size 320      # folders as for ranksort train
    python benchmarks/compare_losses.py nutrigo --device cuda --jobs 8                # eight cells at a time
    python benchmarks/compare_losses.py nutrigo --device cuda --recipe ranksort_atss_r50_fpn_1x_coco --min-size 800
    python benchmarks/compare_losses.py --table

A cell is one run: a data set, a loss, a learning rate and a seed. The first seed tries all learning rates; the others use the one with
the highest AP. Finished cells are lines of the results file and are not run again; interrupted ones continue where they stopped.
"""

import argparse
import dataclasses
import json
import os
import platform
import shutil
import statistics
import subprocess
import time
from collections import Counter, defaultdict
from collections.abc import Iterable
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from functools import partial
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from typing import Any

LOSSES = ("rank_sort", "average_lrp", "average_precision", "focal", "quality_focal", "varifocal")
SMALL = {"facade": "ranksort_mask_rcnn_lite0_small"}  # for data sets with masks; for others: ranksort_atss_lite0_small
# What all losses of a table have in common.
SETTINGS = ("data", "recipe", "detector", "epochs", "min_size", "batch_size", "backbone_rate")
METRICS = ("AP", "AP_rare", "oLRP")
# The kinds of false positives (evaluation/confusion.py) whose cost in AP50 is in the table; the file has that of all.
KINDS = ("poor localisation", "another class", "background")
COLUMNS = (
    "loss",
    "AP",
    "AP of the rarest third",
    "oLRP",
    "AP50 lost to localisation, class, background",
    "s a step",
    "seeds",
    "val AP by learning rate, one seed",
)
TIMED_STEPS = 20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "data_root", type=Path, nargs="*", help="as for --data.root; with test images, they are what counts"
    )
    parser.add_argument("--recipe", help="default: a lite0 recipe, of masks for facade")
    parser.add_argument(
        "--detector", help="FILE.py:CLASS in place of the recipe's, such as benchmarks/even_boxes.py:EvenATSS"
    )
    parser.add_argument("--losses", nargs="+", choices=LOSSES, default=LOSSES)
    parser.add_argument(
        "--rates", type=float, nargs="+", default=[0.3, 1.0, 3.0], help="times the recipe's learning rate"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--min-size", type=int, default=320)
    parser.add_argument("--batch-size", type=int, help="default: the recipe's; learning rates are scaled along")
    parser.add_argument(
        "--backbone-rate",
        type=float,
        default=1.0,
        help="as --optimizer.backbone-rate; the tables in losses.md are of 1",
    )
    parser.add_argument("--jobs", type=int, default=1, help="cells at a time, in as many processes")
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--results", type=Path, default=Path("runs/compare_losses/results.jsonl"))
    parser.add_argument("--table", action="store_true", help="print the results and run nothing")
    options = parser.parse_args()
    if options.table:
        print(table(read(options.results)))
        return
    if options.device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # before torch is imported: the engine uses a GPU if it sees one
    elif options.device == "cuda":
        import torch

        if not torch.cuda.is_available():
            parser.error("there is no GPU that torch can use")
    if len({root.resolve().name for root in options.data_root}) < len({root.resolve() for root in options.data_root}):
        parser.error("results are stored by the names of the data sets' folders: give each another name")
    groups = list(product(options.data_root, options.losses))
    processes = get_context("forkserver")
    processes.set_forkserver_preload(["ranksort.engine"])  # imported once for all of them
    with (
        ProcessPoolExecutor(options.jobs, mp_context=processes) as cells,
        ThreadPoolExecutor(max(len(groups), 1)) as waiting,
    ):
        try:
            list(waiting.map(lambda group: compare(*group, options, cells), groups))
        except (OSError, ValueError) as error:  # data or results that cannot be used
            cells.shutdown(cancel_futures=True)
            parser.error(str(error))


def compare(root: Path, loss: str, options: argparse.Namespace, cells: Executor) -> None:
    """Run the cells of a data set and a loss that are not in the results yet."""
    common = {
        "data": root.resolve().name,
        "recipe": options.recipe or SMALL.get(root.resolve().name, "ranksort_atss_lite0_small"),
        "epochs": options.epochs,
        "min_size": options.min_size,
        "batch_size": options.batch_size,
        "loss": loss,
    }
    common |= {"detector": options.detector} if options.detector else {}
    common |= {"backbone_rate": options.backbone_rate} if options.backbone_rate != 1 else {}
    first, *others = options.seeds
    tried = cells.map(partial(run, root, options), [common | {"rate": rate, "seed": first} for rate in options.rates])
    best = best_rate(tried)
    list(cells.map(partial(run, root, options), [common | {"rate": best, "seed": seed} for seed in others]))


def best_rate(tried: Iterable[dict[str, Any]]) -> float:
    """The rate of the cell with the highest AP on the validation images; among equals the lowest."""
    return max(tried, key=lambda cell: (cell["val"]["AP"], -cell["rate"]))["rate"]


def run(root: Path, options: argparse.Namespace, cell: dict[str, Any]) -> dict[str, Any]:
    """The result of a cell: from the file, or by training.

    Raises:
        ValueError: the result in the file is of another data set in a folder of the same name.
    """
    from ranksort import engine
    from ranksort.data.fingerprint import fingerprint
    from ranksort.recipes import get_recipe
    from ranksort.recipes.build import build_dataset

    recipe, epochs = get_recipe(cell["recipe"]), cell["epochs"]
    recipe.name = "compare_losses"
    recipe.data.root, recipe.data.workers, recipe.data.train_min_sizes = str(root.resolve()), options.workers, ()
    recipe.model.max_size = cell["min_size"] * recipe.model.max_size // recipe.model.min_size
    recipe.model.min_size, recipe.model.loss = cell["min_size"], cell["loss"]
    recipe.model.detector = options.detector or recipe.model.detector
    recipe.optimizer.lr *= cell["rate"]
    recipe.optimizer.backbone_rate = options.backbone_rate
    milestones = (epochs * m // recipe.training.epochs for m in recipe.optimizer.milestones)
    recipe.optimizer.milestones = tuple(m for m in milestones if m > 0)  # 0 would lower the rate of the whole run
    recipe.training.epochs = recipe.training.validate_every = epochs  # the last epoch counts, no epoch is selected
    recipe.training.batch_size = cell["batch_size"] or recipe.training.batch_size
    recipe.training.seed, recipe.evaluation.pictures = cell["seed"], 0
    for done in read(options.results):
        if cell.items() <= done.items() and all(cell.get(name) == done.get(name) for name in SETTINGS):
            if done.get("fingerprint", "") not in ("", fingerprint(build_dataset(recipe, "train"))):
                raise ValueError(
                    f"{options.results} has results of other training data in a folder named {cell['data']}: "
                    "rename the folder, or name another file with --results"
                )
            return done
    folder = options.results.parent / "-".join(Path(str(value)).name for value in cell.values())
    resume = any(folder.glob("checkpoints/*.ckpt"))
    if folder.exists() and not resume:  # stopped before its first checkpoint
        shutil.rmtree(folder)
    report = engine.train(recipe, folder, resume=resume)
    report = report or engine.test(trained(folder, options), folder / "again")  # of a run that had already ended
    rare = rarest_third(root)
    result = cell | {"lr": recipe.optimizer.lr, "val": numbers(report, rare)}
    if test := test_annotations(root):
        checkpoint = trained(folder, options)
        checkpoint.recipe.data.val_annotations = str(test)
        result["test"] = numbers(engine.test(checkpoint, folder / "test"), rare)
    last = trained(folder, options)
    result |= time_steps(last, alone=options.jobs == 1) | {
        "fingerprint": last.fingerprint,
        "date": time.strftime("%Y-%m-%d %H:%M"),
        "commit": commit(),
    }
    with options.results.open("a", encoding="utf-8") as file:
        file.write(json.dumps(result) + "\n")
    return result


def trained(folder: Path, options: argparse.Namespace) -> Any:
    """The checkpoint of a run, which never runs the file of a detector of one's own unless it is named again."""
    from ranksort.checkpoints import read_checkpoint

    checkpoint = read_checkpoint(folder)
    if options.detector:
        checkpoint.recipe.model = dataclasses.replace(checkpoint.recipe.model, detector=options.detector)
    return checkpoint


def rarest_third(root: Path) -> set[Any]:
    """The ids of the third of the classes with the fewest training objects; among equals, lower ids first."""
    from ranksort.data.coco import CocoDataset
    from ranksort.data.layouts import find_split

    file = CocoDataset(*find_split(root, "train"), training=False).file
    assert file is not None
    objects = file.annotations
    count = Counter(objects.category[~objects.crowd].tolist())
    rarest = sorted(range(len(file.categories)), key=lambda c: count[c])
    return {file.categories[c].id for c in rarest[: round(len(rarest) / 3)]}


def test_annotations(root: Path) -> Path | None:
    """The test images of a data set, if it has them and they are not what validation uses for lack of others."""
    from ranksort.data.layouts import find_split

    usual = ("annotations/instances_test.json", "annotations/instances_test2017.json", "test/_annotations.coco.json")
    found = next((root / name for name in usual if (root / name).is_file()), None)
    return None if found == find_split(root, "val").annotations else found


def numbers(report: Any, rare: set[int]) -> dict[str, float | None]:
    """Metrics and the cost of each kind of error in %, of masks if the detector has them. AP_rare is the mean over the rare classes
    with objects in the images.
    """
    from ranksort.evaluation.confusion import NAMES

    of_rare = [row["AP"] for row in report.per_class if row["category_id"] in rare]
    summary = report.as_dict()
    found = {"AP": summary["AP"], "AP_rare": statistics.mean(of_rare) if of_rare else None, "oLRP": summary["oLRP"]}
    found |= zip(NAMES, report.analysis.summary.costs.tolist(), strict=True)
    return {name: None if value is None else round(100 * value, 2) for name, value in found.items()}


def time_steps(checkpoint: Any, alone: bool) -> dict[str, Any]:
    """The median time of losses and gradients over some batches: on a CPU, the CPU time, which other jobs change little; on a shared
    GPU, none.
    """
    import torch

    from ranksort.data.batch import data_loader
    from ranksort.recipes.build import build_dataset, build_sampler

    cuda = torch.cuda.is_available()
    name = torch.cuda.get_device_name() if cuda else f"{torch.get_num_threads()} threads, {platform.machine()}"
    about = {"seconds_per_step": None, "device": name, "torch": torch.__version__}
    if cuda and not alone:
        return about
    device = torch.device("cuda" if cuda else "cpu")
    model = checkpoint.build(device).to(memory_format=torch.channels_last).train()
    train_set = build_dataset(checkpoint.recipe, "train")
    times: list[float] = []
    clock = time.perf_counter if cuda else time.process_time
    for images, targets in data_loader(train_set, batch_sampler=build_sampler(checkpoint.recipe, train_set, 0, 1)):
        images = [image.to(device) for image in images]
        targets = [{k: v.to(device) if torch.is_tensor(v) else v for k, v in t.items()} for t in targets]
        start = clock()
        sum(model(images, targets).values()).backward()
        if cuda:
            torch.cuda.synchronize()
        times.append(clock() - start)
        if len(times) == TIMED_STEPS:
            break
    return about | {"seconds_per_step": round(statistics.median(times), 4)}


def commit() -> str:
    found = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, cwd=Path(__file__).parent
    )
    return found.stdout.strip()


def read(results: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in results.read_text(encoding="utf-8").splitlines()] if results.is_file() else []


def table(cells: list[dict[str, Any]]) -> str:
    """Mean ± standard deviation over the seeds at the chosen learning rate; on test images if the data set has them."""
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = defaultdict(list)
    for cell in cells:
        groups[tuple(cell.get(key) for key in SETTINGS)].append(cell)
    lines = []
    for (data, recipe, detector, epochs, min_size, batch_size, backbone_rate), group in groups.items():
        split = "test" if "test" in group[0] else "val"
        batch = batch_size or "the recipe's"
        device = group[0]["device"]
        what = f"{recipe}`, `{detector}" if detector else recipe
        backbone = f", backbone at {backbone_rate:g} of the rate" if backbone_rate else ""
        lines += [
            f"**{data}**, `{what}`, {epochs} epochs, {min_size} px, batch {batch}{backbone}, {split}, {device}",
            "",
        ]
        lines += [f"| {' | '.join(COLUMNS)} |", "|---" * len(COLUMNS) + "|"]
        for loss in dict.fromkeys(cell["loss"] for cell in group):
            lines.append(f"| {loss} | {' | '.join(row([c for c in group if c['loss'] == loss], split))} |")
        lines.append("")
    return "\n".join(lines)


def row(cells: list[dict[str, Any]], split: str) -> list[str]:
    by_seed: dict[int, list[dict[str, Any]]] = defaultdict(list)
    for cell in cells:
        by_seed[cell["seed"]].append(cell)
    tried = max(by_seed.values(), key=len)  # by the first seed, unless single cells of others were run before
    best = best_rate(tried)
    chosen = [cell for cell in cells if cell["rate"] == best]
    values = {
        name: [cell[split][name] for cell in chosen if cell[split].get(name) is not None] for name in METRICS + KINDS
    }
    costs = [f"{statistics.mean(values[kind]):.1f}" for kind in KINDS if values[kind]]
    by_rate = ", ".join(f"{c['lr']:g}: {c['val']['AP']:.1f}" for c in sorted(tried, key=lambda c: c["lr"]))
    times = [cell["seconds_per_step"] for cell in chosen if cell["seconds_per_step"]]
    seconds = f"{statistics.median(times):.3f}" if times else "-"
    metrics = (mean_and_spread(values[name]) for name in METRICS)
    return [*metrics, ", ".join(costs) or "-", seconds, str(len(chosen)), by_rate]


def mean_and_spread(values: list[float]) -> str:
    spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.1f}{spread}" if values else "-"


if __name__ == "__main__":
    main()
