"""How long does a report take compared with its evaluation: causes of the errors, quality of the scores, bootstrap intervals?

python benchmarks/report_speed.py [--data coco-boxes coco-masks] [--runs 3]

CPU time of one thread in seconds, the median of the runs, on the drawn results of `evaluation_speed.py`.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from evaluation_speed import DATA, write_files

from ranksort.evaluation import evaluate_detections
from ranksort.evaluation.bootstrap import bootstrap_matched


def seconds(call: Callable[[], Any]) -> tuple[float, Any]:
    start = time.process_time()
    found = call()
    return time.process_time() - start, found


def measure(truth: Path, found: Path, iou_type: str) -> tuple[float, float, float]:
    """Seconds of the evaluation, of the bootstrap and of the rest of the analysis."""
    evaluation, report = seconds(partial(evaluate_detections, truth, found, iou_type))
    bootstrap, _ = seconds(partial(bootstrap_matched, report.matched))
    analysis, _ = seconds(partial(getattr, report, "analysis"))  # computed on first use
    return evaluation, bootstrap, analysis - bootstrap


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="+", choices=["coco-boxes", "coco-masks"], default=["coco-boxes"])
    parser.add_argument("--runs", type=int, default=3)
    options = parser.parse_args()
    for name in options.data:
        with tempfile.TemporaryDirectory() as folder:
            truth, found = Path(folder, "truth.json"), Path(folder, "found.json")
            write_files(truth, found, DATA[name])
            runs = [measure(truth, found, DATA[name].iou_type) for _ in range(options.runs)]
            evaluation, bootstrap, rest = map(statistics.median, zip(*runs, strict=True))
            print(f"{name}: evaluation {evaluation:.2f} s, 1,000 resamples {bootstrap:.2f} s, the rest {rest:.2f} s")


if __name__ == "__main__":
    main()
