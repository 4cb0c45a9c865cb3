"""A backend that says what it was told to: a second, independent implementation of the protocol, with a valve.

It lets a test stand still in the middle of a reply, which a real model cannot.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator

from nanochat_tui.chat.backend import BackendError, Event, Finished, Progress, Request, Started, Stats, Token
from nanochat_tui.errors import UserError


class ScriptedBackend:
    """Like a real one it tells nothing but its name before it is loaded."""

    name = "scripted-rust"
    path = None
    scorer = None

    def __init__(self, *replies: str, is_chat: bool = False, fail: str | None = None, continues: bool = True) -> None:
        self.replies = list(replies)
        self._is_chat = is_chat
        self._continues = continues
        self._loaded = False
        self.fail = fail
        self.requests: list[Request] = []
        self.load_gate = threading.Event()
        self.load_gate.set()
        self.gate = threading.Event()
        self.gate.set()
        self.hold_first = False
        """Whether the gate holds the first word back too."""
        self.note_dropped = 0

    def _ready(self) -> None:
        if not self._loaded:
            raise BackendError("The model is not loaded yet; load it first.")

    @property
    def kernel(self) -> str:
        self._ready()
        return "paper"

    @property
    def threads(self) -> int:
        self._ready()
        return 2

    @property
    def context_size(self) -> int:
        self._ready()
        return 512

    @property
    def is_chat(self) -> bool:
        self._ready()
        return self._is_chat

    def can_continue(self, *, chat: bool) -> bool:
        self._ready()
        return self._continues

    def reading(self) -> Stats | None:
        return None

    def close(self) -> None: ...

    def load(self, progress: Progress | None = None) -> None:
        if progress is not None:
            progress("compiling the paper kernel")
        while not self.load_gate.wait(0.1):
            if progress is not None:
                progress("compiling the paper kernel")
        if self.fail is not None:
            raise UserError(self.fail)
        self._loaded = True

    def chat(self, request: Request, cancel: threading.Event) -> Iterator[Event]:
        self.requests.append(request)
        reply = self.replies[(len(self.requests) - 1) % len(self.replies)]
        if reply.startswith("!"):
            yield Started(3)
            raise UserError(reply[1:])
        yield Started(3, dropped_tokens=self.note_dropped)
        words = [word + " " for word in reply.split(" ")]
        words[-1] = words[-1][:-1]
        for index, word in enumerate(words):
            if index == 1 - self.hold_first:  # the first word is out, and here a test may hold the reply
                while not self.gate.wait(0.01) and not cancel.is_set():
                    pass
            if cancel.is_set():
                yield Stats(100.0, 50.0, 3 + index, 512, index, 0.1)
                yield Finished("cancelled")
                return
            yield Token(word, index)
            yield Stats(100.0, 50.0, 4 + index, 512, index + 1, 0.1)
        yield Finished("length")
