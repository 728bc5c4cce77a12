"""The device to put a model on."""

import torch


def usable_device(name: str | torch.device = "") -> torch.device:
    """The device with a name such as "cuda:1"; by default an accelerator if there is one, else the CPU.

    Raises:
        ValueError: it cannot be used.
    """
    place = name or torch.accelerator.current_accelerator(check_available=True) or "cpu"
    try:
        return torch.empty(0, device=place).device
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f'the device {str(place)!r} cannot be used ({reason}); "cpu" always works') from None
