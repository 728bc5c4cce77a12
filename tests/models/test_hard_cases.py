"""What real data have in them, for every detector without proposals: training gives finite losses and gradients, evaluation detections."""

from typing import Any

import pytest
import torch
from samples import Batch, batch, detections_of, losses_and_gradients, positives, sample

from ranksort.recipes import create_model

SIDE = 96


@pytest.fixture(
    params=[
        "ranksort_atss_r50_fpn_1x_coco",
        "ranksort_paa_r50_fpn_1x_coco",
        "ranksort_yolact_r50_55e_coco",
        "ranksort_solov2_light_448_r34_fpn_3x",
    ],
    ids=["atss", "paa", "yolact", "solov2"],
)
def model(request: pytest.FixtureRequest) -> Any:
    torch.manual_seed(0)
    small = {"backbone": "timm/test_resnet", "channels": 64, "head_convs": 1, "min_size": SIDE, "max_size": 160}
    model = create_model(request.param, num_classes=3, score_threshold=0.008, **small)
    model.transform.train_min_sizes = (SIDE,)
    return model


def _train_and_test(model: Any, data: Batch) -> tuple[dict[str, float], int]:
    """The losses, and the number of positives."""
    losses = losses_and_gradients(model, *data)
    detections_of(model, data[0])
    return {name: loss.item() for name, loss in losses.items()}, positives(model, *data)


@pytest.mark.parametrize("count", [1, 2])
def test_no_object_in_the_whole_batch(model: Any, count: int) -> None:
    losses, found = _train_and_test(model, batch(*[sample(64, 80, [])] * count))
    assert set(losses.values()) == {0.0}
    assert found == 0
    assert all(p.grad is None or not p.grad.any() for p in model.parameters())


def test_images_without_objects_among_others(model: Any) -> None:
    losses, found = _train_and_test(model, batch(sample(SIDE, 80, []), sample(SIDE, 80, [[10, 10, 60, 70, 1]])))
    assert found > 0
    assert all(loss > 0 for loss in losses.values())


@pytest.mark.parametrize(
    "objects",
    [
        [[-20, 10, 30, 60, 0]],
        [[60, 70, 140, 120, 1]],
        [[-30, -30, 130, 130, 2]],
        [[20, 93, 70, 96, 0], [3, 3, 90, 90, 0]],
        [[2, 2, 7, 7, 0], [3, 3, 93, 93, 0]],
    ],
    ids=["left", "corner", "larger than the image", "a strip", "tiny"],
)
def test_objects_cut_by_the_border_and_tiny_ones(model: Any, objects: list[list[float]]) -> None:
    losses, found = _train_and_test(model, batch(sample(SIDE, SIDE, objects), sample(70, 110, [])))
    assert found > 0
    assert losses["ranking"] > 0


def test_crowd(model: Any) -> None:
    """A hundred objects which overlap and of which many are equal, as each is there twice."""
    generator = torch.Generator().manual_seed(0)
    corners = (torch.rand(50, 2, generator=generator) * 60).round()
    sides = (torch.rand(50, 2, generator=generator) * 40 + 6).round()
    labels = torch.randint(3, (50, 1), generator=generator)
    objects = torch.cat([corners, corners + sides, labels], 1).tolist()
    losses, found = _train_and_test(model, batch(sample(SIDE, 128, objects * 2), sample(128, SIDE, objects[:1])))
    assert found > 50
    assert all(0 < loss < 20 for loss in losses.values())


def test_very_different_sizes(model: Any) -> None:
    data = batch(
        sample(20, 200, [[5, 2, 60, 18, 0]]), sample(300, 30, [[2, 40, 28, 200, 1]]), sample(7, 7, [[1, 1, 6, 6, 2]])
    )
    _train_and_test(model, data)
