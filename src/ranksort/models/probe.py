"""Run a network without computing: on the meta device, tensors have shapes and a history, but no values."""

from collections.abc import Callable, Collection
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.overrides import TorchFunctionMode

from .images import Size


def probe(module: nn.Module, size: Size) -> tuple[list[Tensor], dict[str, Tensor]]:
    """Run `module` on two images of this height and width, with stand-ins for its parameters and buffers.

    Neither its parameters and buffers nor the state of a random generator change.

    Returns:
        outputs: what `module` returns, on the meta device.
        parameters: stand-in of each parameter, by name.

    Raises:
        IndexError: `module` indexes a table of parameters by position; without values, the supported size is unknown.
        Exception: what `module` raises.
    """
    with torch.inference_mode(False), torch.enable_grad():  # a history is needed even in a no_grad context
        parameters = {
            name: torch.empty_like(p, device="meta").requires_grad_(p.is_floating_point())
            for name, p in module.named_parameters()
        }
        buffers = {name: torch.empty_like(b, device="meta") for name, b in module.named_buffers()}
        # Two images, because batch norms in training need more than one value.
        images = torch.empty(2, 3, *size, device="meta")
        with _NoLookup(parameters.values(), buffers.values()):
            return list(functional_call(module, {**parameters, **buffers}, (images,))), parameters


class _NoLookup(TorchFunctionMode):
    """Refuse to index one of `tables` by values computed from the image size; stored indices always fit."""

    def __init__(self, tables: Collection[Tensor], stored: Collection[Tensor]):
        super().__init__()
        self.tables = {id(table) for table in tables}
        self.stored = {id(index) for index in stored}

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is Tensor.__getitem__ and id(args[0]) in self.tables:
            for index in args[1] if isinstance(args[1], tuple) else (args[1],):
                if isinstance(index, Tensor) and not {id(index), id(index._base)} & self.stored:
                    raise IndexError("a table of parameters is indexed by places in the image")
        return func(*args, **(kwargs or {}))


def reached(output: Tensor, parameters: dict[str, Tensor]) -> set[str]:
    """The names of the `parameters` that get a gradient from `output`; both as from `probe`."""
    names = {id(parameter): name for name, parameter in parameters.items()}
    found = set()
    waiting = [] if output.grad_fn is None else [output.grad_fn]
    nodes = set(waiting)
    while waiting:
        node = waiting.pop()
        leaf = getattr(node, "variable", None)  # of a node that accumulates the gradient of a parameter
        if id(leaf) in names:
            found.add(names[id(leaf)])
        following = {n for n, _ in node.next_functions if n is not None} - nodes
        nodes |= following
        waiting += following
    return found


def used_before(module: nn.Module, size: Size, map_sizes: Collection[Size]) -> set[str]:
    """The names of the parameters used before a layer returns a map of one of these sizes, for an image of height and width `size`."""
    names: set[str] = set()
    over = False

    def note(prefix: str, layer: nn.Module, output: object) -> None:
        nonlocal over
        if isinstance(output, Tensor) and output.ndim == 4:
            over = over or bool({tuple(output.shape[2:]), tuple(output.shape[1:3])} & set(map_sizes))
        if not over:
            names.update(f"{prefix}.{name}".lstrip(".") for name, _ in layer.named_parameters(recurse=False))

    hooks = [
        layer.register_forward_hook(lambda layer, _, output, prefix=prefix: note(prefix, layer, output))
        for prefix, layer in module.named_modules()
    ]
    try:
        probe(module, size)
    finally:
        for hook in hooks:
            hook.remove()
    return names
