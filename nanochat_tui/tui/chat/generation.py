"""Threads that load a model and write replies, reporting to a widget by messages.

Tokens are sent in batches: a model writes hundreds per second, a terminal shows thirty frames.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from textual.message import Message

from nanochat_tui.chat.backend import Backend, Event, Finished, Request, Started, Stats, Token
from nanochat_tui.tui.background import explain, start_thread
from nanochat_tui.tui.collecting import keep_what_is_loaded
from nanochat_tui.tui.messages import (
    BackendFailed,
    BackendProgress,
    BackendReady,
    ReplyEnded,
    ReplyStarted,
    ReplyStats,
    ReplyText,
)

BATCH_SECONDS = 0.04
"""Least time between two pieces of text: 25 a second, which reads as continuous and leaves the event loop its time."""

Post = Callable[[Message], object]


class LoadingStopped(Exception):  # noqa: N818 - a request, not an error
    """The application is closing; raised inside `load` at its next report."""


@dataclass(frozen=True, slots=True)
class Batch:
    """The tokens of one moment, their text joined. All of them are thinking, or none."""

    text: str
    tokens: tuple[Token, ...]
    thinking: bool = False


def batched(
    events: Iterable[Event], interval: float = BATCH_SECONDS, clock: Callable[[], float] = time.monotonic
) -> Iterator[Batch | Started | Stats | Finished]:
    """Join tokens that arrive within `interval` seconds; every other event keeps its place.

    The first token goes out at once, because it is waited for; and so does everything pending at the end.
    """
    pending: list[Token] = []
    sent = -float("inf")

    def joined() -> Batch:
        batch = Batch("".join(token.text for token in pending), tuple(pending), pending[0].thinking)
        pending.clear()
        return batch

    for event in events:
        if isinstance(event, Token):
            if pending and pending[0].thinking != event.thinking:
                yield joined()
            pending.append(event)
            now = clock()
            if now - sent >= interval and any(token.text for token in pending):
                yield joined()
                sent = now
            continue
        if pending and isinstance(event, Finished):
            yield joined()
        yield event
    if pending:
        yield joined()


class Loader:
    """Loads a backend in the background."""

    def __init__(self, backend: Backend, post: Post) -> None:
        self._backend = backend
        self._post = post
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin; messages follow."""
        self._thread = start_thread("load", self._run, yields=True)

    def stop(self) -> None:
        """Give up at the next report of progress."""
        self._stop.set()

    @property
    def is_working(self) -> bool:
        """Whether the thread still runs."""
        return self._thread is not None and self._thread.is_alive()

    def _run(self) -> None:
        def progress(step: str) -> None:
            if self._stop.is_set():
                raise LoadingStopped
            self._post(BackendProgress(self._backend, step))

        try:
            self._backend.load(progress)
        except LoadingStopped:
            return
        except Exception as exc:
            if self._stop.is_set():
                return
            self._post(BackendFailed(self._backend, explain(exc)))
        else:
            keep_what_is_loaded()
            if not self._stop.is_set():
                self._post(BackendReady(self._backend))


class Generation:
    """Writes one reply in the background."""

    def __init__(self, run: int, backend: Backend, request: Request, post: Post) -> None:
        self.run = run
        self._backend = backend
        self._request = request
        self._post = post
        self._cancel = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin; messages follow, the last one being `ReplyEnded`."""
        self._thread = start_thread(f"reply-{self.run}", self._run, yields=True)

    def stop(self) -> None:
        """End the reply at the next token."""
        self._cancel.set()

    def join(self, seconds: float) -> bool:
        """Wait for the thread to end; returns whether it did."""
        if self._thread is None:
            return True
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def _run(self) -> None:
        run, post = self.run, self._post
        try:
            for event in batched(self._backend.chat(self._request, self._cancel)):
                match event:
                    case Started():
                        post(ReplyStarted(run, event.prompt_tokens or 0, event.note))
                    case Batch():
                        post(ReplyText(run, event.text, event.tokens, event.thinking))
                    case Stats():
                        post(ReplyStats(run, event))
                    case Finished():
                        post(ReplyEnded(run, event.reason))
        except Exception as exc:
            post(ReplyEnded(run, None, explain(exc)))
