"""Distribute images over batches and processes."""

from collections.abc import Iterator, Sequence

import numpy as np
from torch.utils.data import Sampler

from .lvis import random_repeats


class AspectRatioBatchSampler(Sampler[list[tuple[int, int]]]):
    """Batches of images with the same orientation, to reduce padding, reshuffled each epoch.

    As published, the images of each orientation are shuffled and some of them repeated until they fill a whole number of batches on every
    process; the batches of both orientations are then shuffled. An epoch depends only on `seed` and its number, and has a seed for the
    augmentation of each image.

    Args:
        landscape: for each image, whether it is wider than high.
        batch_size: images per batch on one process.
        repeat_factors: for each image, how often an epoch uses it on average (`ranksort.data.lvis`); by default once.
        seed: seed of the shuffling; the same on all processes.
        rank: index of this process.
        world_size: number of processes. All have the same number of batches in all epochs, and every image is in one of them.

    Yields:
        Lists of (index, seed), the indices of `CocoDataset`.

    Examples:
        >>> from ranksort.data.samplers import AspectRatioBatchSampler
        >>> sampler = AspectRatioBatchSampler([True, False, True, False], batch_size=2, seed=0)
        >>> sorted(sorted(index for index, seed in batch) for batch in sampler)  # landscape and portrait images apart
        [[0, 2], [1, 3]]
    """

    def __init__(
        self,
        landscape: Sequence[bool],
        batch_size: int,
        *,
        repeat_factors: np.ndarray | None = None,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        wide = np.asarray(landscape, dtype=bool)
        self.groups = [group for group in (np.flatnonzero(wide), np.flatnonzero(~wide)) if len(group)]
        self.factors = np.ones(len(wide)) if repeat_factors is None else repeat_factors
        self.batch_size, self.seed, self.rank, self.world_size = batch_size, seed, rank, world_size
        self.epoch = 0
        self._skipped: dict[int, int] = {}

    @property
    def sampler(self) -> "AspectRatioBatchSampler":
        """The sampler itself: Lightning calls `batch_sampler.sampler.set_epoch`."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """Choose the shuffling of the next iteration."""
        self.epoch = epoch

    def skip(self, batches: int) -> None:
        """Let iterations of the current epoch start after this many batches, to resume within it."""
        self._skipped = {self.epoch: batches}

    def __len__(self) -> int:
        """The batches of a whole epoch on this process."""
        return sum(map(self._num_batches, self.groups))

    def _num_batches(self, group: np.ndarray) -> int:
        return int(-(-self.factors[group].sum().round(6) // (self.batch_size * self.world_size)))

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        rng = np.random.default_rng((self.seed, self.epoch))
        per_step = self.batch_size * self.world_size
        filled = []
        for group in self.groups:
            repeated = np.repeat(group, random_repeats(self.factors[group], rng))
            # np.resize repeats the shuffled group from its start.
            filled.append(np.resize(rng.permutation(repeated), self._num_batches(group) * per_step))
        indices = rng.permutation(np.concatenate(filled).reshape(-1, self.batch_size))
        seeds = rng.integers(2**63, size=indices.shape)
        mine = slice(self.rank + self._skipped.get(self.epoch, 0) * self.world_size, None, self.world_size)
        for batch, sample_seeds in zip(indices[mine].tolist(), seeds[mine].tolist(), strict=True):
            yield list(zip(batch, sample_seeds, strict=True))
