"""Check correctness and speed on a machine with a GPU. `make gpu` runs this.

python benchmarks/gpu_check.py [--parts tests losses detectors training] [--out runs/gpu_check]

tests      the losses and detectors on the device, in float32 and in half precision, against recorded values and the CPU
losses     RS Loss vs. torchvision's focal loss and the published loop, at the sizes of five classifiers
detectors  a training step and inference vs. torchvision's detectors, ResNet-50, 800 pixels, 2 and 8 images
training   a short run on generated data, with its AP

Nothing is downloaded. The output of each part is also written to a file in the folder. At the end it prints the times; the exit code is
1 if a part failed.
"""

import argparse
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).parent


def commands(out: Path) -> dict[str, list[str]]:
    losses = [str(HERE / "loss_speed.py"), "--device", "cuda", "--runs", "20"]
    detectors = [str(HERE / "detector_speed.py"), "faster_rcnn", "retinanet", "fcos", "--device", "cuda"]
    return {
        "tests": ["-m", "pytest", "-q", "-m", "cuda", str(HERE.parent / "tests")],
        "losses": losses,
        "detectors": [*detectors, "--images", "2", "8", "--size", "800", "--runs", "8"],
        "training": ["-m", "ranksort", "quickstart", "--out", str(out / "quickstart")],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = list(commands(Path()))
    parser.add_argument("--parts", nargs="+", choices=parts, default=parts)
    parser.add_argument("--out", type=Path, default=Path("runs/gpu_check"))
    options = parser.parse_args()
    import torch

    if not torch.cuda.is_available():
        parser.error("there is no GPU that torch can use: install a torch with CUDA, or run `make test`")
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, CUDA {torch.version.cuda}", flush=True)
    options.out.mkdir(parents=True, exist_ok=True)
    failed = []
    for part in options.parts:
        print(f"\n== {part}", flush=True)
        start = time.perf_counter()
        with (options.out / f"{part}.txt").open("w", encoding="utf-8") as file:
            process = subprocess.Popen(
                [sys.executable, *commands(options.out)[part]],
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            assert process.stdout is not None
            for line in process.stdout:
                print(line, end="", flush=True)
                file.write(line)
        failed += [part] if process.wait() else []
        print(f"== {part}: {'failed' if part in failed else 'done'} in {time.perf_counter() - start:.0f} s", flush=True)
    sys.exit(f"failed: {', '.join(failed)}" if failed else 0)


if __name__ == "__main__":
    main()
