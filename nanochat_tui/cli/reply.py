"""Playing a reply on stdout, as text for people and pipes or as JSON for scripts."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from types import FrameType
from typing import TYPE_CHECKING, Literal, Protocol

from nanochat_tui.chat.backend import Backend, BackendError, Event, Finished, Request, Started, Stats, Token
from nanochat_tui.chat.tools.records import OPEN, CallRecord
from nanochat_tui.cli.json_output import json_text
from nanochat_tui.text import display_safe, printable

if TYPE_CHECKING:
    from nanochat_tui.chat.tools.toolbox import Toolbox

Thinking = Literal["stderr", "stdout", "hide"]
"""Where the thinking of a model goes that thinks before it answers."""
DIM, RESET = "\x1b[2m", "\x1b[0m"


class Writer(Protocol):
    """Receives every event of a reply in order."""

    def write(self, event: Event | CallRecord) -> None:
        """Show one event."""

    def broken(self) -> None:
        """Make ready for the sentence that says why the reply broke off."""


class TextWriter:
    """Writes the answer and nothing else to stdout; on a terminal it is made safe and follows the prompt, dimmed.

    `echo` is the prompt of a completion, without which its continuation can hardly be read; '' for a conversation.
    `suffix` is the text behind a gap that is filled in; it follows, dimmed, where the prompt is shown.
    `thinking` says where the model's thinking goes; on stdout a blank line parts it from the answer.
    """

    def __init__(self, echo: str = "", suffix: str = "", thinking: Thinking = "stderr") -> None:
        self._terminal = sys.stdout.isatty()
        self._narrate = sys.stderr.isatty()
        self._echo = echo if self._terminal and self._narrate else ""
        self._suffix = suffix if self._echo else ""
        self._ends_line = not self._echo
        self._thinking = thinking
        self._open_thought = ""
        """The last character of thinking that is on show and that no answer has followed; '' if there is none."""
        self._thought = self._answered = False
        self._stats: Stats | None = None

    def write(self, event: Event | CallRecord) -> None:
        """Show one event."""
        match event:
            case Started(note=note):
                if note is not None:
                    sys.stderr.write(f"note: {note}\n")
                if self._echo:
                    sys.stderr.write(f"{DIM}{printable(self._echo)}{RESET}")
                sys.stderr.flush()
            case Token(text=text, thinking=True) if text:
                self._thought = True
                self._think(text)
            case Token(text=text) if text:
                self._end_thought()
                self._answered = True
                sys.stdout.write(printable(text) if self._terminal else text)
                sys.stdout.flush()
                self._ends_line = text.endswith("\n")
            case Stats():
                self._stats = event
            case CallRecord():
                self._end_thought()
                self._tell_call(event)
            case Finished(reason=reason):
                self._end_thought()
                if self._suffix:
                    sys.stdout.flush()
                    sys.stderr.write(f"{DIM}{printable(self._suffix)}{RESET}")
                    sys.stderr.flush()
                    self._ends_line = self._suffix.endswith("\n")
                if not self._ends_line:
                    sys.stdout.write("\n")
                sys.stdout.flush()
                if self._thought and not self._answered and reason == "length":
                    sys.stderr.write("note: the limit came while the model was thinking; raise --max-tokens\n")
                if self._narrate and self._stats is not None:
                    sys.stderr.write(f"{DIM}{summary(self._stats, reason)}{RESET}\n")
                sys.stderr.flush()
            case _:
                pass

    def _tell_call(self, record: CallRecord) -> None:
        """Name a call on stderr as it begins, and say how it ended."""
        name = display_safe(record.title, 80)
        if record.state == "waiting":
            return
        if self._terminal and not self._ends_line:
            sys.stdout.write("\n")
            self._ends_line = True
        sys.stdout.flush()
        line = f"tool {name} {display_safe(record.arguments, 160)}"
        if record.state not in OPEN:
            why = "" if record.state == "done" else f": {display_safe(record.result, 160)}"
            line = f"tool {name} {record.outcome}{why}"
        sys.stderr.write(f"{DIM}{line}{RESET}\n" if self._narrate else f"{line}\n")
        sys.stderr.flush()

    def broken(self) -> None:
        """Let the sentence begin a line of its own, where the reply stands on the same terminal."""
        self._end_thought()
        if self._terminal and self._narrate and not self._ends_line:
            sys.stderr.write("\n")

    def _think(self, text: str) -> None:
        if self._thinking == "stdout":
            sys.stdout.write(printable(text) if self._terminal else text)
            sys.stdout.flush()
            self._ends_line = text.endswith("\n")
        elif self._thinking == "stderr":
            sys.stderr.write(f"{DIM}{printable(text)}{RESET}" if self._narrate else printable(text))
            sys.stderr.flush()
        else:
            return
        self._open_thought = text[-1]

    def _end_thought(self) -> None:
        """Part thinking that is on show from what follows it, by a blank line where both go to the same place."""
        if not self._open_thought:
            return
        line = "" if self._open_thought == "\n" else "\n"
        self._open_thought = ""
        if self._thinking == "stdout":
            sys.stdout.write(f"{line}\n")
            self._ends_line = True
        else:
            sys.stderr.write(f"{line}\n" if self._terminal and self._narrate else line)
            sys.stderr.flush()


class JsonWriter:
    """Writes one JSON object per event; the last one repeats the text and sums up.

    What a server does not tell (ids, the prompt's length before the end) is null. `text` is all that came, `answer` and
    `thinking` are its two parts.
    """

    def __init__(self) -> None:
        self._text: dict[bool, list[str]] = {False: [], True: []}
        self._all: list[str] = []
        self._prompt_tokens: int | None = None
        self._stats: Stats | None = None

    def write(self, event: Event | CallRecord) -> None:
        """Show one event."""
        name = "tool" if isinstance(event, CallRecord) else type(event).__name__.lower()
        row: dict[str, object] = {"event": name, **asdict(event)}
        match event:
            case Started():
                self._prompt_tokens = event.prompt_tokens
            case Token():
                self._all.append(event.text)
                self._text[event.thinking].append(event.text)
                row["top"] = [(None if number < 0 else number, text, value) for number, text, value in event.top]
            case Stats():
                self._stats = event
            case Finished():
                stats = self._stats
                told = stats.prompt_tokens if stats else None
                row |= {
                    "text": "".join(self._all),
                    "answer": "".join(self._text[False]),
                    "thinking": "".join(self._text[True]),
                    "prompt_tokens": self._prompt_tokens if told is None else told,
                    "tokens": stats.generated if stats else 0,
                    "prompt_tps": stats.prompt_tps if stats else None,
                    "decode_tps": stats.decode_tps if stats else None,
                    "seconds_to_first_token": stats.seconds_to_first_token if stats else None,
                    "drafted": stats.drafted if stats else 0,
                    "accepted": stats.accepted if stats else 0,
                }
        print(json_text(row, indent=None), flush=True)

    def broken(self) -> None:
        """Do nothing: every object stands on a line of its own."""


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
        parts.append(f"draft tokens {stats.accepted} of {stats.drafted} accepted")
    parts.append({"stop": "done", "length": "length limit", "cancelled": "interrupted"}[reason])
    return " · ".join(parts)


def play(backend: Backend, request: Request, writer: Writer, toolbox: Toolbox | None = None) -> int:
    """Send every event of the reply to `writer`, with a toolbox also calls of its tools, which are made unasked.

    Returns 0, or 130 if Ctrl+C ended it.
    """
    with _cancel_on_interrupt() as cancel:
        reason = "stop"
        try:
            for event in _events(backend, request, toolbox, cancel):
                writer.write(event)
                if isinstance(event, Finished):
                    reason = event.reason
        except BackendError:
            writer.broken()
            raise
        return 130 if reason == "cancelled" else 0


def _events(
    backend: Backend, request: Request, toolbox: Toolbox | None, cancel: threading.Event
) -> Iterator[Event | CallRecord]:
    if toolbox is None:
        return backend.chat(request, cancel)
    from nanochat_tui.chat.tools.loop import answer

    return answer(backend, request, toolbox, lambda record, tool: "once", cancel)


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
