"""How often does `--data.repeat-threshold` use the images of rare classes?

    python benchmarks/repeat_factors.py DATA [--thresholds 0 .01 .02 .05 .1]

DATA is a folder as for `--data.root`. Counts are means of five epochs.
"""

import argparse
import statistics
from pathlib import Path

import numpy as np

from ranksort.data.coco import CocoDataset
from ranksort.data.layouts import find_split
from ranksort.data.samplers import AspectRatioBatchSampler

EPOCHS, RAREST = 5, 10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--thresholds", type=float, nargs="+", default=[0, 0.01, 0.02, 0.05, 0.1])
    arguments = parser.parse_args()
    data = CocoDataset(*find_split(arguments.data, "train"), training=True)
    has = np.array([np.isin(np.arange(len(data.categories)), data[n][1]["labels"].numpy()) for n in range(len(data))])
    order = np.argsort(has.sum(0), kind="stable")
    rare = has[:, order[:RAREST]].any(1)
    print(f"{len(data)} images; the {RAREST} rarest of {len(order)} classes are in {rare.sum()}")
    for threshold in arguments.thresholds:
        counts = []
        for epoch in range(EPOCHS):
            sampler = AspectRatioBatchSampler(data.landscape, 1, repeat_factors=data.repeat_factors(threshold))
            sampler.set_epoch(epoch)
            drawn = np.array([n for batch in sampler for n, _ in batch])
            counts.append((len(drawn), rare[drawn].sum(), *has[drawn][:, order[[0, -1]]].sum(0)))
        epoch_size, *others = (statistics.mean(map(float, column)) for column in zip(*counts, strict=True))
        print(
            f"{threshold:g}: {epoch_size:.0f} images per epoch, of rare classes {', '.join(f'{n:.1f}' for n in others)}"
        )


if __name__ == "__main__":
    main()
