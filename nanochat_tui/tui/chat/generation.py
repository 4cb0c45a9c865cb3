"""Threads that load a model and write replies, reporting to a widget by messages.

Tokens are sent in batches: a model writes hundreds per second, a terminal shows thirty frames.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from dataclasses import dataclass, replace

from textual.message import Message

from nanochat_tui.chat.backend import Backend, Event, Finished, Request, Started, Stats, Token, ToolCall
from nanochat_tui.chat.tools.definitions import Tool
from nanochat_tui.chat.tools.loop import answer
from nanochat_tui.chat.tools.records import CallRecord
from nanochat_tui.chat.tools.toolbox import Answer, Toolbox
from nanochat_tui.tui.background import explain, start_thread
from nanochat_tui.tui.collecting import keep_what_is_loaded
from nanochat_tui.tui.messages import (
    BackendFailed,
    BackendProgress,
    BackendReady,
    ReplyAsks,
    ReplyCall,
    ReplyEnded,
    ReplyNote,
    ReplyStarted,
    ReplyStats,
    ReplyText,
)

BATCH_SECONDS = 0.04
"""Least time between two pieces of text: 25 a second, which reads as continuous and leaves the event loop its time."""

TOOLS_SECONDS = 10.0
"""How long a reply waits for servers of tools that are starting; those that come later are there for the next one."""
POLL = 0.05

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
    events: Iterable[Event | CallRecord], interval: float = BATCH_SECONDS, clock: Callable[[], float] = time.monotonic
) -> Iterator[Batch | Started | Stats | CallRecord | Finished]:
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
        if pending and isinstance(event, Finished | CallRecord):
            yield joined()
        if not isinstance(event, ToolCall):  # it comes again, as a record
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
    """Writes one reply in the background, with the tools of a toolbox if one is given.

    first_round: the number of the first round of calls, for a reply that is continued.
    """

    def __init__(
        self,
        run: int,
        backend: Backend,
        request: Request,
        post: Post,
        toolbox: Toolbox | None = None,
        first_round: int = 0,
    ) -> None:
        self.run = run
        self._backend = backend
        self._request = request
        self._post = post
        self._toolbox, self._first_round = toolbox, first_round
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
            for event in batched(self._events()):
                match event:
                    case Started():
                        post(ReplyStarted(run, event.prompt_tokens or 0, event.note))
                    case Batch():
                        post(ReplyText(run, event.text, event.tokens, event.thinking))
                    case Stats():
                        post(ReplyStats(run, event))
                    case CallRecord():
                        post(ReplyCall(run, event))
                    case Finished():
                        post(ReplyEnded(run, event.reason))
        except Exception as exc:
            post(ReplyEnded(run, None, explain(exc)))

    def _events(self) -> Iterator[Event | CallRecord]:
        toolbox = self._toolbox
        if toolbox is None:
            yield from self._backend.chat(self._request, self._cancel)
            return
        toolbox.ready(TOOLS_SECONDS, self._cancel)
        for problem in toolbox.problems():
            self._post(ReplyNote(self.run, problem))
        request = replace(self._request, tools=toolbox.specs())
        yield from answer(self._backend, request, toolbox, self._ask, self._cancel, first=self._first_round)
        for problem in toolbox.problems():
            self._post(ReplyNote(self.run, problem))

    def _ask(self, record: CallRecord, tool: Tool) -> Answer:
        """Ask the user, waiting as long as it takes; a reply that is stopped makes no call."""
        asked: Future[Answer] = Future()
        self._post(ReplyAsks(self.run, record, tool, asked))
        while not self._cancel.is_set():
            try:
                return asked.result(POLL)
            except FutureTimeout:
                continue
        return "no"
