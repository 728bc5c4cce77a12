"""Files of weights: written whole or not at all, and read without running what is in them.

A file is made beside its target, brought to the disk and renamed. So whatever ends a run in between, and wherever temporary files are
kept, what was there before stays as it was. The checksums of its parts are those which torch writes into every archive, and does not
look at when it reads one.
"""

import contextlib
import io
import os
import shutil
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

UNFINISHED = ".part"  # what the names of files end in that are being written


def replace_file(path: Path, content: bytes | memoryview) -> None:
    """Writes a file, or leaves the one that is there.

    Raises:
        OSError: it cannot be written, as on a full disk; the message names it, and says what it needs and what is free.
    """
    part = path.with_name(path.name + UNFINISHED)
    size = memoryview(content).nbytes
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with part.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            part.unlink()
        free = ""
        with contextlib.suppress(OSError):
            free = f", and {_megabytes(shutil.disk_usage(path.parent).free)} are free there"
        kept = "; the one before is kept" if path.is_file() else ""
        raise OSError(
            f"{path} cannot be written ({error.strerror or error}): it needs {_megabytes(size)}{free}{kept}"
        ) from None
    except BaseException:
        with contextlib.suppress(OSError):
            part.unlink()
        raise
    _flush_folder(path.parent)


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


def _flush_folder(folder: Path) -> None:
    """Bring the names in a folder to the disk, where the system can."""
    with contextlib.suppress(OSError):  # Windows opens no folders, and some network disks do not flush them
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _megabytes(size: int) -> str:
    return f"{size / 1e6:,.1f} MB"
