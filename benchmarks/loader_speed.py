"""Images per second that the data set loads and transforms, compared with torchvision's reference detection pipeline on the same files.

python benchmarks/loader_speed.py IMAGES ANNOTATIONS.json --number 64

The peer is `CocoDetection`, wrapped for `transforms.v2`, with the transforms of torchvision's references/detection: to tensor, flip,
to float in 0..1, `SanitizeBoundingBoxes`, `ToPureTensor`. In the rows "resized to", both resize (with `RandomShortestSize` in
torchvision); otherwise ours only flip. CPU time of this process, one thread; the two alternate, medians of `--passes`.
"""

import argparse
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from torchvision import datasets
from torchvision.transforms import v2

from ranksort.data.coco import CocoDataset
from ranksort.data.transforms import training_transforms


def ours(images: Path, annotations: Path, masks: bool, side: int) -> CocoDataset:
    transform = training_transforms([side], 2 * side) if side else v2.RandomHorizontalFlip(0.5)
    return CocoDataset(images, annotations, training=True, masks=masks, transform=transform)


def reference(images: Path, annotations: Path, masks: bool, side: int) -> Any:
    resize = [v2.RandomShortestSize([side], 2 * side)] if side else []
    last = [v2.ToDtype(torch.float32, scale=True), v2.SanitizeBoundingBoxes(), v2.ToPureTensor()]
    transforms = v2.Compose([v2.ToImage(), v2.RandomHorizontalFlip(0.5), *resize, *last])
    keys = {"boxes", "labels", "image_id", *(["masks"] if masks else [])}
    dataset = datasets.CocoDetection(images, annotations, transforms=transforms)
    return datasets.wrap_dataset_for_transforms_v2(dataset, target_keys=keys)


def seconds(dataset: Any, items: list[int]) -> float:
    start = time.process_time()
    for item in items:
        dataset[item]
    return time.process_time() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", type=Path)
    parser.add_argument("annotations", type=Path)
    parser.add_argument("--number", type=int, default=64, help="images")
    parser.add_argument("--passes", type=int, default=7)
    parser.add_argument("--side", type=int, default=480, help="short side where images are resized")
    options = parser.parse_args()
    torch.set_num_threads(1)
    print("| images/s | torchvision | ranksort | times |\n|---|---|---|---|")
    for masks in (False, True):
        for side in (0, options.side):
            own, peer = (make(options.images, options.annotations, masks, side) for make in (ours, reference))
            # The same files, because training leaves some out.
            place = {
                image_id: n for n, image_id in enumerate(peer._dataset.ids if hasattr(peer, "_dataset") else peer.ids)
            }
            mine = list(range(min(options.number, len(own))))
            theirs = [place[own.image_ids[n]] for n in mine]
            seconds(own, mine[:4]), seconds(peer, theirs[:4])
            times = [(seconds(own, mine), seconds(peer, theirs)) for _ in range(options.passes)]
            ratio = statistics.median(b / a for a, b in times)
            a, b = (len(mine) / statistics.median(t[k] for t in times) for k in (0, 1))
            name = f"{'masks' if masks else 'boxes'}, {f'resized to {side} px' if side else 'flip only'}"
            print(f"| {name} | {b:.1f} | {a:.1f} | {ratio:.2f} |", flush=True)


if __name__ == "__main__":
    main()
