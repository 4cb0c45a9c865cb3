"""From the bytes of an answer to the JSON texts in it: server-sent events, or what servers send in their place.

Events are read by their standard (WHATWG HTML, section 9.2: CR, LF or both end a line, a BOM may come first, comments
keep a connection alive). A server that does not stream answers with one JSON document, or with one per line.
"""

from __future__ import annotations

import codecs
import itertools
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import httpx
from httpx_sse import EventSource

from nanochat_tui.chat.backend import BackendError

MAX_HELD = 4 << 20
"""Most bytes of one event, or of an answer that is not streamed, that are believed."""
_ENDS = (b"\n\n", b"\r\n\r\n", b"\r\r")


@dataclass(frozen=True, slots=True)
class ServerEvent:
    """One event: its type, '' where the server names none, and its text, which is seldom empty and mostly JSON."""

    kind: str
    text: str


def read_events(pieces: Iterable[bytes]) -> Iterator[ServerEvent]:
    """Yield the events of an answer as they are complete.

    Raises BackendError for one without end and for what is no answer of a model.
    """
    held, rest = b"", iter(pieces)
    for piece in rest:
        held = (held + piece).removeprefix(codecs.BOM_UTF8).lstrip()
        if held and not codecs.BOM_UTF8.startswith(held):
            break
    if held.startswith((b"{", b"[")):
        yield from _documents(itertools.chain([held], rest))
    elif held.startswith(b"<"):
        raise BackendError("The server does not speak OpenAI's protocol: it sent a page; check the address.")
    elif held:
        bounded = _Bounded(itertools.chain([held], rest))
        # the last event of many servers lacks the blank line that completes it
        response = httpx.Response(200, headers={"Content-Type": "text/event-stream"}, stream=bounded)
        for event in EventSource(response).iter_sse():
            bounded.held = 0
            # the library calls an event without a type "message", as the standard does
            yield ServerEvent("" if event.event == "message" else event.event, event.data)


class _Bounded(httpx.SyncByteStream):
    """Passes bytes on and refuses an event that has no end; `held` is set to 0 by the receiver of an event."""

    def __init__(self, pieces: Iterable[bytes]) -> None:
        self._pieces = pieces
        self.held = 0

    def __iter__(self) -> Iterator[bytes]:
        for piece in self._pieces:
            self.held = len(piece) if any(end in piece for end in _ENDS) else self.held + len(piece)
            _check_size(self.held)
            yield piece
        yield b"\n\n"


def _check_size(held: int) -> None:
    if held > MAX_HELD:
        raise BackendError("The server sent a line without end; it speaks another protocol.")


def _documents(pieces: Iterable[bytes]) -> Iterator[ServerEvent]:
    """Yield an answer that is one JSON document, or a document per line, at its end."""
    held = b""
    for piece in pieces:
        held += piece
        _check_size(len(held))
    text = held.decode("utf-8", "replace")
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        yield from (ServerEvent("", line) for line in text.splitlines() if line.strip())
    else:
        yield ServerEvent("", text)
