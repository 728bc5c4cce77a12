"""Train torchvision's FCOS with RS Loss, with only a classifier and boxes: scores sorted by IoU need no centreness.

python examples/rs_loss_in_fcos.py [my_data]     # a folder in COCO format; default: synthetic images
"""

import sys
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchvision.models.detection import FCOS, fcos_resnet50_fpn
from torchvision.models.detection.fcos import FCOSHead

from ranksort.data.batch import collate
from ranksort.data.coco import CocoDataset
from ranksort.data.layouts import find_split
from ranksort.data.synthetic import write_synthetic_dataset
from ranksort.losses.detection import rank_sort_detection_losses
from ranksort.losses.localization import paired_iou


class RankSortHead(FCOSHead):
    def compute_loss(self, targets, head_outputs, anchors, matched_idxs) -> dict[str, Tensor]:
        # A location is matched with an object, by index in its image, or -1: negative.
        positive = (torch.cat(matched_idxs) >= 0).nonzero().squeeze(1)
        of_images = list(zip(targets, matched_idxs, strict=True))
        labels, boxes = (torch.cat([t[key][m[m >= 0]] for t, m in of_images]) for key in ("labels", "boxes"))
        distances = head_outputs["bbox_regression"].flatten(0, 1)[positive].float()
        predicted = self.box_coder.decode(distances, torch.cat(anchors)[positive])
        # FCOS starts from boxes without area. With an IoU of 0, all positives would be negatives, and nothing would be learnt.
        quality = paired_iou(predicted.detach(), boxes).clamp(min=0.01)
        logits = head_outputs["cls_logits"].flatten(0, 1)  # all images in one list: they are ranked together
        return rank_sort_detection_losses(logits, positive, labels, predicted, boxes, quality=quality).losses


def rank_sort_fcos(num_classes: int, **settings) -> FCOS:
    model = fcos_resnet50_fpn(weights=None, num_classes=num_classes, **settings)
    model.head = RankSortHead(model.backbone.out_channels, 1, num_classes)
    centreness = model.head.regression_head.bbox_ctrness.requires_grad_(False)
    nn.init.zeros_(centreness.weight)
    nn.init.constant_(centreness.bias, 100.0)  # 1 everywhere, so torchvision reports the square root of the score
    return model


if __name__ == "__main__":
    root = Path(sys.argv[1]) if len(sys.argv) > 1 else write_synthetic_dataset(Path("datasets/small"), train_images=40)
    dataset = CocoDataset(*find_split(root, "train"), training=True, keep_empty_images=True)
    # For your own data, leave out `weights_backbone` (ImageNet weights are then downloaded) and the sizes (then 800 and 1333).
    model = rank_sort_fcos(len(dataset.categories), weights_backbone=None, min_size=128, max_size=192)
    optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=3e-4)
    for _ in range(10):
        for images, targets in DataLoader(dataset, 4, shuffle=True, collate_fn=collate):
            losses = model([image / 255 for image in images], targets)
            optimizer.zero_grad()
            sum(losses.values()).backward()
            optimizer.step()
        print({name: round(loss.item(), 3) for name, loss in losses.items()}, flush=True)
