"""The command line: its commands and how they end. Each command is a function in `commands/`."""

import contextlib
import io
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from . import __version__
from .interrupt import SAVE, exit_code, handled, ignore, sentence, stop_at_once
from .recipes.find import recipe_functions


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line.

    Errors that a user can fix are reported in one sentence, with exit code 2; RANKSORT_TRACEBACK=1 shows where they arose. Ctrl-C ends
    the command with exit code 130 and SIGTERM with 143, as shells report them. It keeps running when nobody reads its output any longer.
    """
    with _robust("stdout"), _robust("stderr"):
        try:
            with handled(stop_at_once), handled(ignore, SAVE):
                _run_command(list(sys.argv[1:] if arguments is None else arguments))
        except KeyboardInterrupt as error:
            print(sentence(error), file=sys.stderr)
            sys.exit(exit_code(error))
        except (ValueError, OSError) as error:
            if os.environ.get("RANKSORT_TRACEBACK"):
                raise
            print(f"ranksort: {_sentence(error)}", file=sys.stderr)
            sys.exit(2)


def _run_command(arguments: list[str]) -> None:
    if arguments == ["--version"]:
        print(f"ranksort {__version__}")
        return
    if arguments[:1] == ["predict"] and any(argument.endswith(".onnx") for argument in arguments):
        from .exported.command import predict_exported

        predict_exported(arguments[1:])  # needs only onnxruntime, numpy and Pillow
        return
    try:
        import tyro
    except ModuleNotFoundError:
        sys.exit('ranksort: the command line belongs to the toolbox: pip install "ranksort[detection]"')
    from .commands.calibrate import apply_calibration, calibrate, merge
    from .commands.data import check_data, import_data
    from .commands.defaults import default_recipe
    from .commands.demo import demo
    from .commands.evaluate import evaluate, report, test_command
    from .commands.export import export
    from .commands.predict import predict
    from .commands.train import quickstart, train_command
    from .commands.weights import convert

    defaults = default_recipe(arguments)
    trained, tested = train_command(defaults), test_command(defaults)
    functions = (
        quickstart,
        recipes,
        trained,
        tested,
        predict,
        evaluate,
        report,
        check_data,
        import_data,
        convert,
        export,
    )
    results_commands = (calibrate, apply_calibration, merge)
    commands: dict[str, Callable[..., Any]] = {
        f.__name__.replace("_", "-"): f for f in (*functions, *results_commands, demo)
    }
    about = "Train and evaluate object detectors with Rank & Sort Loss. `ranksort --version` prints the version."
    tyro.extras.subcommand_cli_from_dict(commands, prog="ranksort", description=about, args=arguments)


def _sentence(error: ValueError | OSError) -> str:
    """The message of an error, in one line."""
    if isinstance(error, OSError) and error.filename is not None:
        return f"{os.fsdecode(error.filename)}: {error.strerror}"
    name = type(error).__name__
    message = str(error).strip() or name
    if "Traceback (most recent call last)" in message:  # from a worker process: the sentence comes last
        message = message.rpartition(f"\n{name}: ")[2]
    return " ".join(message.split("\n"))  # names of files and classes may have line breaks


class _Pipe(io.FileIO):
    """A stream that drops what is written after its reader has gone, as in `ranksort train ... | head`."""

    def write(self, content: Any) -> int:
        try:
            return super().write(content)
        except BrokenPipeError:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self.fileno())
            os.close(nowhere)
            return memoryview(content).nbytes


@contextlib.contextmanager
def _robust(name: str) -> Iterator[None]:
    """Keep a run alive when a console cannot show the name of a class or file, or when the reader of its output goes away.

    Output is line-buffered, also to a file, so that hours of work can be followed. `name` is the name of a stream in `sys`.
    """
    stream = getattr(sys, name)
    if not isinstance(stream, io.TextIOWrapper):
        yield
    elif stream.isatty() or stream is not getattr(sys, f"__{name}__"):
        stream.reconfigure(errors="replace", line_buffering=True)
        yield
    else:
        stream.flush()
        pipe = io.BufferedWriter(_Pipe(stream.fileno(), "w", closefd=False))
        setattr(sys, name, io.TextIOWrapper(pipe, stream.encoding, "replace", line_buffering=True))
        try:
            yield
        finally:
            getattr(sys, name).flush()
            setattr(sys, name, stream)


def recipes() -> None:
    """List the recipes."""
    functions = recipe_functions()
    width = max(map(len, functions))
    for name, function in functions.items():
        print(f"{name:<{width}}  {' '.join((function.__doc__ or '').split())}")
