"""Standard streams that fail in a known way: stdout is data, and its loss is told; stderr is narration, and is not.

A program may be started with a stream closed (`>&-`). Python then has None in its place, prints nothing without a word
(or, where stderr was asked for, to stdout), and the next file that is opened takes the stream's number.
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Callable
from typing import TypeVar

from nanochat_tui.errors import UserError, reason_of

T = TypeVar("T")


class OutputError(UserError):
    """What a command says could not be written."""

    exit_code = 1


class ReaderLeftError(BrokenPipeError):
    """The reader of the output has seen enough (`| head`); a pipe that breaks elsewhere is a failure."""


class Output(io.TextIOWrapper):
    """stdout: a failed write is an `OutputError`, save that a reader who left is a `ReaderLeftError`.

    What the terminal's or locale's encoding lacks is written as an escape.
    """

    def write(self, text: str, /) -> int:
        """Write text."""
        return _told(lambda: super(Output, self).write(text))

    def flush(self) -> None:
        """Hand on what was written."""
        _told(super().flush)


def _told(act: Callable[[], T]) -> T:
    try:
        return act()
    except BrokenPipeError as exc:
        raise ReaderLeftError(exc.errno, exc.strerror) from exc
    except OSError as exc:
        raise OutputError(f"The output could not be written: {_words(exc)}.") from exc


def _words(exc: OSError) -> str:
    import errno

    return "standard output is closed" if exc.errno == errno.EBADF else reason_of(exc)


class Narrated(io.TextIOWrapper):
    """stderr: whatever cannot be written is left out, so that a full disk under a log ends no work."""

    def write(self, text: str, /) -> int:
        """Write text if that is possible."""
        with contextlib.suppress(OSError):
            return super().write(text)
        return len(text)

    def flush(self) -> None:
        """Hand on what was written, if that is possible."""
        with contextlib.suppress(OSError):
            super().flush()


def secure_streams() -> None:
    """Put such streams in the place of Python's own."""
    for number, flags in ((0, os.O_WRONLY), (1, os.O_RDONLY), (2, os.O_WRONLY)):
        _occupy(number, flags)
    for name, number, kind in (("stdout", 1, Output), ("stderr", 2, Narrated)):
        old = getattr(sys, name)
        if old is not None:
            with contextlib.suppress(OSError):
                old.flush()
        encoding = old.encoding if old is not None else "utf-8"
        raw = io.FileIO(number, "w", closefd=False)
        made = kind(
            raw if number == 2 else io.BufferedWriter(raw),
            encoding=encoding,
            errors="backslashreplace",
            line_buffering=number == 1 and raw.isatty(),
            write_through=number == 2,
        )
        setattr(sys, name, made)


def _occupy(number: int, flags: int) -> None:
    """Open the null device under the number of a closed stream, in the wrong direction for data, so that its use fails
    as it would have; stderr may be written to.
    """
    try:
        os.fstat(number)
    except OSError:
        null = os.open(os.devnull, flags)  # takes the lowest free number, which is this one or a lower one
        if null != number:
            os.dup2(null, number)
            os.close(null)


def silence(number: int) -> None:
    """Send a stream to the null device from now on, so that what its buffer still holds can go there at exit."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, number)
    os.close(null)
