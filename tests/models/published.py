"""The published models on the golden data: weights by the rule of its README, inputs, and comparison with what was recorded."""

import functools
import json
import math
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torchvision.ops import box_iou

from ranksort.models.images import ImageBatch, Size
from ranksort.published import convert_checkpoint

GOLDEN = Path(__file__).resolve().parents[2] / "../shared/golden"

_FACTORS = {  # of weights by the end of their name
    "conv_offset.weight": 0.1,
    "rpn_cls.weight": 0.5,
    "rpn_reg.weight": 0.2,
    "fc_cls.weight": 0.4,
    "fc_reg.weight": 0.2,
    "atss_reg.weight": 0.4,
    "conv_reg.weight": 0.2,
    "conv_cls.weight": 0.5,
    "conv_coeff.weight": 0.2,
    "solo_kernel.weight": 0.25,
}
_CLASSIFIER_BIASES = ("fc_cls.bias", "atss_cls.bias", "conv_cls.bias", "solo_cate.bias")


def golden_file(name: str) -> Path:
    """The path of a golden file; skips the test where there is none."""
    path = GOLDEN / name
    if not path.is_file():
        pytest.skip(f"the golden data of the published models is not at {GOLDEN} ({name})")
    return path


@functools.cache
def golden_json(name: str) -> Any:
    return json.loads(golden_file(name).read_text())


def published_entry(key: str, shape: Iterable[int], dtype: str, seed_offset: int = 0) -> Tensor:
    """The tensor which the rule gives for one entry of a published state dict."""
    shape = tuple(shape)
    if key.endswith("running_mean"):
        return torch.zeros(shape)
    if key.endswith("running_var"):
        return torch.ones(shape)
    if dtype.startswith("int"):
        return torch.zeros(shape, dtype=torch.int64)
    if key.endswith("bias"):
        return torch.full(shape, -5.0 if key.endswith(_CLASSIFIER_BIASES) else 0.0)
    if len(shape) >= 2:
        generator = torch.Generator().manual_seed(zlib.crc32(key.encode()) + seed_offset)
        factor = 0.25 if key.startswith("neck.lateral_convs.") else 1.0
        factor = next((f for end, f in _FACTORS.items() if key.endswith(end)), factor)
        return torch.randn(shape, generator=generator) * (math.sqrt(2 / math.prod(shape[1:])) * factor)
    halved = key.startswith("backbone.layer") and key.endswith((".bn2.weight", ".bn3.weight"))
    return torch.full(shape, 0.5 if halved else 1.0)


def published_entries(recipe: str) -> list[tuple[str, list[int], str]]:
    """Name, shape and type of everything in the published state dict of a recipe."""
    return [tuple(entry) for entry in golden_json(f"state_dicts/{recipe}.json")]


def published_state_dict(recipe: str, seed_offset: int = 0) -> dict[str, Tensor]:
    """A published state dict, filled by the rule."""
    return {key: published_entry(key, shape, dtype, seed_offset) for key, shape, dtype in published_entries(recipe)}


class GoldenInput(NamedTuple):
    """Two real images.

    Attributes:
        batch: as the published network takes them.
        targets: `boxes`, `labels` and `masks` (bool, of the unpadded size) in pixels of the batch.
        images: RGB in 0..1, [3, H, W] each, before normalisation and padding.
    """

    batch: ImageBatch
    targets: list[dict[str, Tensor]]
    images: list[Tensor]


def golden_input(
    name: str = "input_padded.npz",
    mean: tuple[float, float, float] = (123.675, 116.28, 103.53),
    std: tuple[float, float, float] = (58.395, 57.12, 57.375),
) -> GoldenInput:
    """Reads a golden input whose recipe normalises by `mean` and `std`."""
    with np.load(golden_file(f"models/{name}")) as file:
        data = dict(file)
    pixels = torch.tensor(data["img"]).float()
    sizes: list[Size] = [tuple(data[f"img_shape_{i}"][:2].tolist()) for i in range(len(pixels))]
    originals: list[Size] = [tuple(data[f"ori_shape_{i}"][:2].tolist()) for i in range(len(pixels))]
    targets, images = [], []
    for i, (height, width) in enumerate(sizes):
        masks = np.unpackbits(data[f"masks_packed_{i}"], axis=-1)[..., : data[f"masks_shape_{i}"][-1]]
        targets.append(
            {
                "boxes": torch.tensor(data[f"boxes_{i}"]),
                "labels": torch.tensor(data[f"labels_{i}"]).long(),
                "masks": torch.tensor(masks[:, :height, :width]).bool(),
            }
        )
        image = pixels[i] * torch.tensor(std).view(3, 1, 1) + torch.tensor(mean).view(3, 1, 1)
        images.append(image[:, :height, :width] / 255)
    return GoldenInput(ImageBatch(pixels, sizes, originals), targets, images)


