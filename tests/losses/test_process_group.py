"""The ranking over the examples of all processes is that of one process which has them all."""

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from ranking_cases import random_batch
from torch.utils._python_dispatch import TorchDispatchMode

from ranksort.losses import average_lrp_loss, average_precision_loss, rank_sort_loss


class Traffic(TorchDispatchMode):
    """Counts the bytes which a process gives to collective operators."""

    def __init__(self):
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        if operator.namespace == "c10d":
            given = args[1] if "allgather" in operator._opname else args[0]
            given = given if isinstance(given, (list, tuple)) else [given]
            self.bytes += sum(x.nbytes for x in given)
        return operator(*args, **(kwargs or {}))


def losses(logits, targets, errors, group=None):
    """All losses, weighted so that none can stand for another, and the gradients by logits and errors."""
    logits, errors = logits.clone().requires_grad_(), errors.clone().requires_grad_()
    values = torch.stack(
        [
            *rank_sort_loss(logits, targets, process_group=group),
            average_precision_loss(logits, targets, process_group=group),
            *average_lrp_loss(logits, targets, errors, process_group=group),
        ]
    )
    (values @ torch.arange(1.0, 6.0, dtype=values.dtype)).backward()
    return values.detach(), logits.grad, errors.grad


def batch(case):
    logits, targets = random_batch({"no positives": 0}.get(case, 37), 500, ignored=20)
    if case == "infinite where ignored":
        logits[targets < 0] = -torch.inf
    errors = torch.linspace(0, 1, 37, dtype=torch.float64)[: int((targets > 0).sum())]
    return logits, targets, errors


def cuts(case, processes, targets):
    """Where the batch is cut for the processes: unevenly; without positives, without negatives or with nothing on one of them."""
    total = len(targets)
    inner = {
        "uneven": [60, 200],
        "nothing on the first": [0, 200],
        "no positives on the first": [int((targets > 0).int().argmax()), 300],
        "no positives": [60, 200],
        "infinite where ignored": [60, 200],
    }[case]
    return [0, *inner[: processes - 1], total]


def work(rank, processes, store, case, results):
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=processes)
    logits, targets, errors = batch(case)
    ends = cuts(case, processes, targets)
    mine = slice(ends[rank], ends[rank + 1])
    number = torch.cumsum(targets > 0, 0)
    first, last = (int(number[end - 1]) if end else 0 for end in (mine.start, mine.stop))
    with Traffic() as seen:
        parts = losses(logits[mine], targets[mine], errors[first:last], dist.group.WORLD)
    results.put((rank, [x.tolist() for x in parts], seen.bytes))
    dist.destroy_process_group()


@pytest.mark.parametrize(
    ("case", "processes"),
    [
        ("uneven", 2),
        ("uneven", 3),
        ("nothing on the first", 3),
        ("no positives on the first", 3),
        ("no positives", 2),
        ("infinite where ignored", 2),
    ],
)
def test_processes_rank_together(case, processes, tmp_path):
    context = mp.get_context("spawn")
    results = context.SimpleQueue()
    mp.start_processes(work, (processes, tmp_path / "store", case, results), processes, start_method="spawn")
    parts = sorted(results.get() for _ in range(processes))
    expected = losses(*batch(case))
    for _, (values, *_), _ in parts:
        torch.testing.assert_close(torch.tensor(values, dtype=torch.float64), expected[0], rtol=0, atol=1e-12)
    for k in (1, 2):
        joined = torch.tensor([x for _, part, _ in parts for x in part[k]], dtype=torch.float64)
        torch.testing.assert_close(joined, expected[k], rtol=0, atol=1e-12)
    # Per call: the number of positives; two (aLRP: one more) values for each; two for each of 2P + 1 intervals.
    positives = int((batch(case)[1] > 0).sum())
    assert all(sent <= 4 * 8 + 7 * 8 * positives + 3 * 2 * 8 * (2 * positives + 1) for *_, sent in parts)


def work_with_a_fault(rank, processes, store, fault, results):
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=processes)
    logits, targets, errors = batch("uneven")
    if rank == 0 and fault == "NaN":
        logits[0] = torch.nan
    elif rank == 0 and fault == "shape":
        targets = targets[1:]
    elif rank == 0:
        targets[0] = 7
    messages = []
    for loss in (
        lambda: rank_sort_loss(logits, targets, process_group=dist.group.WORLD),
        lambda: average_lrp_loss(logits, targets, errors, process_group=dist.group.WORLD),
    ):
        try:
            loss()
        except ValueError as error:
            messages.append(str(error))
    results.put((rank, messages))
    dist.destroy_process_group()


@pytest.mark.parametrize(
    ("fault", "message"), [("NaN", "must be finite"), ("shape", "the same shape"), ("above 1", "is 7")]
)
def test_bad_input_of_one_process_stops_all(fault, message, tmp_path):
    results = mp.get_context("spawn").SimpleQueue()
    mp.start_processes(work_with_a_fault, (2, tmp_path / "store", fault, results), 2, start_method="spawn")
    (_, own), (_, other) = sorted(results.get() for _ in range(2))
    assert len(own) == len(other) == 2
    assert all(message in text for text in own[:1])
    assert all("another process" in text for text in other)
