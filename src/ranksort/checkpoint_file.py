"""Files of weights: written whole or not at all, and read without running what is in them.

The checksums of their parts are those which torch writes into every archive, and does not look at when it reads one.
"""

import io
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from .whole_file import replace_file


def save_checkpoint(content: Mapping[str, Any], path: Path) -> None:
    """Writes tensors and plain values as torch does, by `replace_file`, which says what it raises."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    replace_file(path, buffer.getbuffer())


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Reads what torch has written.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no checkpoint, or damaged, or holds more than tensors and plain values.
    """
    if not path.is_file():
        raise FileNotFoundError(f"there is no checkpoint {path}")
    try:
        _check_sums(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # on damaged files torch raises nearly anything, and its advice is to run their code
        reason = str(error) if isinstance(error, _Damaged) else type(error).__name__
        raise ValueError(
            f"{path} cannot be read as a checkpoint: it is damaged, or no checkpoint, or holds more than plain tensors and values "
            f"({reason})"
        ) from None
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__} where a checkpoint was expected")
    return content


class _Damaged(Exception):
    """The content of a file is not what was written."""


def _check_sums(path: Path) -> None:
    """Raises `_Damaged` where a part of an archive has another checksum than it was written with."""
    if zipfile.is_zipfile(path):  # else a file of before torch 1.6, or none of torch's
        with zipfile.ZipFile(path) as archive:
            if (part := archive.testzip()) is not None:
                raise _Damaged(f"the checksum of {part} is wrong")
