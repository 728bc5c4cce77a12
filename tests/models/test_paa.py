"""The assignment of PAA against loops with scikit-learn; the whole detector is in `test_atss_and_paa.py`."""

from collections import Counter

import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from oracles import paa as oracle
from torch import Tensor

from ranksort.models.paa import candidate_losses, choose_positives


def _choose(losses: Tensor, owner: list[int], level: list[int], objects: int, levels: int) -> set[int]:
    chosen = choose_positives(
        losses,
        torch.tensor(owner, dtype=torch.long),
        torch.tensor(level, dtype=torch.long),
        num_objects=objects,
        num_levels=levels,
    ).tolist()
    assert len(set(chosen)) == len(chosen)
    return set(chosen)


@settings(max_examples=60, deadline=None)
@example(seed=65203, candidates=10, objects=2, levels=1, digits=6)  # two equally likely
@given(
    seed=st.integers(0, 2**31),
    candidates=st.integers(0, 200),
    objects=st.integers(1, 6),
    levels=st.integers(1, 5),
    digits=st.sampled_from([1, 6]),  # with one digit many losses are equal
)
def test_agrees_with_the_paper(seed: int, candidates: int, objects: int, levels: int, digits: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    losses = (0.5 + 4 * torch.rand(candidates, generator=generator) ** 2).round(decimals=digits)
    owner = torch.randint(objects, (candidates,), generator=generator).tolist()
    level = torch.randint(levels, (candidates,), generator=generator).tolist()
    ours = _choose(losses, owner, level, objects, levels)
    certain, possible = oracle.choose(losses.double().tolist(), owner, level)
    if digits > 1:
        assert certain <= ours <= possible
    else:  # which of equal losses are among the best 9 is open
        least, found, most = (Counter(losses[list(chosen)].tolist()) for chosen in (certain, ours, possible))
        assert least <= found <= most


def test_of_equal_losses_all_are_positive() -> None:
    assert _choose(torch.full((7,), 1.25), [0] * 7, [0, 0, 0, 1, 1, 2, 2], 1, 3) == set(range(7))


def test_object_with_one_candidate_gets_none_and_with_two_the_better() -> None:
    losses = torch.tensor([0.5, 0.9, 3.5])
    assert _choose(losses, [0, 2, 2], [0, 1, 1], 3, 2) == {1}


def test_no_candidates() -> None:
    assert _choose(torch.zeros(0), [], [], 4, 5) == set()
    assert _choose(torch.zeros(0), [], [], 0, 5) == set()


def test_candidate_losses() -> None:
    """Focal loss (α = 1/4, γ = 2) of all classes plus GIoU loss, by hand."""
    probabilities = torch.tensor([[0.8, 0.1]])
    box, target = torch.tensor([[0.0, 0, 2, 2]]), torch.tensor([[0.0, 0, 2, 4]])
    ours = candidate_losses(probabilities.logit(), torch.tensor([0]), box, target)
    focal = -0.25 * 0.2**2 * torch.tensor(0.8).log() - 0.75 * 0.1**2 * torch.tensor(0.9).log()
    torch.testing.assert_close(ours, (focal + 0.5)[None])
