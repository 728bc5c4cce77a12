"""Share requests of any process with all processes, without waiting for a device."""

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor


class Agreement:
    """Take the maximum over all processes of numbers such as flags.

    All processes have to call the same method at the same time, with equally many numbers.

    Args:
        device: a device whose tensors the processes can exchange.

    Attributes:
        is_late: whether `soon` returns the result of the call before it. On a GPU that result is available by then, because a training
            step has passed; elsewhere there is nothing to wait for.
    """

    def __init__(self, device: torch.device) -> None:
        self.device, self.is_late = device, device.type == "cuda"
        self._pending: tuple[Tensor, torch.cuda.Event | None] | None = None

    def now(self, numbers: Sequence[int]) -> list[int]:
        """The maximum of each number. Waits for all queued work of the device."""
        self.forget()
        return self._wait(self._begin(numbers))

    def soon(self, numbers: Sequence[int]) -> list[int]:
        """The maximum of each number; if `is_late`, of the numbers of the previous call, zeros at first or after `forget` or `now`."""
        if not self.is_late:
            return self.now(numbers)
        previous, self._pending = self._pending, self._begin(numbers)
        return [0] * len(numbers) if previous is None else self._wait(previous)

    def forget(self) -> None:
        """Let the next `soon` start over, for example when a request has been served."""
        self._pending = None

    def _begin(self, numbers: Sequence[int]) -> tuple[Tensor, "torch.cuda.Event | None"]:
        on_gpu = self.device.type == "cuda"
        # Copies from and to pinned memory do not wait for the stream.
        highest = torch.tensor([int(x) for x in numbers], pin_memory=on_gpu).to(self.device, non_blocking=True)
        dist.all_reduce(highest, dist.ReduceOp.MAX)
        if not on_gpu:
            return highest, None
        result = torch.empty(highest.shape, dtype=highest.dtype, pin_memory=True).copy_(highest, non_blocking=True)
        done = torch.cuda.Event()
        done.record()
        return result, done

    @staticmethod
    def _wait(pending: tuple[Tensor, "torch.cuda.Event | None"]) -> list[int]:
        result, done = pending
        if done is not None:
            done.synchronize()
        return result.tolist()
