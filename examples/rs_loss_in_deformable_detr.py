"""Train transformers' Deformable DETR with RS Loss at every decoder layer. Conditional DETR and DAB-DETR work in the same way.

pip install transformers; python examples/rs_loss_in_deformable_detr.py [my_data]     # a folder in COCO format; default: synthetic images

The original DETR has a softmax with a "no object" column, but RS Loss ranks sigmoids: drop the column with `logits[..., :-1]`, match as
here, and report sigmoids instead of its post-processing.
"""

import sys
from pathlib import Path

import torch
from rs_loss_in_rt_detr import prepare
from torch.utils.data import DataLoader
from torchvision.ops import box_convert
from transformers import DeformableDetrConfig, DeformableDetrForObjectDetection, ResNetConfig
from transformers.loss.loss_deformable_detr import DeformableDetrHungarianMatcher

from ranksort.data.batch import collate
from ranksort.data.coco import CocoDataset
from ranksort.data.layouts import find_split
from ranksort.data.synthetic import write_synthetic_dataset
from ranksort.losses.detection import rank_sort_set_losses


class RankSortDeformableDetr(DeformableDetrForObjectDetection):
    def loss_function(self, _, targets, device, boxes, config, all_logits, all_boxes):
        match = DeformableDetrHungarianMatcher(config.class_cost, config.bbox_cost, config.giou_cost)
        matches = [match({"logits": s, "pred_boxes": b}, targets) for s, b in zip(all_logits, all_boxes, strict=True)]
        layers = zip(all_logits, box_convert(all_boxes, "cxcywh", "xyxy"), matches, strict=True)
        objects = [box_convert(target["boxes"], "cxcywh", "xyxy") for target in targets]
        losses = rank_sort_set_losses(layers, [target["class_labels"] for target in targets], objects)
        return sum(losses.values()), losses, None


if __name__ == "__main__":
    root = Path(sys.argv[1]) if len(sys.argv) > 1 else write_synthetic_dataset(Path("datasets/small"), train_images=40)
    dataset = CocoDataset(*find_split(root, "train"), training=True)
    # For your own data: RankSortDeformableDetr.from_pretrained("SenseTime/deformable-detr", num_labels=...,
    # ignore_mismatched_sizes=True).
    stages = {"depths": [2, 2, 2, 2], "out_features": ["stage2", "stage3", "stage4"]}
    backbone = ResNetConfig(layer_type="basic", hidden_sizes=[64, 128, 256, 512], **stages)
    layers = {"encoder_layers": 2, "decoder_layers": 3, "with_box_refine": True, "num_labels": len(dataset.categories)}
    model = RankSortDeformableDetr(DeformableDetrConfig(backbone_config=backbone, **layers))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    for images, targets in DataLoader(dataset, 4, shuffle=True, collate_fn=collate):
        output = model(*prepare(images, targets, side=256))  # of equal size; otherwise pass `pixel_mask`
        print({name: round(loss.item(), 3) for name, loss in output.loss_dict.items()}, flush=True)
        optimizer.zero_grad()
        output.loss.backward()
        optimizer.step()
