"""How long do fitting a calibration and applying it take? CPU time of one thread, in seconds, the median of the runs.

python benchmarks/calibration_speed.py [--detections 500000] [--classes 80 1203] [--runs 7]
"""

import argparse
import statistics
import time

import numpy as np

from ranksort.data.coco_columns import Category
from ranksort.evaluation.calibration import fit_calibrator
from ranksort.evaluation.overlaps import Samples


def random_samples(detections: int, classes: int) -> Samples:
    """Detections, about half of them true positives, more of them at higher scores."""
    random = np.random.default_rng(0)
    score = random.random(detections) ** 3
    iou = (score + random.normal(0, 0.2, detections)).clip(0, 1) * (random.random(detections) < 0.5)
    category = random.integers(0, classes, detections)
    order = np.lexsort((-score, category))
    image = random.integers(0, 5000, detections)
    columns = (np.arange(detections), image, category, score, iou, (iou >= 0.5).astype(float))
    return Samples(*(column[order] for column in columns), np.ones(classes, dtype=np.int64))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--detections", type=int, default=500_000)
    parser.add_argument("--classes", type=int, nargs="+", default=[80, 1203])
    parser.add_argument("--runs", type=int, default=7)
    arguments = parser.parse_args()
    for classes in arguments.classes:
        samples = random_samples(arguments.detections, classes)
        categories = [Category(n, str(n)) for n in range(classes)]
        times: dict[str, list[float]] = {"fit": [], "apply": []}
        for _ in range(arguments.runs):
            started_at = time.process_time()
            calibrator = fit_calibrator(samples, categories)
            fitted = time.process_time()
            calibrator(samples.score, samples.category)
            times["fit"].append(fitted - started_at)
            times["apply"].append(time.process_time() - fitted)
        shown = ", ".join(f"{name} {statistics.median(values):.3f} s" for name, values in times.items())
        print(f"{arguments.detections} detections of {classes} classes: {shown}")


if __name__ == "__main__":
    main()
