"""A backend that says what it was told to: a second, independent implementation of the protocol, with a valve.

It lets a test stand still in the middle of a reply, which a real model cannot.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator

from nanochat_tui.chat.backend import Event, Finished, Progress, Request, Started, Stats, Token
from nanochat_tui.errors import UserError


class ScriptedBackend:
    name = "scripted-rust"
    kernel = "paper"
    threads = 2
    context_size = 512

    def __init__(self, *replies: str, is_chat: bool = False, fail: str | None = None) -> None:
        self.replies = list(replies)
        self.is_chat = is_chat
        self.fail = fail
        self.requests: list[Request] = []
        self.load_gate = threading.Event()
        self.load_gate.set()
        self.gate = threading.Event()
        self.gate.set()
        self.note_dropped = 0

    def can_continue(self, *, chat: bool) -> bool:
        return True

    def load(self, progress: Progress | None = None) -> None:
        if progress is not None:
            progress("compiling the paper kernel")
        while not self.load_gate.wait(0.1):
            if progress is not None:
                progress("compiling the paper kernel")
        if self.fail is not None:
            raise UserError(self.fail)

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
            if index == 1:  # the first word is out, and here a test may hold the reply
                while not self.gate.wait(0.01) and not cancel.is_set():
                    pass
            if cancel.is_set():
                yield Stats(100.0, 50.0, 3 + index, 512, index, 0.1)
                yield Finished("cancelled")
                return
            yield Token(word, index)
            yield Stats(100.0, 50.0, 4 + index, 512, index + 1, 0.1)
        yield Finished("length")
