"""The other processes of a run: how this one ends when one of them dies."""

import contextlib
import os
import sys
import threading
import time
from collections.abc import Iterator

import torch.distributed as dist
from lightning_fabric.strategies.launchers.subprocess_script import _ChildProcessObserver

_PARENT = "RANKSORT_PARENT"  # in the environment of the processes that the first one starts
_SECONDS = 5.0  # between two checks of the parent, and the time for an orderly exit


@contextlib.contextmanager
def lost_peers() -> Iterator[None]:
    """Report in one sentence that another process of the run is gone.

    Raises:
        ConnectionError: instead of the error that PyTorch raises when it cannot reach that process.
    """
    try:
        yield
    except RuntimeError as error:
        if not isinstance(error, dist.DistError) and "gloo/transport" not in str(error):
            raise
        raise ConnectionError(
            "another process of this run has ended or cannot be reached: see its own message. When that is fixed, "
            "--resume continues from the last checkpoint"
        ) from error


def end_with_others() -> None:
    """Make this process exit within 15 seconds of the one that started it, if that is torchrun or the first process of a run.

    It also exits within 15 seconds of the processes that it starts itself, with a message; Lightning would kill it without one. On GPUs it
    would otherwise wait in a collective operation for ten minutes or more.
    """
    is_child = os.environ.get(_PARENT) == str(os.getppid()) and os.environ.get("LOCAL_RANK", "0") != "0"
    if is_child or "TORCHELASTIC_RUN_ID" in os.environ:
        threading.Thread(target=_watch, args=(os.getppid(),), daemon=True).start()
    else:
        os.environ[_PARENT] = str(os.getpid())
        _ChildProcessObserver._terminate_all = _end_without_child  # type: ignore[method-assign, assignment]


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(_SECONDS)
    _end("the process that started this one has ended, so this one ends too")


def _end_without_child(observer: _ChildProcessObserver) -> None:
    code = next(process.returncode for process in observer._child_processes if process.returncode)
    how = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
    _end(f"another process of this run {how}, so the run ends", observer)


def _end(why: str, observer: _ChildProcessObserver | None = None) -> None:
    time.sleep(2 * _SECONDS)  # this process may be about to exit by itself, with a better message
    for process in observer._child_processes if observer else ():
        process.kill()
    print(f"ranksort: {why}", file=sys.stderr, flush=True)
    os._exit(2)
