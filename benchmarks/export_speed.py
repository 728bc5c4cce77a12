"""From an image file to its detections: an exported detector in ONNX Runtime, compared with the same one in PyTorch.

python benchmarks/export_speed.py RUN --images DIR [--count 8] [--runs 7] [--threads 1 2]

Each reads the file, resizes, runs the network and applies NMS; the two alternate, image by image. Wall-clock time and, for one thread,
CPU time, which other jobs on the machine hardly affect. Each number of threads is a separate process.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="run folder, .ckpt or .safetensors")
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--count", type=int, default=8)
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--onnx", type=Path, help="already exported")
    options = parser.parse_args()
    if options.onnx and len(options.threads) == 1:
        compare(options)
        return
    with tempfile.TemporaryDirectory() as folder:
        path = options.onnx or Path(folder) / "model.onnx"
        if not options.onnx:
            from ranksort import load_model
            from ranksort.export import export_onnx

            print(export_onnx(load_model(options.model), path), flush=True)
        print(f"{'threads':>7} {'':>10} {'PyTorch':>10} {'ONNX':>10} {'ratio':>6}", flush=True)
        for threads in options.threads:
            given = [options.model, "--images", options.images, "--count", options.count, "--runs", options.runs]
            command = [sys.executable, __file__, *map(str, given), "--threads", str(threads), "--onnx", str(path)]
            subprocess.run(command, check=True, env=os.environ | {"OMP_NUM_THREADS": str(threads)})


def compare(options: argparse.Namespace) -> None:
    """Print the medians for this number of threads."""
    import torch

    from ranksort import load_model
    from ranksort.exported import OnnxDetector

    (threads,) = options.threads
    torch.set_num_threads(threads)
    eager, exported = load_model(options.model), OnnxDetector(options.onnx, threads)
    files = sorted(path for path in options.images.iterdir() if path.is_file())[: options.count]
    sides: list[Callable[[Path], object]] = [
        lambda file: eager.predict(file, score_threshold=0.3),
        lambda file: exported.predict(file, 0.3),
    ]
    wall: list[list[float]] = [[], []]
    cpu: list[list[float]] = [[], []]
    for _ in range(options.runs):
        for file in files:
            for side, predict in enumerate(sides):
                clocks = time.perf_counter(), time.process_time()
                predict(file)
                wall[side].append(time.perf_counter() - clocks[0])
                cpu[side].append(time.process_time() - clocks[1])
    for name, times in {"wall clock": wall, "CPU time": cpu}.items():
        theirs, ours = (1000 * statistics.median(column[len(files) :]) for column in times)  # without the first round
        if name == "wall clock" or threads == 1:
            print(f"{threads:>7} {name:>10} {theirs:7.1f} ms {ours:7.1f} ms {theirs / ours:6.2f}", flush=True)


if __name__ == "__main__":
    main()
