"""The ranking over the examples of all processes is that of one process which has them all."""

import json

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


def rank_together(rank, case, processes):
    """The losses and gradients of this process's part of the batch, and the bytes that it sent."""
    logits, targets, errors = batch(case)
    ends = cuts(case, processes, targets)
    mine = slice(ends[rank], ends[rank + 1])
    number = torch.cumsum(targets > 0, 0)
    first, last = (int(number[end - 1]) if end else 0 for end in (mine.start, mine.stop))
    with Traffic() as seen:
        parts = losses(logits[mine], targets[mine], errors[first:last], dist.group.WORLD)
    return [x.tolist() for x in parts], seen.bytes


def messages_of(rank, fault):
    """What each loss says of bad input of the first process."""
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
    return messages


CASES = {
    2: ["uneven", "no positives", "infinite where ignored"],
    3: ["uneven", "nothing on the first", "no positives on the first"],
}
FAULTS = {"NaN": "must be finite", "shape": "the same shape", "above 1": "is 7"}


def work(rank, processes, folder):
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=processes)
    found = {case: rank_together(rank, case, processes) for case in CASES[processes]}
    if processes == 2:
        found |= {fault: messages_of(rank, fault) for fault in FAULTS}
    (folder / f"{rank}.json").write_text(json.dumps(found))
    dist.destroy_process_group()


@pytest.fixture(scope="module", params=CASES)
def found(request, tmp_path_factory):
    """What each of the processes has found in each case."""
    folder = tmp_path_factory.mktemp("processes")
    mp.start_processes(work, (request.param, folder), request.param, start_method="forkserver")
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(request.param)]


def test_processes_rank_together(found):
    for case in CASES[len(found)]:
        parts = [of_process[case] for of_process in found]
        expected = losses(*batch(case))
        for (values, *_), _ in parts:
            torch.testing.assert_close(torch.tensor(values, dtype=torch.float64), expected[0], rtol=0, atol=1e-12)
        for k in (1, 2):
            joined = torch.tensor([x for part, _ in parts for x in part[k]], dtype=torch.float64)
            torch.testing.assert_close(joined, expected[k], rtol=0, atol=1e-12)
        # Per call: the number of positives; two (aLRP: one more) values for each; two for each of 2P + 1 intervals.
        positives = int((batch(case)[1] > 0).sum())
        assert all(sent <= 4 * 8 + 7 * 8 * positives + 3 * 2 * 8 * (2 * positives + 1) for _, sent in parts)


@pytest.mark.parametrize("found", [2], indirect=True)
@pytest.mark.parametrize(("fault", "message"), FAULTS.items())
def test_bad_input_of_one_process_stops_all(found, fault, message):
    own, other = (of_process[fault] for of_process in found)
    assert len(own) == len(other) == 2
    assert all(message in text for text in own[:1])
    assert all("another process" in text for text in other)
