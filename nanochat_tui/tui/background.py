"""Work next to the screen, in one way: daemon threads that report to a widget, and are never waited for.

They are not Textual workers, because the application waits for its workers at exit, and neither a compilation nor a
disk that hangs can be interrupted.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import inspect
import os
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, Generic, Protocol, TypeVar

from textual.events import Callback
from textual.message import Message
from textual.notifications import SeverityLevel

from nanochat_tui.errors import UserError, reason_of
from nanochat_tui.text import display_safe

REPORT_SECONDS = 0.1
YIELDS = 5
"""How much nicer the threads that compute are than the one that draws. With as many of them as there are processors,
the drawing thread would otherwise wait for its turn for up to a tenth of a second."""

T = TypeVar("T")
U = TypeVar("U")


class Owner(Protocol):
    """A widget, or the screen: what is told about its work."""

    def post_message(self, message: Message) -> bool:
        """Take a message, from any thread."""


class Stopped(Exception):  # noqa: N818 - a request, not an error
    """Raised inside a job that is no longer wanted, at its next report."""


def start_thread(name: str, work: Callable[[], object], *, yields: bool = False) -> threading.Thread:
    """Start a daemon thread that sees the caller's context variables, by which Textual finds the application.

    With `yields` it, and those it starts, such as the engine's, stand back for the thread that draws.
    """
    context = contextvars.copy_context()

    def run() -> None:
        if yields:
            _yield_to_drawing()
        context.run(work)

    thread = threading.Thread(target=run, name=name, daemon=True)
    thread.start()
    return thread


def _yield_to_drawing() -> None:
    if sys.platform == "linux":  # elsewhere priorities belong to whole processes
        thread = threading.get_native_id()
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, thread, min(19, os.getpriority(os.PRIO_PROCESS, thread) + YIELDS))


def explain(error: Exception) -> str:
    """Put a failure into words for the person at the keyboard."""
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, MemoryError):
        return "There is not enough memory for this; close other programs, or use a smaller model."
    if isinstance(error, OSError):
        return f"Cannot use {display_safe(str(error.filename or 'a file'))}: {reason_of(error)}."
    reason = display_safe(f"{type(error).__name__}: {error}")
    return f"Something went wrong inside ({reason}); please report it."


class Job(Generic[T]):
    """One piece of work. `work` is called with the job itself, in a thread, and may use `tick` and `show`.

    The other functions are called by the owner, in its own turn, and not after `stop`: `done` with the result, or
    `failed` with a sentence that says why there is none; before that `shown` with each part handed over, and
    `progressed` whenever that changed. `unwanted` gets the result of a job that was stopped.
    """

    def __init__(
        self,
        owner: Owner,
        work: Callable[[Job[T]], T],
        done: Callable[[T], object] | None = None,
        failed: Callable[[str], object] | None = None,
        *,
        shown: Callable[[Any], object] | None = None,
        progressed: Callable[[Job[T]], object] | None = None,
        unwanted: Callable[[T], object] | None = None,
        total: int = 0,
        name: str = "work",
    ) -> None:
        self.total = total
        """Bytes that will be read, for a share; 0 if not known."""
        self.read = 0
        self.step = ""
        """What is being worked on."""
        self._owner, self._work, self._name = owner, work, name
        self._done, self._failed, self._shown = done, failed, shown
        self._progressed, self._unwanted = progressed, unwanted
        self._stop = threading.Event()
        self._reported = 0.0
        self._thread: threading.Thread | None = None

    def start(self) -> Job[T]:
        """Begin."""
        self._thread = start_thread(self._name, self._run)
        return self

    def stop(self) -> None:
        """Ask for the end; nothing more is heard of the job."""
        self._stop.set()

    @property
    def stopped(self) -> bool:
        """Whether it was asked to end."""
        return self._stop.is_set()

    @property
    def is_working(self) -> bool:
        """Whether the thread still runs."""
        return self._thread is not None and self._thread.is_alive()

    @property
    def share(self) -> float:
        """How much of the work is done, 0 to 1."""
        return min(1.0, self.read / self.total) if self.total else 0.0

    def tick(self, size: int) -> None:
        """Say that `size` bytes were read. Raises `Stopped` if the job is no longer wanted."""
        self.check()
        self.read += size
        now = time.monotonic()
        if now - self._reported >= REPORT_SECONDS:
            self._reported = now
            self._tell(self._progressed, self)

    def check(self) -> None:
        """Raise `Stopped` if the job is no longer wanted."""
        if self._stop.is_set():
            raise Stopped

    def show(self, value: Any) -> None:
        """Hand over a part of the result before the end."""
        self.check()
        self._tell(self._shown, value)
        self._tell(self._progressed, self)

    def _run(self) -> None:
        try:
            result = self._work(self)
        except Stopped:
            return
        except Exception as error:
            if not self.stopped:  # else it is such as a file that was closed under it
                self._tell(self._failed, explain(error))
            return
        if self.stopped:
            self._drop(result)
        else:
            self._tell(self._done, result, self._unwanted)

    def _drop(self, result: T) -> None:
        if self._unwanted is not None:
            self._unwanted(result)

    def _tell(
        self, what: Callable[[U], object] | None, value: U, otherwise: Callable[[U], object] | None = None
    ) -> None:
        """Let the owner call `what`, or `otherwise` if the job was stopped by then."""

        async def call() -> None:
            chosen = otherwise if self.stopped else what
            result = None if chosen is None else chosen(value)
            if inspect.isawaitable(result):
                await result

        if what is not None or otherwise is not None:
            self._owner.post_message(Callback(call))


class Notifies(Protocol):
    """A widget, or the screen: what can say something in passing."""

    def notify(
        self,
        message: str,
        *,
        severity: SeverityLevel = "information",
        timeout: float | None = None,
        markup: bool = True,
    ) -> None:
        """Show a short note for some seconds."""


async def answer_of(node: Notifies, future: Future[T]) -> T | None:
    """Return what a thread answers; an error a person can act on is shown as a notification and gives None."""
    try:
        return await asyncio.wrap_future(future)
    except UserError as exc:
        node.notify(str(exc), severity="error", timeout=8, markup=False)
        return None
