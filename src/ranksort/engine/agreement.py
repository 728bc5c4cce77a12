"""What any of several processes asks for, made known to all of them without a device being waited for."""

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor


class Agreement:
    """Brings numbers which processes set, such as flags, to the highest that any has set.

    All have to call the same method at the same time, with as many numbers.

    Args:
        device: one which the processes can exchange tensors of.

    Attributes:
        is_late: whether `soon` says what the call before it was given. On a GPU this is there by then, since a training step has been
            waited for; elsewhere nothing has to be waited for.
    """

    def __init__(self, device: torch.device) -> None:
        self.device, self.is_late = device, device.type == "cuda"
        self._pending: tuple[Tensor, torch.cuda.Event | None] | None = None

    def now(self, numbers: Sequence[int]) -> list[int]:
        """The highest of each. Waits for all that the device has to do."""
        self.forget()
        return self._wait(self._begin(numbers))

    def soon(self, numbers: Sequence[int]) -> list[int]:
        """The highest of each; where it `is_late`, of those given to the call before, and 0s at the first since `forget` or `now`."""
        if not self.is_late:
            return self.now(numbers)
        previous, self._pending = self._pending, self._begin(numbers)
        return [0] * len(numbers) if previous is None else self._wait(previous)

    def forget(self) -> None:
        """Let the next `soon` start over, as after what was asked for is done."""
        self._pending = None

    def _begin(self, numbers: Sequence[int]) -> tuple[Tensor, "torch.cuda.Event | None"]:
        on_gpu = self.device.type == "cuda"
        # From pinned memory and into it nothing waits for the stream.
        highest = torch.tensor([int(x) for x in numbers], pin_memory=on_gpu).to(self.device, non_blocking=True)
        dist.all_reduce(highest, dist.ReduceOp.MAX)
        if not on_gpu:
            return highest, None
        there = torch.empty(highest.shape, dtype=highest.dtype, pin_memory=True).copy_(highest, non_blocking=True)
        done = torch.cuda.Event()
        done.record()
        return there, done

    @staticmethod
    def _wait(pending: tuple[Tensor, "torch.cuda.Event | None"]) -> list[int]:
        there, done = pending
        if done is not None:
            done.synchronize()
        return there.tolist()
