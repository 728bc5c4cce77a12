"""Collate samples to batches in the convention of torchvision's detectors: lists, because image sizes differ."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Sampler

from ..interrupt import end_workers_at_exit, ignore_in_worker
from .coco import CocoDataset

Batch = tuple[list[Tensor], list[dict[str, Any]]]


def collate(samples: Iterable[tuple[Tensor, dict[str, Any]]]) -> Batch:
    """Collate samples to lists of images and targets, as plain tensors.

    Returns:
        images: uint8 [3, H, W] each; and targets: as from `CocoDataset`, with masks as bool [G, H, W].
    """
    images, targets = [], []
    for image, target in samples:
        images.append(image.as_subclass(Tensor))
        plain = {key: v.as_subclass(Tensor) if isinstance(v, Tensor) else v for key, v in target.items()}
        if "masks" in plain:
            plain["masks"] = plain["masks"].bool()
        targets.append(plain)
    return images, targets


def data_loader(
    dataset: CocoDataset,
    *,
    batch_sampler: Sampler[list[tuple[int, int]]] | None = None,
    sampler: Iterable[int] | None = None,
    workers: int = 0,
) -> "DataLoader[Any]":
    """Load batches with worker processes.

    Args:
        dataset: the data set.
        batch_sampler: for training, an `AspectRatioBatchSampler`.
        sampler: for evaluation, one image per batch: the indices of this process; by default all.
        workers: number of loader processes; 0: load in this process.
    """
    if workers:
        end_workers_at_exit()
    return DataLoader(
        dataset,
        batch_sampler=batch_sampler,
        sampler=sampler,
        num_workers=workers,
        collate_fn=collate,
        pin_memory=torch.cuda.is_available(),
        persistent_workers=workers > 0,
        worker_init_fn=ignore_in_worker,
        # The loader draws a seed for its workers each epoch; its own generator keeps the model's state unchanged.
        generator=torch.Generator(),
    )
