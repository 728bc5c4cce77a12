"""The traffic that ranking over all processes adds to a training step: by formula, and as gloo sends it between local processes.

python benchmarks/global_ranking_traffic.py --processes 2 3 4 --positives 100 1000

For each number of processes W and of positives per process P: the bytes that a process hands to collective operators in a forward pass
of `rank_sort_detection_losses`, and the bytes that it sends over the loopback interface. The latter includes other programs; the
minimum of several repetitions is shown.
"""

import argparse
import tempfile
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.utils._python_dispatch import TorchDispatchMode

from ranksort.losses.detection import rank_sort_detection_losses

STEPS, REPETITIONS, CLASSES, EXAMPLES = 20, 5, 10, 20000


class Payload(TorchDispatchMode):
    """Count the bytes handed to collective operators."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        if operator.namespace == "c10d":
            given = args[1] if "allgather" in operator._opname else args[0]
            self.bytes += sum(x.nbytes for x in (given if isinstance(given, (list, tuple)) else [given]))
        return operator(*args, **(kwargs or {}))


def payload(processes: int, positives: int) -> int:
    """Bytes that a process hands over: its number of positives, their logits and qualities, the sums of all intervals, of one task."""
    return 8 + 16 * positives + 16 * (2 * processes * positives + 1) + 8


def sent(processes: int, positives: int) -> float:
    """Bytes that a process sends in a ring: W - 1 times the gathered data, 2 (W - 1) / W times the summed data."""
    gathered, summed = 8 + 16 * positives, 16 * (2 * processes * positives + 1) + 8
    return (processes - 1) * gathered + 2 * (processes - 1) / processes * summed


def loopback_bytes() -> int:
    line = next(x for x in Path("/proc/net/dev").read_text().splitlines() if x.strip().startswith("lo:"))
    return int(line.split(":")[1].split()[8])  # transmitted


def work(rank: int, processes: int, positives: int, store: str, results: "mp.SimpleQueue[tuple[int, float]]") -> None:
    torch.set_num_threads(1)
    meeting = {"init_method": f"file://{store}", "rank": rank, "world_size": processes}
    dist.init_process_group("gloo", timeout=timedelta(minutes=5), **meeting)
    torch.manual_seed(rank)
    logits = torch.randn(EXAMPLES, CLASSES)
    boxes = torch.rand(positives, 4) + torch.tensor([0.0, 0, 1, 1])
    where, labels = torch.randperm(EXAMPLES)[:positives], torch.randint(CLASSES, (positives,))

    def step() -> None:
        rank_sort_detection_losses(logits, where, labels, boxes, boxes.roll(1, 0), process_group=dist.group.WORLD)

    with Payload() as seen:
        step()
    on_wire = []
    for _ in range(REPETITIONS):
        dist.barrier()
        before = loopback_bytes()
        for _ in range(STEPS):
            step()
        dist.barrier()
        on_wire.append((loopback_bytes() - before) / STEPS / processes)
    if rank == 0:
        results.put((seen.bytes, min(on_wire)))
    dist.barrier()
    dist.destroy_process_group()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, nargs="+", default=[2, 3, 4])
    parser.add_argument("--positives", type=int, nargs="+", default=[100, 1000], help="of each process")
    options = parser.parse_args()
    print("| processes | positives of each | handed over | by formula | sent | by formula |\n|---|---|---|---|---|---|")
    for processes in options.processes:
        for positives in options.positives:
            results: mp.SimpleQueue[tuple[int, float]] = mp.get_context("spawn").SimpleQueue()
            with tempfile.TemporaryDirectory() as folder:
                mp.start_processes(
                    work, (processes, positives, f"{folder}/store", results), processes, start_method="spawn"
                )
            given, on_wire = results.get()
            print(
                f"| {processes} | {positives} | {given:,} | {payload(processes, positives):,} "
                f"| {on_wire:,.0f} | {sent(processes, positives):,.0f} |",
                flush=True,
            )
    print("\n| GPUs | positives of each | sent by each and step |\n|---|---|---|")
    for processes in (8, 64, 512):
        print(f"| {processes} | 500 | {sent(processes, 500) / 1e6:,.2f} MB |")


if __name__ == "__main__":
    main()
