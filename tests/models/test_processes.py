"""Every detector on several processes: gradients are their mean, and with global ranking those of one process with all images."""

import dataclasses
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from samples import Batch, batch, sample
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ranksort.models import Detector
from ranksort.recipes import create_model, get_recipe

MODELS = [  # recipe, loss
    ("atss_r50_fpn_1x_coco", "rank_sort"),
    ("paa_r50_fpn_1x_coco", "rank_sort"),
    ("faster_rcnn_r50_fpn_1x_coco", "rank_sort"),
    ("cascade_rcnn_r50_fpn_1x_coco", "rank_sort"),
    ("mask_rcnn_r50_fpn_1x_coco", "rank_sort"),
    ("yolact_r50_55e_coco", "rank_sort"),
    ("solov2_r101_fpn_3x", "rank_sort"),
    ("solov2_light_448_r34_fpn_3x", "rank_sort"),
    ("mask_rcnn_r50_fpn_1x_coco", "average_lrp"),
    ("yolact_r50_55e_coco", "average_precision"),
]
# Of each process the objects of its images. Of a tiny object the RPN has no positive anchor, and the box head has the object itself.
FIRST, SECOND, THIRD = [[10, 10, 60, 50, 0], [70, 30, 110, 90, 1]], [[20, 30, 80, 90, 2]], [[5, 40, 90, 85, 1]]
TINY = [[50, 50, 53, 53, 0]]
CASES: dict[int, dict[str, list[list[list[list[int]]]]]] = {
    2: {
        "an image each": [[FIRST], [SECOND]],
        "one head without positives": [[TINY], [FIRST]],
        "nothing anywhere": [[[]], [[]]],
    },
    3: {"two on one, nothing on another": [[FIRST, TINY], [[]], [THIRD]]},
}
Outcome = tuple[dict[str, Tensor], dict[str, Tensor]]  # losses and gradients by name


def build(recipe: str, loss: str, global_ranking: bool) -> Detector:
    chosen = get_recipe(f"ranksort_{recipe}")
    chosen.training = dataclasses.replace(chosen.training, global_ranking=global_ranking)
    torch.manual_seed(0)
    small: dict[str, Any] = {
        "backbone": "timm/test_resnet",
        "channels": 64,
        "head_convs": 1,
        "min_size": 96,
        "max_size": 160,
    }
    # Without a trained backbone, which adds nothing here, there is a tenth of the gradients to exchange; in float64 little but the loss
    # rounds, else a ReLU may switch.
    return create_model(chosen, num_classes=3, proposals=50, loss=loss, frozen_stages=4, **small).double().train()


def images_of(case: list[list[list[list[int]]]]) -> list[Batch]:
    """The batch of each process. All images have one size: what is padded is seen by the heads' norms."""
    torch.manual_seed(1)
    batches = [batch(*[sample(96, 128, objects) for objects in images]) for images in case]
    return [([image.double() for image in images], targets) for images, targets in batches]


def outcome(model: nn.Module, data: Batch) -> Outcome:
    model.zero_grad()
    losses = model(*data)
    sum(losses.values()).backward()
    inner = model.module if isinstance(model, DistributedDataParallel) else model
    gradients = {name: p.grad for name, p in inner.named_parameters() if p.requires_grad}
    assert all(gradient is not None for gradient in gradients.values())
    return {name: loss.detach() for name, loss in losses.items()}, {
        name: some_of(gradient) for name, gradient in gradients.items() if gradient is not None
    }


def some_of(gradient: Tensor) -> Tensor:
    """At most 10,000 elements from all over it: a box head has millions."""
    return gradient.flatten()[:: gradient.numel() // 10_000 + 1].clone()


def work(rank: int, processes: int, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=processes, timeout=timedelta(seconds=60)
    )
    found = {}
    for recipe, loss in MODELS:
        mine = {case: images_of(parts)[rank] for case, parts in CASES[processes].items()}
        for way in ("alone", "mean", "global"):
            model: nn.Module = build(recipe, loss, way == "global")
            model = model if way == "alone" else DistributedDataParallel(model)  # without find_unused_parameters
            found |= {(recipe, loss, way, case): outcome(model, images) for case, images in mine.items()}
    if rank == 0:  # evaluation is of each process's own images, of which others may have fewer
        model = build(*MODELS[0], True).eval()
        model.losses(*model.transform(*next(iter(mine.values()))))
    torch.save(found, folder / f"{rank}.pt")
    dist.destroy_process_group()


# Two minutes of CPU time; two processes are enough for every day.
NUMBERS = [pytest.param(number, marks=[pytest.mark.slow] if number > 2 else []) for number in CASES]


@pytest.fixture(scope="module", params=NUMBERS)
def results(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[dict[Any, Outcome]]:
    """What each of the processes has found."""
    folder = tmp_path_factory.mktemp("processes")
    build(*MODELS[0], False)  # imports what the processes would import each
    mp.start_processes(work, (request.param, folder), request.param, start_method="fork")
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(request.param)]


def assert_equal(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """To 1e-6 of the largest of them."""
    assert found.keys() == expected.keys()
    scale = max(float(x.abs().max()) for x in expected.values())
    for name, value in found.items():
        assert float((value - expected[name]).abs().max()) <= 1e-6 * scale, name


@pytest.mark.parametrize(("recipe", "loss"), MODELS)
def test_gradients_are_the_mean_of_the_processes(results: list[dict[Any, Outcome]], recipe: str, loss: str) -> None:
    for case in CASES[len(results)]:
        alone = [part[recipe, loss, "alone", case] for part in results]
        mean = {name: torch.stack([g[name] for _, g in alone]).mean(0) for name in alone[0][1]}
        for part, (losses, _) in zip(results, alone, strict=True):
            assert_equal(part[recipe, loss, "mean", case][0], losses)
            assert_equal(part[recipe, loss, "mean", case][1], mean)


@pytest.mark.parametrize(("recipe", "loss"), MODELS)
def test_global_ranking_is_that_of_one_process_with_all_images(
    results: list[dict[Any, Outcome]], recipe: str, loss: str
) -> None:
    model = build(recipe, loss, True)
    for case, parts in CASES[len(results)].items():
        batches = images_of(parts)
        losses, gradients = outcome(model, ([x for i, _ in batches for x in i], [x for _, t in batches for x in t]))
        for part in results:
            assert_equal(part[recipe, loss, "global", case][0], losses)
            assert_equal(part[recipe, loss, "global", case][1], gradients)
