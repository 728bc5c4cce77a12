from collections import Counter

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from ranksort.data.samplers import AspectRatioBatchSampler

landscapes = st.lists(st.booleans(), min_size=1, max_size=60)
batch_sizes, world_sizes, seeds, epochs = st.integers(1, 7), st.integers(1, 4), st.integers(0, 9), st.integers(0, 9)


@given(landscape=landscapes, batch_size=batch_sizes, world_size=world_sizes, seed=seeds, epoch=epochs)
def test_an_epoch_covers_every_image_in_batches_of_one_orientation(
    landscape: list[bool], batch_size: int, world_size: int, seed: int, epoch: int
) -> None:
    ranks = [
        AspectRatioBatchSampler(landscape, batch_size, seed=seed, rank=rank, world_size=world_size)
        for rank in range(world_size)
    ]
    for sampler in ranks:
        sampler.sampler.set_epoch(epoch)
    batches = [list(sampler) for sampler in ranks]
    assert {len(b) for b in batches} == {len(sampler) for sampler in ranks} == {len(ranks[0])}
    for batch in (batch for of_rank in batches for batch in of_rank):
        assert len(batch) == batch_size
        assert len({landscape[index] for index, _ in batch}) == 1
    samples = [sample for of_rank in batches for batch in of_rank for sample in batch]
    assert {index for index, _ in samples} == set(range(len(landscape)))
    # No image is repeated more than its group needs in order to fill the last batches.
    counts, per_step = Counter(index for index, _ in samples), batch_size * world_size
    for orientation in set(landscape):
        of_group = [counts[i] for i, wide in enumerate(landscape) if wide is orientation]
        assert max(of_group) - min(of_group) <= 1
        assert sum(of_group) - len(of_group) < per_step
    assert len({seed for _, seed in samples}) == len(samples)
    assert all(0 <= seed < 2**63 for _, seed in samples)


@given(
    landscape=landscapes,
    batch_size=batch_sizes,
    seed=seeds,
    epoch=epochs,
    skipped=st.integers(0, 70),
    processes=st.sampled_from([(0, 1), (0, 2), (1, 2), (2, 3)]),
)
def test_an_epoch_is_a_function_of_seed_and_number_and_can_be_resumed(
    landscape: list[bool], batch_size: int, seed: int, epoch: int, skipped: int, processes: tuple[int, int]
) -> None:
    rank, world_size = processes
    sampler = AspectRatioBatchSampler(landscape, batch_size, seed=seed, rank=rank, world_size=world_size)
    for earlier in range(3):
        sampler.set_epoch(earlier)
        list(sampler)
    sampler.set_epoch(epoch)
    whole, length = list(sampler), len(sampler)

    resumed = AspectRatioBatchSampler(landscape, batch_size, seed=seed, rank=rank, world_size=world_size)
    resumed.set_epoch(epoch)
    resumed.skip(skipped)
    assert len(resumed) == length
    assert list(resumed) == whole[skipped:]
    assert list(resumed) == whole[skipped:]
    resumed.set_epoch(epoch + 1)
    assert len(list(resumed)) == length


def test_rounding_of_repeat_factors_adds_no_batch() -> None:
    factors = np.full(20, 1.3)
    assert factors.sum() > 26  # in floating point
    assert len(AspectRatioBatchSampler([True] * 20, 13, repeat_factors=factors)) == 2


def test_epochs_and_seeds_differ() -> None:
    landscape = [True] * 50 + [False] * 30
    orders = set()
    for seed in range(3):
        sampler = AspectRatioBatchSampler(landscape, 4, seed=seed)
        for epoch in range(3):
            sampler.set_epoch(epoch)
            batches = list(sampler)
            orders.add(tuple(index for batch in batches for index, _ in batch))
            orientations = [landscape[batch[0][0]] for batch in batches]
            assert orientations != sorted(orientations)
            assert orientations != sorted(orientations, reverse=True)
    assert len(orders) == 9
