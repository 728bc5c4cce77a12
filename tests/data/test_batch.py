from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from ranksort.data.batch import Batch, collate, data_loader
from ranksort.data.coco import CocoDataset
from ranksort.data.layouts import find_split
from ranksort.data.samplers import AspectRatioBatchSampler
from ranksort.data.transforms import training_transforms

Write = Callable[[Any], tuple[Path, Path]]


def test_collate_lists_plain_tensors(content: dict[str, Any], write: Write) -> None:
    dataset = CocoDataset(*write(content), training=True, masks=True)
    images, targets = collate([dataset[0], dataset[1]])
    assert [image.shape for image in images] == [(3, 48, 64), (3, 64, 48)]
    assert {image.dtype for image in images} == {torch.uint8}
    assert targets[0].keys() == {"boxes", "labels", "masks", "image_id"}
    assert targets[0]["masks"].dtype == torch.bool
    tensors = [*images, *(value for target in targets for value in target.values() if isinstance(value, Tensor))]
    assert {type(tensor) for tensor in tensors} == {Tensor}


def _equal(batch: Batch, other: Batch) -> bool:
    (images, targets), (other_images, other_targets) = batch, other
    return all(map(torch.equal, images, other_images)) and all(
        torch.equal(torch.as_tensor(target[key]), torch.as_tensor(other_target[key]))
        for target, other_target in zip(targets, other_targets, strict=True)
        for key in target.keys() | other_target.keys()
    )


@pytest.fixture
def dataset(shared_data: Path) -> CocoDataset:
    transform = training_transforms([64, 96, 128], 200)
    return CocoDataset(*find_split(shared_data / "coco128", "train"), training=True, masks=True, transform=transform)


def test_batches_do_not_depend_on_the_workers_and_can_be_resumed(dataset: CocoDataset) -> None:
    sampler = AspectRatioBatchSampler(dataset.landscape[:24], 4, seed=3)
    alone = list(data_loader(dataset, batch_sampler=sampler))
    torch.rand(5)
    before = torch.get_rng_state()
    loader = data_loader(dataset, batch_sampler=sampler, workers=2)
    with_workers = list(loader)
    assert torch.equal(torch.get_rng_state(), before)  # the model's random numbers do not depend on the loader
    assert len(loader) == len(alone) == len(with_workers)
    assert all(map(_equal, alone, with_workers))
    sampler.skip(3)
    assert all(map(_equal, alone[3:], loader))
    sampler.set_epoch(1)
    assert not _equal(alone[0], next(iter(loader)))


def test_evaluation_loads_each_image_of_a_process_in_order(dataset: CocoDataset) -> None:
    loader = data_loader(dataset, sampler=range(1, len(dataset), 30))
    loaded = [target["image_id"] for _, targets in loader for target in targets]
    assert loaded == dataset.image_ids[1::30]
