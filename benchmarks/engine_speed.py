"""The cost of our engine compared with a plain training loop, and whether the memory of a long run grows.

python benchmarks/engine_speed.py --rounds 7 --steps 8       # CPU time of a step, the two in turn
python benchmarks/engine_speed.py --memory 2000              # memory of the engine's process over so many steps

The plain loop is examples/plain_training_loop.py: the same detector, data, sampler and optimiser, without logs and checkpoints. A step
is everything between the ends of two batches, including loading, in one process without workers.
"""

import argparse
import dataclasses
import itertools
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch

from ranksort.data.batch import data_loader
from ranksort.data.synthetic import write_synthetic_dataset
from ranksort.engine.module import DetectorModule
from ranksort.engine.trainer import build_trainer
from ranksort.interrupt import Interrupt
from ranksort.recipes import Recipe, get_recipe
from ranksort.recipes.build import build_dataset, build_optimizer, build_sampler, build_untrained


class Clock(pl.Callback):
    """Call `tick` at the end of each batch."""

    def __init__(self, tick: Callable[[], Any]) -> None:
        self.tick = tick

    def on_train_batch_end(self, *args: Any) -> None:
        self.tick()


def settings(root: Path, side: int, images: int) -> Recipe:
    recipe = get_recipe("ranksort_atss_lite0_small")
    recipe.data = dataclasses.replace(recipe.data, root=str(root), workers=0)
    recipe.model = dataclasses.replace(recipe.model, pretrained_backbone=False, min_size=side, max_size=2 * side)
    recipe.training = dataclasses.replace(recipe.training, epochs=1, validate_every=1000, batch_size=images)
    return recipe


def build(recipe: Recipe) -> DetectorModule:
    train_set, val_set = build_dataset(recipe, "train"), build_dataset(recipe, "val")
    torch.manual_seed(0)
    return DetectorModule(recipe, build_untrained(recipe, train_set)[0], train_set, val_set)


def run_engine(module: DetectorModule, tick: Callable[[], Any]) -> None:
    """An epoch."""
    module.progress = module.stopping.start()
    with tempfile.TemporaryDirectory() as folder, Interrupt("") as interrupt:
        trainer = build_trainer(module, Path(folder), interrupt=interrupt)
        trainer.callbacks.append(Clock(tick))
        trainer.fit(module)


def run_plain(module: DetectorModule, tick: Callable[[], Any]) -> None:
    """An epoch."""
    assert module.train_set is not None
    recipe, model = module.recipe, module.model.train()
    sampler = build_sampler(recipe, module.train_set, 0, 1)
    optimizer = build_optimizer(recipe, model.parameters())
    for images, targets in data_loader(module.train_set, batch_sampler=sampler):
        losses = model(images, targets)
        optimizer.zero_grad()
        sum(losses.values()).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.optimizer.clip_norm or 10.0)
        optimizer.step()
        tick()


def seconds_per_step(run: Callable[[DetectorModule, Callable[[], Any]], None], module: DetectorModule) -> float:
    ends: list[float] = []
    run(module, lambda: ends.append(time.process_time()))
    return statistics.median(b - a for a, b in itertools.pairwise(ends))


def compare(recipe: Recipe, rounds: int) -> None:
    ways = {"plain": (run_plain, build(recipe)), "engine": (run_engine, build(recipe))}
    times: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(rounds + 1):  # the first warms up
        for name in list(ways)[:: 1 if number % 2 else -1]:
            seconds = seconds_per_step(*ways[name])
            if number:
                times[name].append(seconds)
    ratio = statistics.median(e / p for e, p in zip(times["engine"], times["plain"], strict=True))
    plain, engine = (1000 * statistics.median(times[name]) for name in ("plain", "engine"))
    print(
        f"a step takes {plain:.0f} ms in the plain loop, {engine:.0f} ms in the engine (CPU time): {100 * (ratio - 1):+.1f} %"
    )


def watch_memory(recipe: Recipe) -> None:
    page, used = os.sysconf("SC_PAGE_SIZE"), []

    def look() -> None:
        used.append(int(Path("/proc/self/statm").read_text().split()[1]) * page / 2**20)
        if len(used) % 100 == 0:
            print(f"step {len(used)}: {used[-1]:.0f} MB, the most so far {max(used):.0f} MB", flush=True)

    run_engine(build(recipe), look)
    quarter = len(used) // 4
    before, after = (statistics.median(part) for part in (used[quarter : 2 * quarter], used[-quarter:]))
    print(
        f"{len(used)} steps: {before:.0f} MB in the second quarter, {after:.0f} MB in the last: {after - before:+.0f} MB"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=8, help="of an epoch")
    parser.add_argument("--side", type=int, default=256, help="short side of the images in pixels")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--memory", type=int, default=0, metavar="STEPS")
    options = parser.parse_args()
    torch.set_num_threads(1)
    pl.seed_everything(0, verbose=False)
    with tempfile.TemporaryDirectory() as folder:
        images = options.batch * (options.memory or options.steps)
        size = (3 * options.side // 2, options.side)
        root = write_synthetic_dataset(
            Path(folder) / "data", train_images=images, val_images=1, image_size=size, seed=0
        )
        recipe = settings(root, options.side, options.batch)
        if options.memory:
            watch_memory(recipe)
        else:
            compare(recipe, options.rounds)


if __name__ == "__main__":
    main()
