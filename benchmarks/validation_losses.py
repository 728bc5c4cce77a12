"""How much do the validation losses add to the time of an evaluation?

    python benchmarks/validation_losses.py DATA RECIPE [--images 16] [--min-size 256] [--backbone NAME]

DATA is a folder as for `--data.root`; the model is untrained. CPU seconds of one thread, with and without the losses alternating,
medians of `--runs`.
"""

import argparse
import statistics
import time
from pathlib import Path

import torch

from ranksort import create_model
from ranksort.data.coco import CocoDataset
from ranksort.data.layouts import find_split
from ranksort.engine.validation import ValidationLosses, computed_once
from ranksort.recipes import get_recipe


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("recipe")
    parser.add_argument("--images", type=int, default=16)
    parser.add_argument("--min-size", type=int, default=256)
    parser.add_argument("--backbone", help="instead of the recipe's")
    parser.add_argument("--runs", type=int, default=7)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    recipe = get_recipe(arguments.recipe)
    recipe.model.backbone = arguments.backbone or recipe.model.backbone
    data = CocoDataset(*find_split(arguments.data, "val"), training=False, masks=recipe.model.has_masks)
    sizes = {"min_size": arguments.min_size, "max_size": arguments.min_size * 3 // 2}
    model = create_model(recipe, num_classes=len(data.categories), **sizes).eval()
    items = [data[n] for n in range(min(arguments.images, len(data)))]
    seconds: dict[bool, list[float]] = {False: [], True: []}
    for _ in range(arguments.runs):
        for with_losses, times in seconds.items():
            losses, started_at = ValidationLosses(recipe.data.min_box_size), time.process_time()
            with torch.no_grad():
                for image, target in items:
                    with computed_once(model.backbone):
                        model([image])
                        if with_losses:
                            losses.update(model, [image], [target])
            times.append(time.process_time() - started_at)
    alone, both = (statistics.median(times) for times in seconds.values())
    print(f"{len(items)} images: {alone:.2f} s, with the losses {both:.2f} s: {both / alone - 1:+.0%}")


if __name__ == "__main__":
    main()
