"""Signals that ask a run to stop or to save, obeyed at a moment at which nothing is lost."""

import atexit
import contextlib
import functools
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from types import FrameType
from typing import Any

# Windows lacks some of them.
_STOP = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
SAVE = [getattr(signal, name) for name in ("SIGUSR1",) if hasattr(signal, name)]
_TORCHRUN_SECONDS = 5.0


class Terminated(KeyboardInterrupt):
    """SIGTERM or SIGHUP: ends a command as Ctrl-C does, closing what is open, with an exit code of its own."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number


def stopped_by(number: int) -> KeyboardInterrupt:
    """The exception for a signal that asks to stop."""
    return KeyboardInterrupt() if number == signal.SIGINT else Terminated(number)


def exit_code(error: KeyboardInterrupt) -> int:
    """The code with which shells report a process that this signal has ended: 130 for Ctrl-C, 143 for SIGTERM."""
    return 128 + (error.number if isinstance(error, Terminated) else signal.SIGINT)


def sentence(error: KeyboardInterrupt) -> str:
    """What a command that was stopped prints."""
    name = signal.Signals(error.number).name if isinstance(error, Terminated) else "Ctrl-C"
    return f"ranksort: stopped by {name}"


def stop_at_once(number: int, frame: FrameType | None) -> None:
    """The handler of a command that has nothing to save.

    While a module is imported it ends the process: PyTorch swallows what is raised while it imports NumPy.

    Raises:
        KeyboardInterrupt: elsewhere; `Terminated` where it was not Ctrl-C.
    """
    error = stopped_by(number)
    if _is_importing(frame):
        _write(sentence(error))
        os._exit(exit_code(error))
    raise error


def _is_importing(frame: FrameType | None) -> bool:
    """Whether the frame belongs to an import, other than one that a function of this package runs within."""
    while frame is not None:
        code = frame.f_code
        if code.co_filename.startswith("<frozen importlib"):
            return True
        if code.co_name != "<module>" and frame.f_globals.get("__name__", "").startswith(__package__ + "."):
            return False
        frame = frame.f_back
    return False


def _write(text: str) -> None:
    """Print to stderr from a handler: print() may be what was interrupted, and cannot be called within itself."""
    with contextlib.suppress(OSError):
        os.write(sys.__stderr__.fileno() if sys.__stderr__ else 2, f"{text}\n".encode())


def ignore(number: int, _: Any) -> None:
    """The handler of a command that has no checkpoint to write, or not yet, for the signal that asks for one: it would end it."""


def ignore_in_worker(_: int = 0) -> None:
    """Let a process that loads images live until its loader ends it: schedulers and terminals signal it as well."""
    for number in (*_STOP, *SAVE):
        signal.signal(number, signal.SIG_IGN)


@functools.cache
def end_workers_at_exit() -> None:
    """Have the processes that `ignore_in_worker` made deaf ended with this one.

    Python asks them by SIGTERM and then waits for them, for ever where an error left their loader open.
    """
    atexit.register(_kill_workers)


def _kill_workers() -> None:
    if hasattr(signal, "SIGCHLD"):
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # PyTorch's handler raises where a worker is killed
    for process in multiprocessing.active_children():
        if process.daemon:  # which are not to outlive this process
            process.kill()


@contextlib.contextmanager
def handled(handler: Callable[[int, Any], None], numbers: Iterable[int] = _STOP) -> Iterator[None]:
    """Handle these signals in the main thread, but for those which are ignored, as after nohup; put the old handlers back."""
    previous: dict[int, Any] = {}
    if threading.current_thread() is threading.main_thread():
        previous = {number: signal.getsignal(number) for number in numbers}
    changed = {number: old for number, old in previous.items() if old is not signal.SIG_IGN}
    try:
        for number in changed:
            signal.signal(number, handler)
        yield
    finally:
        for number, old in changed.items():
            signal.signal(number, signal.SIG_DFL if old is None else old)


class Interrupt(contextlib.AbstractContextManager["Interrupt"]):
    """Remembers, while it is entered, what signals have asked for.

    Attributes:
        stop: the first signal that asked to stop, 0: none. Where `waits` is not set, or when it is repeated, a signal stops at once;
            but torchrun passes on what its processes are sent themselves, so that there it counts as repeated after 5 s only.
        save: whether SIGUSR1 has asked for a checkpoint.
        waits: whether a loop looks at `stop`, and obeys it at its next safe point.
        notice: printed when a stop is going to be obeyed later.
    """

    def __init__(self, notice: str) -> None:
        self.notice, self.stop, self.save, self.waits = notice, 0, False, False
        self._process, self._stop_time = os.getpid(), 0.0
        self._handlers = handled(self._remember, (*_STOP, *SAVE))

    def __enter__(self) -> "Interrupt":
        self._handlers.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._handlers.__exit__(*error)

    def _remember(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:
            return  # a worker which has just begun
        if number in SAVE:
            self.save = True
        elif (
            self.stop and "TORCHELASTIC_RUN_ID" in os.environ and time.monotonic() - self._stop_time < _TORCHRUN_SECONDS
        ):
            return
        elif self.stop or not self.waits:
            self.stop = self.stop or number  # what is raised may be swallowed
            stop_at_once(number, frame)
        else:
            self.stop, self._stop_time = number, time.monotonic()
            if self.notice:
                _write(f"\n{self.notice}")
