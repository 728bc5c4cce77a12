"""Real crowded images: identical, nested and tiny boxes, 112 and 230 objects, and an image without any beside them.

All seven detectors learn from them, and what they match to what agrees with loops.
"""

from typing import Any

import pytest
import torch
from oracles import atss as atss_oracle
from oracles import rcnn as rcnn_oracle
from oracles import solov2 as solov2_oracle
from published import GoldenInput, golden_input
from torch import Tensor

from ranksort.models.anchors import AnchorGenerator
from ranksort.models.matchers import match_atss, match_iou
from ranksort.models.rpn import RPN
from ranksort.models.solov2 import GRIDS, LIGHT_RANGES, match_cells
from ranksort.recipes import create_model

CROWDS = ["set2_p1", "set2_p2", "set2_p4"]  # 0 and 112 objects; 32 and 14, some identical or a pixel wide; 230
DETECTORS = {
    "faster_rcnn": "ranksort_faster_rcnn_r50_fpn_1x_coco",
    "cascade_rcnn": "ranksort_cascade_rcnn_r50_fpn_1x_coco",
    "mask_rcnn": "ranksort_mask_rcnn_r50_fpn_1x_coco",
    "atss": "ranksort_atss_r50_fpn_1x_coco",
    "paa": "ranksort_paa_r50_fpn_1x_coco",
    "solov2": "ranksort_solov2_light_448_r34_fpn_3x",
}
CPU = torch.device("cpu")


def _given(name: str) -> GoldenInput:
    return golden_input(f"../inputs/{name}.npz")


def _learns(recipe: str, given: GoldenInput, **overrides: Any) -> None:
    torch.manual_seed(0)
    small = {"backbone": "timm/test_resnet", "channels": 64, "head_convs": 1, "proposals": 300}
    model = create_model(recipe, **(small | overrides))
    losses, quality, *_ = model.train().losses(given.batch, given.targets)
    assert all(bool(loss.isfinite()) and 0 < loss < 20 for loss in losses.values()), losses
    sum(losses.values()).backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in model.parameters() if p.requires_grad)
    assert len(quality) > sum(len(target["labels"]) for target in given.targets) / 2
    with torch.no_grad():
        for d in model.eval().detect(given.batch):
            assert all(bool(x.isfinite().all()) for x in d.values() if x.is_floating_point())


@pytest.mark.parametrize("name", ["set2_p1", "set2_p4"])
@pytest.mark.parametrize("detector", DETECTORS)
def test_learns_from_crowds(detector: str, name: str) -> None:
    _learns(DETECTORS[detector], _given(name))


def test_yolact_learns_from_crowds() -> None:
    _learns("ranksort_yolact_r50_55e_coco", _given("set2_y1"))


def _anchors(generator: AnchorGenerator, height: int, width: int) -> list[Tensor]:
    sizes = [(-(-height // stride), -(-width // stride)) for stride in (round(s) for s in generator.strides)]
    return generator(sizes, CPU)


DENSE = AnchorGenerator((8, 16, 32, 64, 128), [4 * 2 ** (i / 3) for i in range(3)])
YOLACT = AnchorGenerator((550 / 69, 550 / 35, 550 / 18, 550 / 9, 110), [3], [0.5, 1, 2], (8, 16, 32, 64, 128), 0.5)


@pytest.mark.parametrize(
    ("anchors", "thresholds", "one_best", "name"),
    [
        (RPN(64).anchors, (0.7, 0.3, 0.3), False, "set2_p1"),
        (RPN(64).anchors, (0.7, 0.3, 0.3), False, "set2_p2"),
        (DENSE, (0.1, 0.1, 0), False, "set2_p2"),
        (DENSE, (0.1, 0.1, 0), False, "set2_p4"),
        (YOLACT, (0.5, 0.4, 0), True, "set2_y1"),
        (YOLACT, (0.5, 0.4, 0), True, "set2_y2"),
    ],
)
def test_matching_by_iou_agrees_with_loops(
    anchors: AnchorGenerator, thresholds: tuple[float, float, float], one_best: bool, name: str
) -> None:
    given = _given(name)
    all_anchors = torch.cat(_anchors(anchors, *given.batch.pixels.shape[-2:]))
    positive, negative, low_quality = thresholds
    for target in given.targets:
        ours = match_iou(
            all_anchors,
            target["boxes"],
            positive=positive,
            negative=negative,
            low_quality=low_quality,
            one_best=one_best,
        )
        assert ours.tolist() == rcnn_oracle.match_iou(all_anchors, target["boxes"], *thresholds, one_best)
        if low_quality == 0:  # all but those whose best anchor another one took
            assert len(ours[ours >= 0].unique()) > 0.8 * len(target["boxes"]) - 1


@pytest.mark.parametrize("name", CROWDS)
def test_atss_agrees_with_loops(name: str) -> None:
    given = _given(name)
    height, width = given.batch.pixels.shape[-2:]
    levels = _anchors(DENSE, height, width)
    inside = [torch.ones(len(level), dtype=torch.bool) for level in levels]
    for target in given.targets:
        generator = torch.Generator().manual_seed(0)
        # Moved a little: of equally near anchors any may be candidates.
        boxes = target["boxes"][:60] + 0.05 * torch.rand(len(target["boxes"][:60]), 1, generator=generator)
        expected = atss_oracle.assign([x.tolist() for x in levels], boxes.tolist(), [x.tolist() for x in inside])
        ours = match_atss(levels, boxes, inside).tolist()
        different = [(a, b) for a, b in zip(ours, expected.owner, strict=True) if a != b]
        assert len(different) <= (0 if expected.margin > 1e-4 else 3), (different, expected.margin)


@pytest.mark.parametrize("name", CROWDS)
def test_solov2_agrees_with_loops(name: str) -> None:
    given = _given(name)
    size = (given.batch.pixels.shape[2], given.batch.pixels.shape[3])
    for target in given.targets:
        boxes, masks = target["boxes"][:60], target["masks"][:60]
        expected = solov2_oracle.match(boxes.tolist(), masks.tolist(), size, list(LIGHT_RANGES), list(GRIDS))
        ours = match_cells(boxes, masks, size, LIGHT_RANGES).tolist()
        different = [(a, b) for a, b in zip(ours, expected.owner, strict=True) if a != b]
        assert len(different) <= (0 if expected.margin > 1e-4 else 3), (different, expected.margin)
