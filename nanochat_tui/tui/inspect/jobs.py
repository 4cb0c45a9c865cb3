"""Work in the background of a pane: one thread per job, ended at its next report, never waited for.

They are daemon threads and not Textual workers, because the application waits for its workers at exit.
"""

from __future__ import annotations

import contextvars
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from textual.message import Message
from textual.message_pump import MessagePump

from nanochat_tui.errors import UserError, display_safe

REPORT_SECONDS = 0.1


class Stopped(Exception):  # noqa: N818 - a request, not an error
    """Raised inside a job that is no longer wanted, at its next report."""


@dataclass
class JobReport(Message):
    """A job has something to show: `value` is what it gave to `show`, or with None its progress changed."""

    job: Job
    value: Any = None


@dataclass
class JobEnded(Message):
    """A job is over: with a result, or with a sentence that says why not."""

    job: Job
    result: Any = None
    error: str | None = None


class Job:
    """One piece of work. `work` is called with the job itself, in a thread, and uses `tick` and `show`."""

    def __init__(
        self,
        owner: MessagePump,
        work: Callable[[Job], Any],
        done: Callable[[Any], None] | None = None,
        failed: Callable[[str], None] | None = None,
        shown: Callable[[Any], None] | None = None,
        total: int = 0,
    ) -> None:
        self.done, self.failed, self.shown = done, failed, shown
        self.total = total
        """Bytes that will be read, for a share; 0 if not known."""
        self.read = 0
        self.step = ""
        """What is being worked on."""
        self._owner = owner
        self._work = work
        self._stop = threading.Event()
        self._reported = 0.0
        context = contextvars.copy_context()  # by which Textual finds the application
        self._thread = threading.Thread(target=lambda: context.run(self._run), name="inspect", daemon=True)

    def start(self) -> Job:
        """Begin; messages to the owner follow."""
        self._thread.start()
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
        return self._thread.is_alive()

    @property
    def share(self) -> float:
        """How much of the work is done, 0 to 1."""
        return min(1.0, self.read / self.total) if self.total else 0.0

    def tick(self, size: int) -> None:
        """Say that `size` bytes were read. Raises Stopped if the job is no longer wanted."""
        self.check()
        self.read += size
        now = time.monotonic()
        if now - self._reported >= REPORT_SECONDS:
            self._reported = now
            self._owner.post_message(JobReport(self))

    def check(self) -> None:
        """Raise Stopped if the job is no longer wanted."""
        if self._stop.is_set():
            raise Stopped

    def show(self, value: Any) -> None:
        """Hand over a part of the result before the end."""
        self.check()
        self._owner.post_message(JobReport(self, value))

    def _run(self) -> None:
        try:
            ended = JobEnded(self, self._work(self))
        except Stopped:
            return
        except UserError as error:
            ended = JobEnded(self, error=str(error))
        except MemoryError:
            ended = JobEnded(self, error="There is not enough memory for this.")
        except Exception as error:
            if self.stopped:  # such as a file that was closed under it
                return
            reason = display_safe(f"{type(error).__name__}: {error}")
            ended = JobEnded(self, error=f"Something went wrong inside ({reason}); please report it.")
        if not self.stopped:
            self._owner.post_message(ended)
