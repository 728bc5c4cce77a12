"""Try timm's models as backbones, the smallest of each family and well-known ones, and write docs/backbones.md.

    python benchmarks/backbones_tried.py        # a quarter of an hour on one CPU core, no downloads

A model works if a training step of RS-ATSS with it gives every trained parameter a finite gradient. It is refused if the package says
in a sentence why it does not work. Anything else is a bug, and the script exits with status 1.
"""

import logging
import platform
import sys
import warnings
from pathlib import Path

import timm
import torch
from torch import nn

from ranksort.models.backbones import build_backbone
from ranksort.recipes import create_model

PAGE = Path(__file__).parents[1] / "docs" / "backbones.md"
WELL_KNOWN = """
convnext_tiny convnextv2_nano cspdarknet53 cspresnet50 cspresnext50 cs3darknet_m darknet53 densenet169 dla34 dla60
dpn68 efficientnet_b0 efficientnetv2_rw_t tf_efficientnet_lite0 tf_efficientnetv2_b0 ghostnetv2_100 hrnet_w18
hrnet_w32 inception_resnet_v2 inception_v4 legacy_senet154 mobilenetv2_100 mobilenetv3_large_100
mobilenetv4_conv_small mobileone_s0 regnety_016 repvgg_a2 res2net50_26w_4s resnest50d resnet10t resnet18 resnet50
resnetv2_50 resnext50_32x4d rexnet_150 seresnet50 swin_small_patch4_window7_224 tresnet_l twins_pcpvt_small vgg16
vgg16_bn vovnet39a wide_resnet50_2 xception65
"""
HEADER = """# Backbones

`--model.backbone timm/<model>` takes any model of [timm](https://github.com/huggingface/pytorch-image-models) with
feature maps of strides 8, 16 and 32 for images whose sides are multiples of 32. The R-CNNs and SOLOv2 also need stride 4. This is checked
when the model is built. Nearly all convolutional models fit, and some transformers.

The column "works with":

- *all*: every detector;
- *dense*: only ATSS, PAA and YOLACT, because the model has no level of stride 4;
- *not YOLACT at 550 pixels*: the model takes only sides that are multiples of 32, so set `--model.min-size 544`.

The smallest model of each family and some well-known ones, with {versions} and random weights. "Works" means that a training step of
RS-ATSS gives every trained parameter a finite gradient. The numbers of frozen and trained parameters are in millions, with the default
`--model.frozen-stages 1`. [benchmarks/backbones_tried.py](../benchmarks/backbones_tried.py) writes the table.

| family | model | works with | frozen | trained |
| --- | --- | --- | --- | --- |
"""


def main() -> None:
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    rows, errors = [], []
    for family, name in chosen():
        try:
            outcome, frozen, trained = attempt(f"timm/{name}")
        except Exception as error:
            errors.append(f"{name}: {type(error).__name__}: {error}")
            outcome, frozen, trained = "**error**", "", ""
        rows.append(f"| {family} | {name} | {outcome} | {frozen} | {trained} |\n")
        print(rows[-1], end="", flush=True)
    works = sum("refused" not in row for row in rows) - len(errors)
    versions = (
        f"timm {timm.__version__}, torch {torch.__version__.split('+')[0]} and Python {platform.python_version()}"
    )
    summary = f"\n{works} of {len(rows)} work, {len(rows) - works - len(errors)} are refused.\n"
    PAGE.write_text(HEADER.format(versions=versions) + "".join(rows) + summary)
    print(summary, *errors, sep="\n")
    sys.exit(bool(errors))


def chosen() -> list[tuple[str, str]]:
    """Family and name of each model to try."""
    pairs = set()
    for family in timm.list_modules():
        names = timm.list_models(module=family)
        pairs |= {(family, name) for name in [min(names, key=parameters), *(n for n in names if n in WELL_KNOWN)]}
    return sorted(pairs)


def parameters(name: str) -> int:
    """Number of parameters of a timm model."""
    with torch.device("meta"):
        return sum(p.numel() for p in timm.create_model(name).parameters())


def attempt(backbone: str) -> tuple[str, str, str]:
    """The outcome, and the millions of frozen and of trained parameters."""
    try:
        with torch.device("meta"):  # large ones are refused without allocating them
            build_backbone(backbone, pretrained=False, levels=3)
    except ValueError as refusal:
        return f"refused: {refusal}", "", ""
    torch.manual_seed(0)
    model = create_model(
        "ranksort_atss_lite0_small", num_classes=3, backbone=backbone, frozen_stages=1, train_batch_norm=True
    )
    train_step(model)
    counts = [
        sum(p.numel() for p in model.backbone.parameters() if p.requires_grad == trained) for trained in (False, True)
    ]
    frozen, trained = (f"{count / 1e6:.2f}" for count in counts)
    outcome = "all" if fits(backbone, 4, 544) else "dense"
    return (outcome if fits(backbone, 3, 550) else f"{outcome}, not YOLACT at 550 pixels"), frozen, trained


def train_step(model: nn.Module) -> None:
    """One step; every trained parameter must get a finite gradient."""
    images = [torch.rand(3, 320, 512), torch.rand(3, 320, 384)]
    boxes = torch.tensor([[10.0, 20, 200, 220], [250, 100, 330, 150]])
    targets = [{"boxes": boxes, "labels": torch.tensor([0, 2])}] * 2
    sum(model(images, targets).values()).backward()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and (parameter.grad is None or not parameter.grad.isfinite().all()):
            raise RuntimeError(f"the gradient of {name} is {'missing' if parameter.grad is None else 'not finite'}")


def fits(backbone: str, levels: int, side: int) -> bool:
    """Whether the backbone has this many levels, and accepts squares with this side."""
    try:
        with torch.device("meta"):
            build_backbone(backbone, pretrained=False, levels=levels).map_sizes((side, side))
    except ValueError:
        return False
    return True


if __name__ == "__main__":
    main()
