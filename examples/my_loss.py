"""Your own loss instead of RS Loss, for any detector: cross-entropy with the IoU as target, and GIoU for the boxes.

python examples/my_loss.py [my_data]     # a folder in COCO format; default: synthetic images
"""

import sys
from pathlib import Path

import torch
from torch.nn.functional import binary_cross_entropy_with_logits
from torch.utils.data import DataLoader

from ranksort import create_model
from ranksort.data.batch import collate
from ranksort.data.coco import CocoDataset
from ranksort.data.layouts import find_split
from ranksort.data.synthetic import write_synthetic_dataset
from ranksort.losses.detection import DetectionLosses, localization, quality_targets


def my_loss(logits, positive, labels, boxes, object_boxes, *, ignored=None, quality=None) -> DetectionLosses:
    quality, box = localization(boxes, object_boxes, quality)  # IoU and GIoU loss of the positives, [P], or None
    targets = quality_targets(logits, positive, labels, quality, ignored)  # [A, C], -1 where ignored
    entropy = binary_cross_entropy_with_logits(
        logits.float(), targets.clamp(min=0), weight=targets >= 0, reduction="sum"
    )
    found = DetectionLosses({"entropy": entropy / max(len(positive), 1)}, quality, weights=quality, task_weight=2.0)
    return found if box is None else found.with_task("box", box)  # detectors with masks add `mask` in the same way


if __name__ == "__main__":
    root = Path(sys.argv[1]) if len(sys.argv) > 1 else write_synthetic_dataset(Path("datasets/small"), train_images=40)
    data = CocoDataset(*find_split(root, "train"), training=True)
    settings = {"num_classes": len(data.categories), "pretrained_backbone": True, "min_size": 128}
    model = create_model("ranksort_atss_lite0_small", losses=my_loss, **settings)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.001)
    for images, targets in DataLoader(data, 4, shuffle=True, collate_fn=collate):
        losses = model(images, targets)
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()
        print({name: round(loss.item(), 3) for name, loss in losses.items()}, flush=True)
