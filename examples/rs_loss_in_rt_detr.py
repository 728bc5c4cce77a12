"""Train transformers' RT-DETR with RS Loss: decoder layers, encoder proposals and denoising queries.

pip install transformers; python examples/rs_loss_in_rt_detr.py [my_data]     # a folder in COCO format; default: synthetic images
"""

import sys
from pathlib import Path

import torch
from torch.utils.data import DataLoader
from torchvision.ops import box_convert
from torchvision.transforms.v2.functional import resize
from transformers import RTDetrConfig, RTDetrForObjectDetection, RTDetrResNetConfig
from transformers.loss.loss_rt_detr import RTDetrHungarianMatcher, RTDetrLoss

from ranksort.data.batch import collate
from ranksort.data.coco import CocoDataset
from ranksort.data.layouts import find_split
from ranksort.data.synthetic import write_synthetic_dataset
from ranksort.losses.detection import rank_sort_set_losses


class RankSortRTDetr(RTDetrForObjectDetection):
    def loss_function(self, _, targets, device, boxes, config, all_logits, all_boxes, **more):
        match, noisy = RTDetrHungarianMatcher(config), more["denoising_meta_values"]
        layers, denoising = [(more["enc_topk_logits"], more["enc_topk_bboxes"])], []
        for logits, boxes in zip(all_logits.unbind(1), all_boxes.unbind(1), strict=True):
            if noisy:  # the first queries are noisy objects, whose matches are known
                (known, logits), (known_boxes, boxes) = (x.split(noisy["dn_num_split"], 1) for x in (logits, boxes))
                denoising.append((known, known_boxes, RTDetrLoss.get_cdn_matched_indices(noisy, targets)))
            layers.append((logits, boxes))
        layers = [(s, b, match({"logits": s, "pred_boxes": b}, targets)) for s, b in layers] + denoising
        layers = [(s, box_convert(b, "cxcywh", "xyxy"), matches) for s, b, matches in layers]
        objects = [box_convert(target["boxes"], "cxcywh", "xyxy") for target in targets]
        losses = rank_sort_set_losses(layers, [target["class_labels"] for target in targets], objects)
        return sum(losses.values()), losses, None


def prepare(images, targets, side: int):  # as in transformers' image processors
    sizes = [torch.tensor(image.shape[-1:-3:-1]).repeat(2) for image in images]
    boxes = [box_convert(t["boxes"] / size, "xyxy", "cxcywh") for t, size in zip(targets, sizes, strict=True)]
    labels = [{"class_labels": t["labels"], "boxes": b} for t, b in zip(targets, boxes, strict=True)]
    return torch.stack([resize(image, [side, side]) / 255 for image in images]), labels


if __name__ == "__main__":
    root = Path(sys.argv[1]) if len(sys.argv) > 1 else write_synthetic_dataset(Path("datasets/small"), train_images=40)
    dataset = CocoDataset(*find_split(root, "train"), training=True)
    # For your own data: RankSortRTDetr.from_pretrained("PekingU/rtdetr_r18vd", num_labels=..., ignore_mismatched_sizes=True), and
    # side=640.
    backbone = RTDetrResNetConfig(layer_type="basic", hidden_sizes=[64, 128, 256, 512], out_indices=[2, 3, 4])
    channels = {"encoder_in_channels": [128, 256, 512], "num_labels": len(dataset.categories)}
    model = RankSortRTDetr(RTDetrConfig(backbone_config=backbone, freeze_backbone_batch_norms=False, **channels))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    for images, targets in DataLoader(dataset, 4, shuffle=True, collate_fn=collate):
        output = model(*prepare(images, targets, side=256))
        print({name: round(loss.item(), 3) for name, loss in output.loss_dict.items()}, flush=True)
        optimizer.zero_grad()
        output.loss.backward()
        optimizer.step()
