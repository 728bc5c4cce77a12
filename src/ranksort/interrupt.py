"""Ctrl-C that waits for a moment at which it can be obeyed."""

import os
import signal
import threading
from typing import Any


class Interrupt:
    """Remembers that it was `requested`, for a loop to end at its next safe point; pressed again, it interrupts at once.

    `notice` is printed when it is pressed first.
    """

    def __init__(self, notice: str) -> None:
        self.notice, self.requested = notice, False
        self._process = os.getpid()
        self._previous: Any = None

    def install(self) -> None:
        """Take the place of Python's handler, where this is the main thread."""
        if threading.current_thread() is threading.main_thread():
            self._previous = signal.signal(signal.SIGINT, self._request)

    def remove(self) -> None:
        """Give the place back."""
        if self._previous is not None:
            signal.signal(signal.SIGINT, self._previous)

    def _request(self, *_: Any) -> None:
        if os.getpid() != self._process:
            return  # a worker which loads images: the terminal signals it as well
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True
        print(self.notice)
