"""The other processes of a run: what becomes of this one when one of them dies."""

import contextlib
import os
import sys
import threading
import time
from collections.abc import Iterator

import torch.distributed as dist
from lightning_fabric.strategies.launchers.subprocess_script import _ChildProcessObserver

_PARENT = "RANKSORT_PARENT"  # in the environment of processes which the first one starts
_SECONDS = 5.0  # between two looks at the parent, and given to an end in good order


@contextlib.contextmanager
def lost_peers() -> Iterator[None]:
    """Say in one sentence that another process of the run is gone.

    Raises:
        ConnectionError: in place of what PyTorch raises when it cannot reach that process.
    """
    try:
        yield
    except RuntimeError as error:
        if not isinstance(error, dist.DistError) and "gloo/transport" not in str(error):
            raise
        raise ConnectionError(
            "another process of this run has ended or cannot be reached, see what it has said itself; once that is repaired, "
            "--resume goes on from the last checkpoint"
        ) from error


def end_with_others() -> None:
    """Let this process end within a quarter of a minute of the one that started it, if that is torchrun or the first process of a run.

    And of those that it starts itself, with a sentence, where Lightning would kill it without. On GPUs it would wait in a collective
    operation for ten minutes or more.
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
    _end("the process that started this one has ended, and so does this one")


def _end_without_child(observer: _ChildProcessObserver) -> None:
    code = next(process.returncode for process in observer._child_processes if process.returncode)
    how = f"was killed by signal {-code}" if code < 0 else f"has ended with exit code {code}"
    _end(f"another process of this run {how}, and so the run ends", observer)


def _end(why: str, observer: _ChildProcessObserver | None = None) -> None:
    time.sleep(2 * _SECONDS)  # this process may be about to end by itself, and say more
    for process in observer._child_processes if observer else ():
        process.kill()
    print(f"ranksort: {why}", file=sys.stderr, flush=True)
    os._exit(2)
