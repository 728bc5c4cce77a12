"""What the tests of the three ranking losses share."""

from pathlib import Path

import numpy as np
import pytest
import torch

from ranksort.losses import _ranking, counting, positives_above

GOLDEN = Path(__file__).parents[1] / "golden" / "losses"
SHARED = Path(__file__).parents[2] / ".." / "shared" / "golden" / "losses"
DELTAS = [0.0, 0.1, 0.5, 1.0, 5.0]
# Ways of counting which otherwise only large inputs take: rows, a coarse and a fine grid, a deep tree; all negatives in place or taken out.
SMALL = {"_GRID_PAYS": 1, "_ROW": 2, "_LOGITS_PER_CELL": 1, "_FAN_OUT_BITS": 1}
WAYS = {
    "default": {},
    "coarse grid": SMALL | {"_CELLS_PER_EDGE": 1, "_FEW": -1.0},
    "fine grid, taken out": SMALL | {"_CELLS_PER_EDGE": 8, "_FEW": 1.0},
}


WAYS["accelerator"] = {"on_cpu": lambda x: False}


def count_in(way, patch):
    for name, value in WAYS[way].items():
        patch.setattr(counting if hasattr(counting, name) else positives_above, name, value)


def without_float64(patch):
    """As on a device which has none."""
    for module in (counting, _ranking):
        patch.setattr(module, "has_float64", lambda device: False)


def golden_case(name):
    """The recorded arrays of a case, from this repository or, for the large ones, from beside it."""
    for folder in (GOLDEN, SHARED):
        if (folder / f"{name}.npz").exists():
            return np.load(folder / f"{name}.npz")
    pytest.skip(f"{name}.npz is too large for this repository and lies in ../shared, which is not here")


def random_batch(positives, negatives, ignored=0, seed=0):
    """Float64 logits which overlap, rounded so that adding a constant is exact, and targets, in random order."""
    random = torch.Generator().manual_seed(seed)
    quality = torch.rand(positives, generator=random, dtype=torch.float64).clamp(min=0.01)
    targets = torch.cat([quality, quality.new_zeros(negatives), -quality.new_ones(ignored)])
    logits = 2 * torch.randn(len(targets), generator=random, dtype=torch.float64) + 2 * targets
    order = torch.randperm(len(targets), generator=random)
    return (1024 * logits[order]).round() / 1024, targets[order]


def unread_where_ignored(value, dtype, targets, logits):
    """The logits in a dtype, with `value` ("max": the dtype's largest, of both signs) wherever they are ignored."""
    logits, ignored = logits.to(dtype, copy=True), targets < 0
    if value == "max":
        signs = 1 - 2.0 * (torch.arange(int(ignored.sum())) % 2)
        logits[ignored] = signs.to(dtype) * torch.finfo(dtype).max
    else:
        logits[ignored] = float(value)
    return logits


UNREAD = ["-inf", "inf", "nan", "max"]
HALF_TO_DOUBLE = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


def assert_gradient_close(actual, expected, tolerance):
    """Compares to `tolerance` times the largest entry, the scale on which a gradient step is felt."""
    actual, expected = torch.as_tensor(actual).double(), torch.as_tensor(expected).double()
    torch.testing.assert_close(actual, expected, rtol=0, atol=tolerance * max(expected.abs().max().item(), 1e-12))
