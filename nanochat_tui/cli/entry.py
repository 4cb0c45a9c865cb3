"""Where `nanochat-tui` begins.

`--version` is answered before anything heavy is imported. All failures end here, as one sentence on stderr and an exit
code that scripts can rely on: 0 done, 1 failed, 2 bad input or usage, 130 interrupted.
"""

from __future__ import annotations

import contextlib
import gc
import os
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

from nanochat_tui.cli.streams import OutputError, ReaderLeftError, secure_streams, silence
from nanochat_tui.errors import UserError, reason_of

DEBUG_VARIABLE = "NANOCHAT_DEBUG"
"""Set to anything, it shows tracebacks: for reports of bugs, not for every day."""
OBJECTS_PER_COLLECTION = 50_000
"""Python's own 700 has it look through all objects dozens of times while a start makes hundreds of thousands to keep:
an eighth of the time."""

IDLE_VARIABLE, IDLE = "OPENBLAS_THREAD_TIMEOUT", "4"
"""The power of two of processor cycles for which threads of NumPy's BLAS go round in circles before they sleep. They
begin as NumPy is imported, one per core, and left to themselves each would do so for 70 ms of a start."""


def main() -> NoReturn:
    """Run the command line of this process and leave with its exit code."""
    sys.exit(begin("nanochat-tui", _dispatch))


def _dispatch(arguments: Sequence[str]) -> int:
    from nanochat_tui.cli.app import dispatch

    return dispatch(arguments)


def begin(program: str, command: Callable[[Sequence[str]], int]) -> int:
    """Run `command` with this process's arguments, or say the version of `program`; return the exit code."""

    def version(_: Sequence[str]) -> int:
        from nanochat_tui import __version__

        print(f"{program} {__version__}")
        return 0

    secure_streams()
    arguments = sys.argv[1:]
    return run(version if arguments in (["--version"], ["-V"]) else command, arguments)


def run(command: Callable[[Sequence[str]], int], arguments: Sequence[str]) -> int:
    """Call `command(arguments)` and turn whatever happens into an exit code; stderr gets at most one sentence."""
    gc.set_threshold(OBJECTS_PER_COLLECTION)
    os.environ.setdefault(IDLE_VARIABLE, IDLE)
    try:
        code = command(arguments)
        sys.stdout.flush()
        return code
    except UserError as exc:
        if isinstance(exc, OutputError):
            silence(1)
        return _fail(str(exc), exc.exit_code, exc)
    except KeyboardInterrupt:
        _say("")
        return 130
    except ReaderLeftError:
        return _reader_left()
    except SystemExit as exc:
        if isinstance(exc.__context__, ReaderLeftError):  # typer turns it into an exit with code 1
            return _reader_left()
        raise
    except Exception as exc:
        if isinstance(exc.__cause__, KeyboardInterrupt):  # typer's Abort, which has ended the line already
            return 130
        if hasattr(exc, "format_message"):  # a usage error of typer's click, whichever one it carries
            text = " ".join(exc.format_message().split()).rstrip(".")
            return _fail(f"{text}; --help shows what is possible.", getattr(exc, "exit_code", 2), exc)
        if isinstance(exc, MemoryError):
            return _fail("There is not enough memory for this; use a smaller model or context.", 1, exc)
        if isinstance(exc, RecursionError):
            return _fail("The input is nested too deeply to be read; check the file.", 2, exc)
        if isinstance(exc, OSError):
            name = f" ({exc.filename})" if isinstance(exc.filename, str) and exc.filename else ""
            return _fail(f"The system refused: {reason_of(exc)}{name}.", 1, exc)
        kind = type(exc).__name__
        text = f"This should not happen ({kind}: {exc}); set {DEBUG_VARIABLE}=1 to see where, and report it."
        return _fail(text, 1, exc)


def _reader_left() -> int:
    """Be done, which is no failure; Python would complain while flushing at exit."""
    silence(1)
    return 0


def _fail(text: str, code: int, exc: BaseException) -> int:
    if os.environ.get(DEBUG_VARIABLE):
        import traceback

        traceback.print_exception(exc)
    from nanochat_tui.text import printable

    _say(f"error: {printable(text)}")
    return code


def _say(line: str) -> None:
    with contextlib.suppress(OSError):
        print(line, file=sys.stderr, flush=True)
