"""Losses over the examples of all processes, for DistributedDataParallel (DDP), which averages the processes' gradients."""

import torch.distributed as dist
from torch import Tensor


def over_processes(own: Tensor, total: Tensor, group: "dist.ProcessGroup | None") -> Tensor:
    """The loss over all processes of a group, scaled so that the mean of the processes' gradients is the gradient of that loss.

    Args:
        own: the contribution of this process to the loss, with gradient; a scalar.
        total: the loss, the same on all processes; a scalar.
        group: None: only this process, whose loss is `own`.
    """
    if group is None:
        return own
    part = dist.get_world_size(group) * own
    return total.detach() + (part - part.detach())


def sum_over_processes(values: Tensor, group: "dist.ProcessGroup") -> Tensor:
    """The sums of `values` over all processes of a group, without gradient. The host does not wait for the device."""
    values = values.detach().clone()
    dist.all_reduce(values, group=group)
    return values


def all_processes() -> "dist.ProcessGroup | None":
    """The group of all processes; None if there is only one."""
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        return dist.group.WORLD
    return None
