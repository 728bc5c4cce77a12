"""Coordinates and counts of pixels, which half precision cannot hold, stay exact where a detector runs in mixed precision."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from ranksort.losses import detection
from ranksort.models import anchors, roi_heads, yolact
from ranksort.models.masks import boxes_around, centres_and_areas, paste_masks
from ranksort.models.postprocess import score_voting
from ranksort.models.solov2 import mask_losses, matrix_nms_decay
from ranksort.models.yolact import assemble_masks
from ranksort.recipes import create_model, get_recipe
from ranksort.recipes.detectors import DETECTORS

LARGE = torch.zeros(3, 800, 1333, dtype=torch.bool)
LARGE[0, 100:700, 501:1300] = LARGE[1, 90:720, 480:1310] = LARGE[2, :, :901] = True
BOXES = torch.tensor([[101.0, 203.0, 1001.0, 777.0], [103.0, 205.0, 1003.0, 770.0]])


def _voted() -> Tensor:
    scores = torch.tensor([[0.9], [0.8]])
    found = {"boxes": BOXES[:1], "labels": torch.tensor([0]), "scores": scores[0]}
    return score_voting(found, BOXES, scores, score_threshold=0.05)["boxes"]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize(
    "function",
    [
        lambda: centres_and_areas(LARGE)[0],
        lambda: paste_masks(torch.linspace(0, 1, 2 * 28 * 28).view(2, 28, 28), BOXES, (800, 1333)),
        lambda: matrix_nms_decay(LARGE, torch.zeros(3, dtype=torch.int64)),
        _voted,
    ],
    ids=["centres", "pasting", "matrix NMS", "voting"],
)
def test_autocast_changes_nothing(function: Callable[[], Tensor], dtype: torch.dtype):
    expected = function()
    with torch.autocast("cpu", dtype):
        assert torch.equal(function(), expected)


def test_dice_of_large_masks_in_float16():
    """Their sums are beyond the largest float16."""
    features, kernels = torch.full((2, 300, 400), 2.0), torch.ones(1, 2)
    with torch.autocast("cpu", torch.float16):
        loss = mask_losses(features, kernels, torch.ones(1, 300, 400, dtype=torch.bool), torch.tensor([0]))
        masks = assemble_masks(features, kernels, torch.tensor([[0.0, 0.0, 400.0, 300.0]]), (300, 400))
    assert loss.dtype == masks.dtype == torch.float32
    p = torch.tensor(4.0).sigmoid()
    torch.testing.assert_close(loss, (1 - 2 * p / (p * p + 1))[None], atol=1e-5, rtol=0)


class _Watched(TorchDispatchMode):
    """Notes the types which the boxes of NMS, and the features and boxes of RoIAlign, have."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: dict[str, set[torch.dtype]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.name().partition("::")
        if name[0] == "torchvision" and name[2] in ("nms", "roi_align"):
            self.seen.setdefault(name[2], set()).update(x.dtype for x in args[:2])
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("detector", list(DETECTORS))
def test_what_half_precision_would_spoil_is_computed_in_float32(
    detector: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ranking, decoding of boxes, NMS and RoIAlign of each detector, in training and in testing."""
    seen: dict[str, set[torch.dtype]] = {}

    def watched(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            result = function(*args, **kwargs)
            tensors = [
                x for x in (*args, *(result if isinstance(result, tuple) else [result])) if isinstance(x, Tensor)
            ]
            seen.setdefault(name, set()).update(x.dtype for x in tensors if x.is_floating_point())
            return result

        return call

    for module in (anchors, roi_heads, yolact):
        if hasattr(module, "decode_boxes"):
            monkeypatch.setattr(module, "decode_boxes", watched("decoding", module.decode_boxes))
    monkeypatch.setattr(detection, "rank_sort_loss", watched("ranking", detection.rank_sort_loss))
    torch.manual_seed(0)
    model = create_model(
        get_recipe("ranksort_atss_r50_fpn_1x_coco"),
        num_classes=3,
        detector=detector,
        backbone="timm/test_resnet",
        channels=64,
        head_convs=1,
        proposals=50,
        min_size=64,
        max_size=96,
        score_threshold=0.001,
    )
    masks = torch.zeros(2, 64, 80, dtype=torch.bool)
    masks[0, 4:40, 8:60] = masks[1, 30:60, 20:50] = True
    target = {"boxes": boxes_around(masks), "labels": torch.tensor([0, 2]), "masks": masks}
    images = [torch.rand(3, 64, 80)]
    with torch.autocast("cpu", dtype), _Watched() as watch:
        losses = model(images, [target])
        (found,) = model.eval()(images)
    exact = {torch.float32}
    assert seen.pop("ranking") == exact
    assert seen == ({} if detector.startswith("solov2") else {"decoding": exact})
    expected = {"yolact": set(), "solov2": set(), "solov2_light": set(), "atss": {"nms"}, "paa": {"nms"}}
    assert watch.seen.keys() == expected.get(detector, {"nms", "roi_align"})
    assert all(types == exact for types in watch.seen.values())
    assert {loss.dtype for loss in losses.values()} == {found["boxes"].dtype, found["scores"].dtype} == exact
