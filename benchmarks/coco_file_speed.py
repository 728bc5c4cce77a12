"""Read an annotation file of the size of COCO train2017, compared with pycocotools: CPU time and peak memory of whole processes.

Each reader starts in its own process and reads the same file, including imports. Ours makes all of its checks.

    python benchmarks/coco_file_speed.py [--scale 1] [--runs 3] [--folder DIR]
    python benchmarks/coco_file_speed.py --workers      # memory of a worker process that loads an epoch with masks
"""

import argparse
import json
import multiprocessing
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

IMAGES, OBJECTS, CLASSES = 118_287, 860_001, 80
WIDTH, HEIGHT = 640, 480
CROWD_EVERY = 86  # annotations
READERS = {
    "ranksort, boxes": "from ranksort.data.coco_file import read_coco_file; read_coco_file({path!r}, segmentations=False)",
    "ranksort, boxes and masks": "from ranksort.data.coco_file import read_coco_file; read_coco_file({path!r}, segmentations=True)",
    "pycocotools `COCO()`": "from pycocotools.coco import COCO; COCO({path!r})",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scale", type=float, default=1.0, help="size of the file as a part of COCO train2017's")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="where the file is kept; default: nowhere")
    parser.add_argument("--workers", action="store_true", help="measure a worker process instead")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        path = folder / f"coco_{options.scale:g}.json"
        if not path.exists():  # in its own process, whose memory would otherwise count for processes started from it
            folder.mkdir(parents=True, exist_ok=True)
            writer = multiprocessing.Process(target=write_file, args=(path, options.scale))
            writer.start()
            writer.join()
        print(f"{path.stat().st_size / 1e6:.0f} MB\n", flush=True)
        if options.workers:
            measure_worker(path, folder)
            return
        codes = [code.format(path=str(path)) for code in READERS.values()]
        runs = np.array(
            [[cost(code) for code in codes] for _ in range(options.runs)]
        )  # (runs, readers, seconds and GB)
        print("| | CPU time | peak memory |\n|---|---|---|")
        for name, (seconds, memory) in zip(READERS, np.median(runs, axis=0), strict=True):
            print(f"| {name} | {seconds:.1f} s | {memory:.2f} GB |")


def cost(code: str) -> tuple[float, float]:
    """CPU seconds and peak GB of a Python process."""
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise RuntimeError(f"the reader failed: {code}")
    return usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024 / 1e9


def write_file(path: Path, scale: float) -> None:
    """Images of one size, and objects as polygons of 4 to about 100 points, in the same numbers as COCO."""
    rng = np.random.default_rng(0)
    images, objects = max(1, round(scale * IMAGES)), max(1, round(scale * OBJECTS))
    with path.open("w") as file:
        file.write('{"info": {"description": "drawn"}, "licenses": [], "images": [')
        file.write(", ".join(_image(number) for number in range(1, images + 1)))
        file.write('], "annotations": [')
        separator = ""
        for start in range(1, objects + 1, 20_000):
            rows = _annotations(rng, start, min(20_000, objects + 1 - start), images)
            file.write(separator + ", ".join(rows))
            separator = ", "
        categories = [{"supercategory": "thing", "id": c, "name": f"class {c}"} for c in range(1, CLASSES + 1)]
        file.write(f'], "categories": {json.dumps(categories)}}}')


def _image(number: int) -> str:
    name = f"{number:012d}.jpg"
    return (
        f'{{"license": 3, "file_name": "{name}", "coco_url": "http://images.cocodataset.org/train2017/{name}", '
        f'"height": {HEIGHT}, "width": {WIDTH}, "date_captured": "2013-11-14 11:18:45", '
        f'"flickr_url": "http://farm9.staticflickr.com/8186/{number:010d}_4e622c8349_z.jpg", "id": {number}}}'
    )


def _annotations(rng: np.random.Generator, first: int, number: int, images: int) -> Iterator[str]:
    """The JSON of annotations; the points of all polygons are drawn at once."""
    points = np.maximum(4, rng.gamma(2, 12, number).astype(int))
    starts = np.cumsum(points) - points
    turn = 2 * np.pi * (np.arange(points.sum()) - np.repeat(starts, points)) / np.repeat(points, points)
    radius = np.repeat(np.minimum(rng.gamma(2, 18, number) + 3, 55), points) * rng.uniform(0.7, 1, len(turn))
    x = np.round(np.repeat(rng.uniform(60, WIDTH - 60, number), points) + radius * np.cos(turn), 2)
    y = np.round(np.repeat(rng.uniform(60, HEIGHT - 60, number), points) + radius * np.sin(turn), 2)
    following = np.arange(1, len(turn) + 1)
    following[starts + points - 1] = starts
    areas = np.abs(np.add.reduceat(x * y[following] - x[following] * y, starts)) / 2
    left, top, right, bottom = (f.reduceat(v, starts) for f in (np.minimum, np.maximum) for v in (x, y))
    boxes = np.round(np.stack([left, top, right - left, bottom - top], 1), 2).tolist()
    coordinates = list(map(str, np.stack([x, y], 1).ravel().tolist()))
    image_ids = rng.integers(1, images + 1, number).tolist()
    uncompressed = f'{{"counts": [1000, 5, 475, 5, 475, 5, {WIDTH * HEIGHT - 1965}], "size": [{HEIGHT}, {WIDTH}]}}'
    for n, (start, count, area) in enumerate(zip(starts.tolist(), points.tolist(), areas.tolist(), strict=True)):
        crowd = (first + n) % CROWD_EVERY == 0
        outline = uncompressed if crowd else f"[[{', '.join(coordinates[2 * start : 2 * (start + count)])}]]"
        yield (
            f'{{"segmentation": {outline}, "area": {area:.6f}, "iscrowd": {int(crowd)}, "image_id": {image_ids[n]}, '
            f'"bbox": {boxes[n]}, "category_id": {(first + n) % CLASSES + 1}, "id": {first + n}}}'
        )


def measure_worker(annotations: Path, folder: Path) -> None:
    """Print how much memory a forked worker does not share with the process that read the file, during an epoch with masks."""
    from PIL import Image
    from torch.utils.data import DataLoader, get_worker_info

    from ranksort.data.coco import CocoDataset

    images = folder / "images"
    images.mkdir(exist_ok=True)
    drawn = images / "drawn.jpg"
    Image.new("RGB", (WIDTH, HEIGHT)).save(drawn)
    dataset = CocoDataset(images, annotations, training=True, masks=True)
    for index in range(len(dataset)):
        if not (link := images / dataset.file_name(index)).exists():
            link.symlink_to(drawn)

    def collate(samples: list[tuple[object, dict[str, object]]]) -> float:
        assert get_worker_info() is not None
        private = re.findall(r"Private_Dirty: *(\d+) kB", Path("/proc/self/smaps_rollup").read_text())
        return sum(map(int, private)) / 1e3

    loader = DataLoader(
        dataset,
        batch_size=16,
        num_workers=1,
        multiprocessing_context="fork",
        collate_fn=collate,  # type: ignore[arg-type]
    )
    megabytes = list(loader)
    print(f"{len(dataset)} images, {len(dataset.file_name(0))} letters each in their names")
    for at in (0, len(megabytes) // 10, len(megabytes) // 2, len(megabytes) - 1):
        print(f"private memory of the worker after {at + 1} of {len(megabytes)} batches: {megabytes[at]:.0f} MB")


if __name__ == "__main__":
    main()
