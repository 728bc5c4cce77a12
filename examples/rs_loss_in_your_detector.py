"""Train torchvision's RetinaNet with RS Loss instead of focal loss and L1: only `compute_loss` of its head changes.

python examples/rs_loss_in_your_detector.py [my_data]     # a folder in COCO format; default: synthetic images
"""

import sys
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision.models.detection import RetinaNet, retinanet_resnet50_fpn
from torchvision.models.detection.retinanet import RetinaNetHead

from ranksort.data.batch import collate
from ranksort.data.coco import CocoDataset
from ranksort.data.layouts import find_split
from ranksort.data.synthetic import write_synthetic_dataset
from ranksort.losses.detection import rank_sort_detection_losses


class RankSortHead(RetinaNetHead):
    def compute_loss(self, targets, head_outputs, anchors, matched_idxs) -> dict[str, Tensor]:
        # An anchor is matched with an object, by index in its image, or -1: negative, or -2: ignored.
        matched = torch.cat(matched_idxs)
        positive = (matched >= 0).nonzero().squeeze(1)
        of_images = list(zip(targets, matched_idxs, strict=True))
        labels, boxes = (torch.cat([t[key][m[m >= 0]] for t, m in of_images]) for key in ("labels", "boxes"))
        deltas = head_outputs["bbox_regression"].flatten(0, 1)[positive].float()
        predicted = self.regression_head.box_coder.decode_single(deltas, torch.cat(anchors)[positive])
        logits = head_outputs["cls_logits"].flatten(0, 1)  # all images in one list: they are ranked together
        return rank_sort_detection_losses(logits, positive, labels, predicted, boxes, ignored=matched == -2).losses


def rank_sort_retinanet(num_classes: int, **settings) -> RetinaNet:
    model = retinanet_resnet50_fpn(weights=None, num_classes=num_classes, **settings)
    model.head = RankSortHead(model.backbone.out_channels, model.head.classification_head.num_anchors, num_classes)
    return model


def train_step(model: RetinaNet, optimizer: torch.optim.Optimizer, images, targets) -> dict[str, float]:
    losses = model([image / 255 for image in images], targets)
    optimizer.zero_grad()
    sum(losses.values()).backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 10)
    optimizer.step()
    return {name: loss.item() for name, loss in losses.items()}


if __name__ == "__main__":
    root = Path(sys.argv[1]) if len(sys.argv) > 1 else write_synthetic_dataset(Path("datasets/small"), train_images=40)
    dataset = CocoDataset(*find_split(root, "train"), training=True, keep_empty_images=True)
    # For your own data, leave out `weights_backbone` (ImageNet weights are then downloaded) and the sizes (then 800 and 1333).
    model = rank_sort_retinanet(len(dataset.categories), weights_backbone=None, min_size=128, max_size=192)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4)
    for epoch in range(1, 11):
        history = [train_step(model, optimizer, *b) for b in DataLoader(dataset, 4, shuffle=True, collate_fn=collate)]
        means = {name: round(sum(losses[name] for losses in history) / len(history), 3) for name in history[0]}
        print(f"epoch {epoch}:", means, flush=True)
