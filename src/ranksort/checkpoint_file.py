"""Weight files: written atomically, and read without executing code in them.

torch writes checksums into every archive but does not verify them when reading; this module does.
"""

import io
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from .whole_file import replace_file


def save_checkpoint(content: Mapping[str, Any], path: Path) -> None:
    """Write tensors and plain values with `torch.save`, atomically.

    Raises:
        OSError: as `replace_file`.
    """
    buffer = io.BytesIO()
    torch.save(content, buffer)
    replace_file(path, buffer.getbuffer())


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a file of `torch.save`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not a checkpoint (but, say, an ONNX file), is damaged, or contains more than tensors and plain values.
    """
    if not path.is_file():
        raise FileNotFoundError(f"there is no checkpoint {path}")
    if path.suffix == ".onnx":
        raise ValueError(
            f"{path} is an ONNX file, which only `ranksort predict` takes: name the checkpoint it was exported from"
        )
    try:
        _check_sums(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # on damaged files torch raises nearly anything, and recommends running their code
        reason = str(error) if isinstance(error, _Damaged) else type(error).__name__
        raise ValueError(
            f"{path} cannot be read as a checkpoint: it is damaged, not a checkpoint, or contains more than tensors and plain values "
            f"({reason})"
        ) from None
    if not isinstance(content, dict):
        raise ValueError(f"{path} contains a {type(content).__name__} instead of a checkpoint")
    return content


class _Damaged(Exception):
    """The content of a file is not what was written."""


def _check_sums(path: Path) -> None:
    """Raise `_Damaged` if a part of an archive does not match its checksum."""
    if zipfile.is_zipfile(path):  # otherwise from before torch 1.6, or not from torch
        with zipfile.ZipFile(path) as archive:
            if (part := archive.testzip()) is not None:
                raise _Damaged(f"the checksum of {part} is wrong")
