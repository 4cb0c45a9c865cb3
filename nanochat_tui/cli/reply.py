"""Playing a reply on stdout, as text for people and pipes or as JSON for scripts."""

from __future__ import annotations

import json
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from types import FrameType
from typing import Protocol

from nanochat_tui.chat.backend import Backend, Event, Finished, Request, Started, Stats, Token
from nanochat_tui.chat.printable import printable

DIM, RESET = "\x1b[2m", "\x1b[0m"


class Writer(Protocol):
    """Receives every event of a reply in order."""

    def write(self, event: Event) -> None:
        """Show one event."""


class TextWriter:
    """Writes the reply and nothing else to stdout; on a terminal it is made safe and follows the prompt, dimmed.

    `echo` is the prompt of a completion, without which its continuation can hardly be read; '' for a conversation.
    """

    def __init__(self, echo: str = "") -> None:
        self._terminal = sys.stdout.isatty()
        self._narrate = sys.stderr.isatty()
        self._echo = echo if self._terminal and self._narrate else ""
        self._ends_line = not self._echo
        self._stats: Stats | None = None

    def write(self, event: Event) -> None:
        """Show one event."""
        match event:
            case Started(note=note):
                if note is not None:
                    sys.stderr.write(f"note: {note}\n")
                if self._echo:
                    sys.stderr.write(f"{DIM}{printable(self._echo)}{RESET}")
                sys.stderr.flush()
            case Token(text=text) if text:
                sys.stdout.write(printable(text) if self._terminal else text)
                sys.stdout.flush()
                self._ends_line = text.endswith("\n")
            case Stats():
                self._stats = event
            case Finished(reason=reason):
                if not self._ends_line:
                    sys.stdout.write("\n")
                sys.stdout.flush()
                if self._narrate and self._stats is not None:
                    sys.stderr.write(f"{DIM}{summary(self._stats, reason)}{RESET}\n")
            case _:
                pass


class JsonWriter:
    """Writes one JSON object per event; the last one repeats the text and sums up."""

    def __init__(self) -> None:
        self._text: list[str] = []
        self._prompt_tokens = 0
        self._stats: Stats | None = None

    def write(self, event: Event) -> None:
        """Show one event."""
        name = type(event).__name__.lower()
        row: dict[str, object] = {"event": name, **asdict(event)}
        match event:
            case Started():
                self._prompt_tokens = event.prompt_tokens
            case Token():
                self._text.append(event.text)
            case Stats():
                self._stats = event
            case Finished():
                stats = self._stats
                row |= {
                    "text": "".join(self._text),
                    "prompt_tokens": self._prompt_tokens,
                    "tokens": stats.generated if stats else 0,
                    "prompt_tps": stats.prompt_tps if stats else None,
                    "decode_tps": stats.decode_tps if stats else None,
                    "seconds_to_first_token": stats.seconds_to_first_token if stats else None,
                    "drafted": stats.drafted if stats else 0,
                    "accepted": stats.accepted if stats else 0,
                }
        print(json.dumps(row), flush=True)


def summary(stats: Stats, reason: str) -> str:
    """One line on how a reply went."""
    parts = [f"{stats.generated} tokens"]
    if stats.decode_tps:
        parts.append(f"{stats.decode_tps:.0f} tok/s")
    if stats.prompt_tps:
        parts.append(f"prompt {stats.prompt_tps:.0f} tok/s")
    if stats.context_size:
        parts.append(f"context {stats.context_used} of {stats.context_size}")
    if stats.drafted:
        parts.append(f"guessed ahead {stats.accepted} of {stats.drafted} kept")
    parts.append({"stop": "done", "length": "length limit", "cancelled": "interrupted"}[reason])
    return " · ".join(parts)


def play(backend: Backend, request: Request, writer: Writer) -> int:
    """Send every event of the reply to `writer`; returns 0, or 130 if Ctrl+C ended it."""
    with _cancel_on_interrupt() as cancel:
        reason = "stop"
        for event in backend.chat(request, cancel):
            writer.write(event)
            if isinstance(event, Finished):
                reason = event.reason
        return 130 if reason == "cancelled" else 0


@contextmanager
def _cancel_on_interrupt() -> Iterator[threading.Event]:
    """Let the first Ctrl+C end the reply at the next token, so that what was said is whole; the second one is final."""
    cancel = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield cancel
        return
    previous = signal.getsignal(signal.SIGINT)

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        cancel.set()
        signal.signal(signal.SIGINT, signal.default_int_handler)

    signal.signal(signal.SIGINT, interrupt)
    try:
        yield cancel
    finally:
        signal.signal(signal.SIGINT, previous)
