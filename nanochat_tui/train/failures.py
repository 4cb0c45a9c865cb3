"""What ends a training, or only an evaluation, in words a person can act on."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from nanochat_tui.errors import UserError, plain_reason


class Interrupted(BaseException):
    """A stop was asked for while an evaluation or a sample was at work. No Exception, so that nothing swallows it."""


class OutOfMemoryError(UserError):
    """The model and its batches do not fit."""

    exit_code = 1


def is_memory(error: BaseException) -> bool:
    """Whether there was too little memory, on whatever device."""
    return isinstance(error, MemoryError) or any(w in str(error) for w in ("allocate memory", "out of memory"))


def reason_of(error: BaseException) -> str:
    """What went wrong, as a person can act on it where that is known."""
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, KeyboardInterrupt):
        return "ended by a second signal, before a checkpoint was written"
    if is_memory(error):
        return "there is not enough memory; lower --batch-size or --seq-len"
    if isinstance(error, OSError):
        return plain_reason(error)
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:500]


@contextmanager
def on_stop_signals(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Hand SIGINT and SIGTERM to `handler` in a block."""
    numbers = (signal.SIGINT, signal.SIGTERM)
    previous = [signal.signal(number, handler) for number in numbers]
    try:
        yield
    finally:
        for number, before in zip(numbers, previous, strict=True):
            signal.signal(number, before)
