"""Files that are there as a whole or not at all."""

import contextlib
import os
import shutil
from pathlib import Path

UNFINISHED = ".part"  # what the name of a file ends in while it is being written


def replace_file(path: Path, content: bytes | memoryview) -> None:
    """Write a file, with its folder if need be, or leave the one that is there as it is: whatever ends the process, none is cut off.

    It is made beside its target, brought to the disk and renamed, wherever temporary files are kept. What is no regular file, such as
    /dev/stdout or a pipe, is written to directly.

    Raises:
        OSError: it cannot be written, as on a full disk; the message names it, and says what it needs and what is free.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists() and not path.is_file():
            path.write_bytes(content)
            return
        target = path.resolve()  # of a link, which stays one
        _write(target.with_name(target.name + UNFINISHED), target, content)
    except OSError as error:
        free = ""
        with contextlib.suppress(OSError):
            free = f", and {_megabytes(shutil.disk_usage(path.parent).free)} are free there"
        kept = "; the one before is kept" if path.is_file() else ""
        size = _megabytes(memoryview(content).nbytes)
        raise OSError(f"{path} cannot be written ({error.strerror or error}): it needs {size}{free}{kept}") from None


def _write(part: Path, target: Path, content: bytes | memoryview) -> None:
    try:
        with part.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        part.replace(target)
    except BaseException:
        with contextlib.suppress(OSError):
            part.unlink()
        raise
    with contextlib.suppress(OSError):  # Windows opens no folders, and some network disks do not flush them
        folder = os.open(target.parent, os.O_RDONLY)
        try:
            os.fsync(folder)  # brings the name to the disk
        finally:
            os.close(folder)


def _megabytes(size: int) -> str:
    return f"{size / 1e6:,.1f} MB"
