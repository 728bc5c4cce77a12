"""Train a detector with plain PyTorch, without the engine; also used to measure the engine's overhead.

python examples/plain_training_loop.py [my_data] --epochs 3     # a folder in COCO format; default: synthetic images
"""

import argparse
import time
from pathlib import Path

import torch

from ranksort import create_model, evaluate_detections
from ranksort.data.batch import data_loader
from ranksort.data.coco import CocoDataset
from ranksort.data.layouts import find_split
from ranksort.data.samplers import AspectRatioBatchSampler
from ranksort.data.synthetic import write_synthetic_dataset
from ranksort.data.transforms import training_transforms
from ranksort.evaluation.results import to_coco_results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path, nargs="?", help="has annotations/instances_{train,val}.json and images/")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--min-size", type=int, default=256)
    options = parser.parse_args()
    root = options.root or write_synthetic_dataset(Path("datasets/synthetic"))
    device = "cuda" if torch.cuda.is_available() else "cpu"
    sizes = {"min_size": options.min_size, "max_size": 2 * options.min_size}

    transform = training_transforms([options.min_size], 2 * options.min_size)
    train_set = CocoDataset(*find_split(root, "train"), training=True, transform=transform)
    val_set = CocoDataset(*find_split(root, "val"), training=False, categories=train_set.categories)
    sampler = AspectRatioBatchSampler(train_set.landscape, batch_size=4)
    train_loader = data_loader(train_set, batch_sampler=sampler, workers=2)

    classes = len(train_set.categories)
    model = create_model("ranksort_atss_lite0_small", num_classes=classes, pretrained_backbone=True, **sizes).to(device)
    optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=0.001, weight_decay=0.05)
    for epoch in range(options.epochs):
        sampler.set_epoch(epoch)
        model.train()
        start = time.perf_counter()
        for images, targets in train_loader:
            images = [image.to(device) for image in images]
            targets = [{key: target[key].to(device) for key in ("boxes", "labels")} for target in targets]
            losses = model(images, targets)
            optimizer.zero_grad()
            sum(losses.values()).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 10.0)
            optimizer.step()
        last = {
            name: round(loss.item(), 3) for name, loss in losses.items()
        }  # before taking the time: it waits for the GPU
        seconds = (time.perf_counter() - start) / len(train_loader)
        print(f"epoch {epoch + 1}: {seconds:.3f} s per step, last losses {last}", flush=True)

    model.eval()
    results = []
    with torch.inference_mode():
        for images, targets in data_loader(val_set):
            detections = model([image.to(device) for image in images])
            image_ids = [target["image_id"] for target in targets]
            results += to_coco_results(detections, image_ids, [category.id for category in val_set.categories])
    print(evaluate_detections(val_set.annotations_path, results))


if __name__ == "__main__":
    main()
