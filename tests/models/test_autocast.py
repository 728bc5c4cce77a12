"""Coordinates and counts of pixels, which half precision cannot hold, stay exact where a detector runs in mixed precision."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from ranksort.models.masks import centres_and_areas, paste_masks
from ranksort.models.postprocess import score_voting
from ranksort.models.solov2 import mask_losses, matrix_nms_decay
from ranksort.models.yolact import assemble_masks

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
