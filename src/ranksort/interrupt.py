"""Signals that ask a run to stop or to save, handled when nothing is lost."""

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
    """SIGTERM or SIGHUP: ends a command as Ctrl-C does, closing open files, but with its own exit code."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number


def stopped_by(number: int) -> KeyboardInterrupt:
    """The exception for a signal that asks to stop."""
    return KeyboardInterrupt() if number == signal.SIGINT else Terminated(number)


def exit_code(error: KeyboardInterrupt) -> int:
    """The exit code that shells report for a process ended by this signal: 130 for Ctrl-C, 143 for SIGTERM."""
    return 128 + (error.number if isinstance(error, Terminated) else signal.SIGINT)


def sentence(error: KeyboardInterrupt) -> str:
    """The message of a command that was stopped."""
    name = signal.Signals(error.number).name if isinstance(error, Terminated) else "Ctrl-C"
    return f"ranksort: stopped by {name}"


def stop_at_once(number: int, frame: FrameType | None) -> None:
    """The handler of a command that has nothing to save.

    During an import it ends the process, because PyTorch swallows exceptions while it imports NumPy.

    Raises:
        KeyboardInterrupt: at other times; `Terminated` if the signal was not Ctrl-C.
    """
    error = stopped_by(number)
    if _is_importing(frame):
        _write(sentence(error))
        os._exit(exit_code(error))
    raise error


def _is_importing(frame: FrameType | None) -> bool:
    """Whether the frame is within an import that no function of this package is called from."""
    while frame is not None:
        code = frame.f_code
        if code.co_filename.startswith("<frozen importlib"):
            return True
        if code.co_name != "<module>" and frame.f_globals.get("__name__", "").startswith(__package__ + "."):
            return False
        frame = frame.f_back
    return False


def _write(text: str) -> None:
    """Print to stderr from a handler; print() is not reentrant, and may have been interrupted itself."""
    with contextlib.suppress(OSError):
        os.write(sys.__stderr__.fileno() if sys.__stderr__ else 2, f"{text}\n".encode())


def ignore(number: int, _: Any) -> None:
    """Handler for the signal that asks for a checkpoint while there is none to write; by default the signal would end the command."""


def ignore_in_worker(_: int = 0) -> None:
    """Keep a worker process alive until its loader ends it; schedulers and terminals send signals to it, too."""
    for number in (*_STOP, *SAVE):
        signal.signal(number, signal.SIG_IGN)


@functools.cache
def end_workers_at_exit() -> None:
    """Kill worker processes that ignore signals (`ignore_in_worker`) when this process exits.

    Python sends them SIGTERM and waits for them, forever if an error left their loader open.
    """
    atexit.register(_kill_workers)


def _kill_workers() -> None:
    if hasattr(signal, "SIGCHLD"):
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # PyTorch's handler raises if a worker is killed
    for process in multiprocessing.active_children():
        if process.daemon:  # these must not outlive this process
            process.kill()


@contextlib.contextmanager
def handled(handler: Callable[[int, Any], None], numbers: Iterable[int] = _STOP) -> Iterator[None]:
    """Handle these signals in the main thread, except for ignored ones, as with nohup; then restore the old handlers."""
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
    """Records, while entered, what signals have asked for.

    Attributes:
        stop: the first signal that asked to stop; 0: none. If `waits` is not set, or when a signal is repeated, it stops immediately.
            torchrun forwards signals that its processes also receive themselves, so there it counts as repeated only after 5 s.
        save: whether SIGUSR1 has asked for a checkpoint.
        waits: whether a loop checks `stop` and stops at its next safe point.
        notice: printed when a request to stop will be served later.
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
            return  # a worker that has just started
        if number in SAVE:
            self.save = True
        elif (
            self.stop and "TORCHELASTIC_RUN_ID" in os.environ and time.monotonic() - self._stop_time < _TORCHRUN_SECONDS
        ):
            return
        elif self.stop or not self.waits:
            self.stop = self.stop or number  # the exception may be swallowed
            stop_at_once(number, frame)
        else:
            self.stop, self._stop_time = number, time.monotonic()
            if self.notice:
                _write(f"\n{self.notice}")
