"""Files that are there as a whole or not at all."""

import contextlib
import os
from pathlib import Path

UNFINISHED = ".part"  # what the name of a file ends in while it is being written


def replace_file(path: Path, content: bytes) -> None:
    """Write a file, with its folder if need be, or leave the one that is there as it is: whatever ends the process, none is cut off.

    What is no regular file, such as /dev/stdout or a pipe, is written to directly.

    Raises:
        OSError: it cannot be written; the error names it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists() and not path.is_file():
        path.write_bytes(content)
        return
    target = path.resolve()  # of a link, which stays one
    part = target.with_name(target.name + UNFINISHED)
    try:
        with part.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        part.replace(target)
    except BaseException as error:
        with contextlib.suppress(OSError):
            part.unlink()
        if isinstance(error, OSError):
            raise OSError(error.errno, error.strerror, str(path)) from None
        raise
