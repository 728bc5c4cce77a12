"""Commands in processes that are forked from the tests': what takes seconds to import is there already."""

import multiprocessing
import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from subprocess import CompletedProcess

from ranksort import cli

fork = multiprocessing.get_context("fork")


def run_forked(
    arguments: Sequence[str],
    variables: Mapping[str, str] | None = None,
    timeout: float = 120,
    script: Path | None = None,
) -> "CompletedProcess[str]":
    """What `ranksort ARGUMENTS` prints and returns, in a session of its own, with some more environment variables.

    With `script`, a path for a program that runs `ranksort`, the run may have several processes: it starts this program for the others.
    """
    if script is not None:
        script.write_text("from ranksort.cli import main\n\nmain()\n")
    with tempfile.TemporaryFile("w+", errors="replace") as out, tempfile.TemporaryFile("w+", errors="replace") as err:

        def child() -> None:
            os.setsid()
            os.environ.update(variables or {})
            if script is not None:  # as Lightning finds the command to repeat
                sys.argv = [str(script), *arguments]
                sys.modules["__main__"].__spec__ = None
            for number, file in ((1, out), (2, err)):
                os.dup2(file.fileno(), number)
            # As a new interpreter has them, not those in which pytest collects what a test prints.
            encoding = os.environ.get("PYTHONIOENCODING")
            sys.stdout = sys.__stdout__ = open(1, "w", encoding=encoding, closefd=False)  # noqa: SIM115
            sys.stderr = sys.__stderr__ = open(2, "w", encoding=encoding, closefd=False)  # noqa: SIM115
            try:
                cli.main(arguments)
            finally:
                sys.stdout.flush()
                sys.stderr.flush()

        process = fork.Process(target=child)
        process.start()
        process.join(timeout)
        if process.exitcode is None:
            process.kill()
            process.join()
            raise TimeoutError(f"ranksort {' '.join(arguments)} has not ended after {timeout} seconds")
        for file in (out, err):
            file.seek(0)
        return CompletedProcess(list(arguments), process.exitcode, out.read(), err.read())