@functools.cache
def published_names(recipe: str) -> dict[str, str]:
    """Our name -> the published one, by sending numbered tensors through the conversion."""
    entries = published_entries(recipe)
    markers = {key: torch.full(shape, i) for i, (key, shape, _) in enumerate(entries)}
    return {ours: entries[int(marker.flatten()[0])][0] for ours, marker in convert_checkpoint(markers, recipe).items()}


def assert_same_gradients(model: nn.Module, folder: str, names: dict[str, str]) -> None:
    """Compares the norm of the gradient of every trained parameter with models/`folder`/train.json; for `names`, see `published_names`."""
    expected = golden_json(f"models/{folder}/train.json")["grad_norms"]
    ours = {
        names[name]: None if p.grad is None else p.grad.norm().item()
        for name, p in model.named_parameters()
        if p.requires_grad
    }
    assert ours.keys() == expected.keys()
    wrong = {
        key: (norm, expected[key])
        for key, norm in ours.items()
        if (norm or 0.0) != pytest.approx(expected[key] or 0.0, rel=5e-3, abs=1e-9)
    }
    assert not wrong


def assert_same_map(ours: Tensor, folder: str, name: str) -> None:
    """Compares a feature map [B, C, H, W] with the statistics and values recorded for `name` in models/`folder`/eval.*."""
    expected = golden_json(f"models/{folder}/eval.json")["stats"][name]
    assert list(ours.shape) == expected["shape"], name
    tolerance = 1e-3 * expected["absmax"]
    for statistic, value in (("mean", ours.mean()), ("std", ours.std()), ("absmax", ours.abs().max())):
        assert value.item() == pytest.approx(expected[statistic], abs=tolerance), f"{name}: {statistic}"
    flat = ours.flatten()
    with np.load(golden_file(f"models/{folder}/eval.npz")) as file:
        strided = torch.arange(50) * len(flat) // 50
        for values, recorded in ((flat[:50], "first50"), (flat[strided], "strided50")):
            torch.testing.assert_close(
                values,
                torch.tensor(file[f"{name}/{recorded}"]),
                rtol=0,
                atol=tolerance,
                msg=lambda m, what=f"{name}/{recorded}": f"{what}: {m}",
            )


def assert_same_levels(levels: list[Tensor], sizes: list[Size], folder: str, name: str) -> None:
    """Compares what a head says about the anchors of each level, [B, A_l, values], by `assert_same_map`."""
    for level, (x, (height, width)) in enumerate(zip(levels, sizes, strict=True)):
        assert_same_map(x.reshape(len(x), height, width, -1).permute(0, 3, 1, 2), folder, f"{name}/{level}")


def assert_same_detections(ours: list[dict[str, Tensor]], folder: str, kind: str, swaps: int = 2) -> None:
    """Compares detections with those recorded as `kind` in models/`folder`/eval.npz.

    The same number, and each has one of the same label, IoU above .995 and score within 2e-4 on the other side. As many as `swaps`
    of either side may have none, if their score is within 1e-3 of the lowest: the cut at 100 detections goes through near ties.
    """
    with np.load(golden_file(f"models/{folder}/eval.npz")) as file:
        for i, d in enumerate(ours):
            boxes, scores, labels = (
                torch.tensor(file[f"{kind}/det_{x}_{i}"]).to(d[x]) for x in ("boxes", "scores", "labels")
            )
            assert len(scores) == len(d["scores"])
            same = (
                (box_iou(d["boxes"], boxes) > 0.995)
                & (d["labels"][:, None] == labels)
                & ((d["scores"][:, None] - scores).abs() <= 2e-4)
            )
            cut = scores.min() + 1e-3
            for side, (alone, score) in {
                "ours": (~same.any(1), d["scores"]),
                "published": (~same.any(0), scores),
            }.items():
                assert int(alone.sum()) <= swaps, f"{kind}, image {i}: {int(alone.sum())} of {side} have no counterpart"
                assert bool((score[alone] < cut).all()), f"{kind}, image {i}: {side} has a high one without counterpart"


def assert_same_masks(masks: Tensor, recorded: list[dict[str, Any]]) -> None:
    """Compares masks, bool [D, H, W], with run-length encoded ones in the same order: IoU above .995, or a few pixels of difference."""
    from pycocotools import mask as rle

    for ours, theirs in zip(masks, recorded, strict=True):
        wanted = torch.tensor(rle.decode(theirs)).bool()
        assert ours.shape == wanted.shape
        different, union = int((ours ^ wanted).sum()), int((ours | wanted).sum())
        assert different <= max(5, 0.005 * union)
