"""Write files atomically."""

import contextlib
import os
import shutil
from pathlib import Path

UNFINISHED = ".part"  # suffix of a file while it is being written


def replace_file(path: Path, content: bytes | memoryview) -> None:
    """Write a file atomically, creating its folder if necessary: however the process ends, the file is complete, old or new.

    It is written beside its target, flushed to disk and renamed. Targets that are not regular files, such as /dev/stdout or a pipe, are
    written to directly.

    Raises:
        OSError: it cannot be written, for example on a full disk; the message names the file, its size and the free space.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists() and not path.is_file():
            path.write_bytes(content)
            return
        target = path.resolve()  # the target of a link; the link stays
        _write(target.with_name(target.name + UNFINISHED), target, content)
    except OSError as error:
        free = ""
        with contextlib.suppress(OSError):
            free = f", and {_megabytes(shutil.disk_usage(path.parent).free)} are free there"
        kept = "; the previous file is kept" if path.is_file() else ""
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
    with contextlib.suppress(OSError):  # Windows cannot open folders, and some network disks cannot flush them
        folder = os.open(target.parent, os.O_RDONLY)
        try:
            os.fsync(folder)  # flushes the name to disk
        finally:
            os.close(folder)


def _megabytes(size: int) -> str:
    return f"{size / 1e6:,.1f} MB"
