"""RS detectors vs. torchvision's, all with ResNet-50 and FPN: a training step, and inference.

python benchmarks/detector_speed.py faster_rcnn --images 2 --size 320 --runs 7 [--profile]
python benchmarks/detector_speed.py faster_rcnn retinanet fcos --images 2 8 --size 800 --runs 10 --device cuda

`faster_rcnn` compares RS Faster R-CNN with torchvision's Faster R-CNN, which is set to as many regions per image as ours, which uses
all of its proposals. `retinanet` and `fcos` compare RS-ATSS with these two, with group norm in the heads, as in ATSS: RetinaNet has 9
anchors per location; FCOS, like ATSS, has one. Both detectors of a pair get the same images and objects in one process, alternating, in
the same memory format, and with a frozen stem, first stage and batch norm statistics. With `--threads 1`, CPU time is measured, which
other jobs on the machine hardly affect. `--profile` shows the parts of our step that take the time.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torchvision.models.detection import FCOS, FasterRCNN, RetinaNet
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.models.detection.retinanet import RetinaNetHead
from torchvision.ops import FrozenBatchNorm2d
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

from ranksort import create_model

CLASSES = 80


OURS = {
    "faster_rcnn": "ranksort_faster_rcnn_r50_fpn_1x_coco",
    "retinanet": "ranksort_atss_r50_fpn_1x_coco",
    "fcos": "ranksort_atss_r50_fpn_1x_coco",
}


def theirs(peer: str, size: int) -> nn.Module:
    settings = {"backbone_name": "resnet50", "weights": None, "norm_layer": FrozenBatchNorm2d, "trainable_layers": 3}
    sizes = {"min_size": size, "max_size": 2 * size}
    if peer == "faster_rcnn":
        # The objects themselves, at most 8, are also regions.
        regions = {"rpn_post_nms_top_n_train": 1000, "box_batch_size_per_image": 1008, "box_positive_fraction": 1.0}
        return FasterRCNN(resnet_fpn_backbone(**settings), CLASSES + 1, **sizes, **regions)
    backbone = resnet_fpn_backbone(**settings, returned_layers=[2, 3, 4], extra_blocks=LastLevelP6P7(256, 256))
    if peer == "fcos":
        return FCOS(backbone, CLASSES, **sizes)
    head = RetinaNetHead(256, 9, CLASSES, norm_layer=partial(nn.GroupNorm, 32))
    return RetinaNet(backbone, CLASSES, head=head, **sizes)


def ours(peer: str, size: int) -> nn.Module:
    return create_model(OURS[peer], min_size=size, max_size=2 * size, score_threshold=0.05)  # torchvision's threshold


def with_same_regions(our: nn.Module, their: nn.Module, images: list[Tensor]) -> None:
    """Give two Faster R-CNNs about the same regions, and scores as after some training."""
    calm(their, their.rpn.head.bbox_pred, images, std=0.2, bias=0)
    same_proposals(our, their)
    calm(our, our.box_head.class_logits, images, std=1, bias=-4.6)
    calm(their, their.roi_heads.box_predictor.cls_score, images, std=1, bias=0)


def calm(model: nn.Module, layer: nn.Module, images: list[Tensor], std: float, bias: float) -> None:
    """Give the outputs of a layer of an untrained network the spread of a slightly trained one."""
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
    """Give both the same backbone, pyramid and RPN, so that they have about the same regions."""

    def layers(*parts: nn.Module) -> list[nn.Module]:
        return [m for part in parts for m in part.modules() if isinstance(m, nn.Conv2d)]

    ours = layers(our.backbone, our.fpn, our.rpn)
    their_rpn = their.rpn.head
    theirs = layers(their.backbone.body, their.backbone.fpn, their_rpn.conv, their_rpn.cls_logits, their_rpn.bbox_pred)
    for a, b in zip(ours, theirs, strict=True):
        a.weight.copy_(b.weight)
        if a.bias is not None:
            a.bias.copy_(b.bias)
    # Our box coder multiplies the deltas by (.1, .1, .2, .2), that of torchvision's RPN does not.
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


def ratio(a: Callable, b: Callable, runs: int, device: torch.device) -> tuple[float, float, float]:
    """Medians in seconds, and the median ratio of neighbouring runs."""
    on_one_core = device.type == "cpu" and torch.get_num_threads() == 1
    clock = time.thread_time if on_one_core else time.perf_counter
    seconds: list[tuple[float, float]] = []
    for _ in range(runs + 2):  # the first two warm up
        times = []
        for call in (a, b):
            start = clock()
            call()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            times.append(clock() - start)
        seconds.append((times[0], times[1]))
    first, second = zip(*seconds[2:], strict=True)
    return (
        statistics.median(first),
        statistics.median(second),
        statistics.median(x / y for x, y in zip(first, second, strict=True)),
    )


def show_profile(step: Callable, device: torch.device) -> None:
    step()
    activities = [torch.profiler.ProfilerActivity.CPU]
    activities += [torch.profiler.ProfilerActivity.CUDA] if device.type == "cuda" else []
    with torch.profiler.profile(activities=activities) as recorded:
        step()
    by = "self_cuda_time_total" if device.type == "cuda" else "self_cpu_time_total"
    print(recorded.key_averages().table(sort_by=by, row_limit=25, max_name_column_width=50))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("peers", nargs="*", choices=list(OURS), default=["faster_rcnn"])
    parser.add_argument("--images", type=int, nargs="+", default=[2])
    parser.add_argument("--size", type=int, default=320)
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", type=torch.device, default="cpu")
    parser.add_argument("--profile", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    device: torch.device = options.device
    cuda = device.type == "cuda"
    name = torch.cuda.get_device_name(device) if cuda else f"{options.threads} threads"
    print(f"torch {torch.__version__}, {name}, images of short side {options.size}, median of {options.runs}")
    for peer in options.peers:
        torch.manual_seed(0)
        images, targets = make(max(options.images), options.size)
        pair = ours(peer, options.size), theirs(peer, options.size)
        if peer == "faster_rcnn":
            with_same_regions(*pair, images[:2])
        our, their = (model.to(device, memory_format=torch.channels_last) for model in pair)
        images = [image.to(device) for image in images]
        targets = [{key: value.to(device) for key, value in target.items()} for target in targets]
        first = 1 if peer == "faster_rcnn" else 0
        if options.profile:
            show_profile(training_step(our, images, targets, 0), device)
            continue
        for number in options.images:
            some, some_targets = images[:number], targets[:number]
            steps = training_step(our, some, some_targets, 0), training_step(their, some, some_targets, first)
            for what, calls in (
                ("training step", steps),
                ("inference", (inference(our, some), inference(their, some))),
            ):
                a, b, r = ratio(*calls, options.runs, device)
                print(
                    f"{peer:12} {number} images, {what:14} ours {1000 * a:.1f} ms, torchvision {1000 * b:.1f} ms, ratio {r:.2f}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
