"""RS Faster R-CNN against torchvision's Faster R-CNN, both with a ResNet-50 and FPN: a training step, and inference.

python benchmarks/faster_rcnn_speed.py --images 2 --size 320 --runs 7 [--profile]

Both get the same images and objects in one process, in turn. torchvision's is set to as many regions an image as ours, which takes part
with all of its proposals; both keep the stem, the first stage and the statistics of batch normalisation. With `--threads 1` it is CPU
time that counts, which other jobs on the machine hardly disturb. `--profile` shows in which parts of our step the time goes.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.ops import FrozenBatchNorm2d

from ranksort import create_model

CLASSES = 80


def theirs(size: int) -> nn.Module:
    backbone = resnet_fpn_backbone(
        backbone_name="resnet50", weights=None, norm_layer=FrozenBatchNorm2d, trainable_layers=3
    )
    # The objects themselves, at most 8, are regions, too.
    settings = {"rpn_post_nms_top_n_train": 1000, "box_batch_size_per_image": 1008, "box_positive_fraction": 1.0}
    return FasterRCNN(backbone, CLASSES + 1, min_size=size, max_size=2 * size, **settings)


def ours(size: int) -> nn.Module:
    settings = {"min_size": size, "max_size": 2 * size, "score_threshold": 0.05}  # torchvision's threshold
    model = create_model("ranksort_faster_rcnn_r50_fpn_1x_coco", **settings)
    return model.to(memory_format=torch.channels_last)  # as the training engine has it


def calm(model: nn.Module, layer: nn.Module, images: list[Tensor], std: float, bias: float) -> None:
    """Gives the outputs of a layer of a network which knows nothing the spread of one which has learnt a little."""
    outputs: list[Tensor] = []
    hook = layer.register_forward_hook(lambda module, inputs, output: outputs.append(output))
    with torch.inference_mode():
        model.eval()(images)
    hook.remove()
    with torch.no_grad():
        layer.weight *= std / outputs[0].std()
        layer.bias.fill_(bias)


@torch.no_grad()
def same_proposals(our: nn.Module, their: nn.Module) -> None:
    """Gives both the same backbone, pyramid and RPN, so that they have about the same regions to look at."""

    def layers(*parts: nn.Module) -> list[nn.Module]:
        return [m for part in parts for m in part.modules() if isinstance(m, nn.Conv2d)]

    ours = layers(our.backbone, our.fpn, our.rpn)
    their_rpn = their.rpn.head
    theirs = layers(their.backbone.body, their.backbone.fpn, their_rpn.conv, their_rpn.cls_logits, their_rpn.bbox_pred)
    for a, b in zip(ours, theirs, strict=True):
        a.weight.copy_(b.weight)
        if a.bias is not None:
            a.bias.copy_(b.bias)
    # Our box coder multiplies the deltas by (.1, .1, .2, .2), theirs of the RPN does not.
    scale = torch.tensor([0.1, 0.1, 0.2, 0.2]).repeat(3)
    our.rpn.box_deltas.weight /= scale[:, None, None, None]
    our.rpn.box_deltas.bias /= scale


def make(images: int, size: int) -> tuple[list[Tensor], list[dict[str, Tensor]]]:
    generator = torch.Generator().manual_seed(0)
    corners = torch.rand(images, 8, 2, generator=generator) * size * 0.6
    sides = (torch.rand(images, 8, 2, generator=generator) * 0.35 + 0.05) * size
    boxes = torch.cat([corners, corners + sides], -1)
    labels = torch.randint(0, CLASSES, (images, 8), generator=generator)
    pictures = [torch.rand(3, size, size * 4 // 3, generator=generator) for _ in range(images)]
    return pictures, [{"boxes": b, "labels": x} for b, x in zip(boxes, labels, strict=True)]


def training_step(model: nn.Module, images: list[Tensor], targets: list[dict[str, Tensor]], first: int) -> Callable:
    optimizer = torch.optim.SGD((p for p in model.parameters() if p.requires_grad), lr=1e-5, momentum=0.9)
    targets = [{"boxes": t["boxes"], "labels": t["labels"] + first} for t in targets]

    def step() -> None:
        model.train()
        optimizer.zero_grad()
        sum(model(images, targets).values()).backward()
        optimizer.step()

    return step


def inference(model: nn.Module, images: list[Tensor]) -> Callable:
    return torch.inference_mode()(lambda: model.eval()(images))


def ratio(a: Callable, b: Callable, runs: int) -> tuple[float, float, float]:
    """Medians in seconds, and the median ratio of neighbours."""
    clock = time.thread_time if torch.get_num_threads() == 1 else time.perf_counter
    seconds: list[tuple[float, float]] = []
    for _ in range(runs + 1):
        times = []
        for call in (a, b):
            start = clock()
            call()
            times.append(clock() - start)
        seconds.append((times[0], times[1]))
    first, second = zip(*seconds[1:], strict=True)
    return (
        statistics.median(first),
        statistics.median(second),
        statistics.median(x / y for x, y in zip(first, second, strict=True)),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=2)
    parser.add_argument("--size", type=int, default=320)
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--profile", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    images, targets = make(options.images, options.size)
    our, their = ours(options.size), theirs(options.size)
    calm(their, their.rpn.head.bbox_pred, images, std=0.2, bias=0)
    same_proposals(our, their)
    calm(our, our.box_head.class_logits, images, std=1, bias=-4.6)
    calm(their, their.roi_heads.box_predictor.cls_score, images, std=1, bias=0)
    if options.profile:
        step = training_step(our, images, targets, 0)
        step()
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as recorded:
            step()
        print(recorded.key_averages().table(sort_by="self_cpu_time_total", row_limit=25, max_name_column_width=50))
        return
    print(f"torch {torch.__version__}, {options.threads} threads, {options.images} images of short side {options.size}")
    for name, pair in (
        ("training step", (training_step(our, images, targets, 0), training_step(their, images, targets, 1))),
        ("inference", (inference(our, images), inference(their, images))),
    ):
        a, b, r = ratio(*pair, options.runs)
        print(f"{name:15} ours {a:.2f} s, torchvision {b:.2f} s, ratio {r:.2f}", flush=True)


if __name__ == "__main__":
    main()
