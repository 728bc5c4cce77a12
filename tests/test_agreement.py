"""What one of two processes asks for reaches both."""

from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from ranksort.engine.agreement import Agreement


def work(rank: int, folder: str, results: "mp.SimpleQueue[tuple[int, list[list[int]]]]") -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    agreement = Agreement(torch.device("cpu"))
    mine = [15, 0] if rank else [0, 1]
    found = [agreement.soon(mine)]
    agreement.is_late = True  # as on a GPU
    found += [agreement.soon(mine), agreement.soon([0, 0]), agreement.soon([0, 0])]
    agreement.soon(mine)
    agreement.forget()
    found += [agreement.soon([0, 0])]
    agreement.soon(mine)
    found += [agreement.now([rank, 0]), agreement.soon([0, 0])]
    results.put((rank, found))
    dist.destroy_process_group()


def test_highest_of_two_processes(tmp_path: Path) -> None:
    results: mp.SimpleQueue[tuple[int, list[list[int]]]] = mp.get_context("forkserver").SimpleQueue()
    mp.start_processes(work, (str(tmp_path), results), 2, start_method="forkserver")
    both, none = [15, 1], [0, 0]
    for _ in range(2):
        assert results.get()[1] == [both, none, both, none, none, [1, 0], none]
