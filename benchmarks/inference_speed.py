"""The time saved by NMS of the best pairs only: inference compared with torchvision's `batched_nms` of all pairs above the threshold.

python benchmarks/inference_speed.py [RUN|RECIPE ...] --images DIR [--count 8] [--runs 7]

A recipe means its network with random weights, which has far more pairs above the threshold than a trained one; a run folder means its
trained model. One thread and CPU time, which other jobs on the machine hardly affect; the two alternate.
"""

import argparse
import statistics
import time
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torchvision.ops import batched_nms
from torchvision.transforms.functional import pil_to_tensor

from ranksort import create_model, load_model
from ranksort.models.detector import Detector

SMALL = ["ranksort_atss_lite0_small", "ranksort_mask_rcnn_lite0_small"]


def suppress_all(model: Detector, boxes: Tensor, scores: Tensor) -> dict[str, Tensor]:
    """`Detector.suppress` with all pairs at once."""
    region, label = (scores > model.score_threshold).nonzero(as_tuple=True)
    of_pairs, score = boxes[region] if boxes.ndim == 2 else boxes[region, label], scores[region, label]
    kept = batched_nms(of_pairs, score, label, model.nms_threshold)[: model.detections_per_image]
    return {"boxes": of_pairs[kept], "scores": score[kept], "labels": label[kept]}


def seconds(model: Detector, image: Tensor) -> float:
    start = time.process_time()
    model([image])
    return time.process_time() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", default=SMALL)
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--count", type=int, default=8)
    parser.add_argument("--runs", type=int, default=7)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    files = sorted(path for path in options.images.iterdir() if path.is_file())[: options.count]
    images = [pil_to_tensor(Image.open(file).convert("RGB")) for file in files]
    print(f"{'model':<40} {'ours':>9} {'all pairs':>9} {'ratio':>6}")
    for name in options.models:
        model = load_model(name) if Path(name).exists() else create_model(name)
        model.eval().to(memory_format=torch.channels_last)
        ours, theirs = [], []
        with torch.inference_mode():
            model(images[:1])
            for _ in range(options.runs):
                for image in images:
                    ours.append(seconds(model, image))
                    model.suppress = lambda boxes, scores, model=model: suppress_all(model, boxes, scores)
                    theirs.append(seconds(model, image))
                    del model.suppress
        a, b = (1000 * statistics.median(times) for times in (ours, theirs))
        print(f"{name[-40:]:<40} {a:6.1f} ms {b:6.1f} ms {a / b:6.2f}")


if __name__ == "__main__":
    main()
