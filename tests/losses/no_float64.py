"""A device without float64, like Apple's MPS, simulated on a CPU, where a Mac is not at hand.

Tensors on it are `OnDevice`. As on MPS, float64 can neither be stored on it nor be the result of a copy from it that also converts, and
tensors on two devices cannot be combined, unless one of them is a single number on the CPU.
"""

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

DEVICE = torch.device("meta")  # a name that PyTorch knows everywhere
_TO = torch.ops.aten._to_copy.default
_ITEM = torch.ops.aten._local_scalar_dense.default


class OnDevice(Tensor):
    """A tensor that claims to be on `DEVICE`; `values` has its contents."""

    values: Tensor

    @staticmethod
    def __new__(cls, values: Tensor) -> "OnDevice":
        made: OnDevice = Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls, values.size(), strides=values.stride(), dtype=values.dtype, device=DEVICE
        )
        made.values = values
        return made

    @classmethod
    def __torch_dispatch__(cls, *_: Any) -> Any:
        raise AssertionError("tensors on the device are for use within `Simulated`")


class Simulated(TorchDispatchMode):
    """Within this context, `DEVICE` works as described above."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        given = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        here = [x for x in given if isinstance(x, OnDevice)]
        target = kwargs.get("device")
        if not here and (target is None or torch.device(target) != DEVICE):
            return func(*args, **kwargs)
        if here and any(x.ndim > 0 for x in given if not isinstance(x, OnDevice)):
            raise RuntimeError(f"{func} of tensors on two devices")
        leaves = func is _ITEM or (target is not None and torch.device(target) != DEVICE)
        if leaves and here and kwargs.get("dtype") == torch.float64 and here[0].dtype != torch.float64:
            raise TypeError("float64 in a copy from a device without it")
        if target is not None:
            kwargs["device"] = torch.device("cpu")
        result = func(*tree_map(_values, args), **tree_map(_values, kwargs))
        return result if leaves else tree_map(lambda x: _wrapped(x, here), result)


def _values(x: Any) -> Any:
    return x.values if isinstance(x, OnDevice) else x


def _wrapped(x: Any, given: list[OnDevice]) -> Any:
    if not isinstance(x, Tensor):
        return x
    if x.dtype == torch.float64:
        raise TypeError("float64 on a device without it")
    same = [other for other in given if other.values is x]  # in-place operators return an argument
    return same[0] if same else OnDevice(x)
