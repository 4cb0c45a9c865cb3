"""Answering a request for one reply in another protocol than OpenAI's completions: followed once, written by a dialect.

A dialect turns pieces of text into the events of a stream, and the same pieces into a whole answer: both say the same.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from fastapi import Request
from starlette.responses import Response

from nanochat_tui.model.chat.thinking import ThinkingSplitter
from nanochat_tui.model.chat.tools.calls import CallSplitter, ToolCall
from nanochat_tui.request import GenerationRequest, Stats, Token
from nanochat_tui.serve.answering import EventStream, event
from nanochat_tui.serve.errors import ApiError
from nanochat_tui.serve.generation import Ended, Replies, watch
from nanochat_tui.serve.service import Asked, Service


@dataclass(frozen=True, slots=True)
class Piece:
    """Text of a reply, or of what the model thought before it, or a call of a tool (without text)."""

    text: str = ""
    thinking: bool = False
    call: ToolCall | None = None


@dataclass(frozen=True, slots=True)
class End:
    """How a reply ended: `length` or by itself, by which stop string; tokens of prompt (some cached) and reply."""

    cut: bool
    stop: str | None
    prompt_tokens: int
    cached_tokens: int
    tokens: int
    thinking_tokens: int
    stats: Stats


class Dialect(Protocol):
    """Writes one reply in the words of a protocol. Events are bytes of a stream; `whole` is the body without one."""

    def opening(self) -> list[bytes]:
        """Return the events that begin the stream."""

    def write(self, piece: Piece) -> list[bytes]:
        """Take text and return its events."""

    def closing(self, end: End) -> list[bytes]:
        """Return the events that end the stream."""

    def failing(self, error: ApiError) -> list[bytes]:
        """Return the events of a stream that cannot go on."""

    def ping(self) -> bytes:
        """Return what keeps a silent stream open."""

    def whole(self, end: End) -> dict[str, Any]:
        """Return the whole answer, after `closing`."""


def named_event(row: dict[str, Any]) -> bytes:
    """Return a server-sent event that is named by its type, as Anthropic's and those of /v1/responses are."""
    return f"event: {row['type']}\n".encode() + event(row)


@dataclass
class Followed:
    """One reply on its way."""

    ids: Sequence[int]
    asked: GenerationRequest
    salt: str | None
    splitter: ThinkingSplitter
    dialect: Dialect
    calls: CallSplitter | None = None
    """Finds the calls, where tools may be called."""
    tokens: int = 0
    thinking_tokens: int = 0

    def pieces(self, tokens: Sequence[Token]) -> list[Piece]:
        """Count tokens and return their text, neighbours of the same kind joined."""
        found: list[Piece] = []
        for token in tokens:
            self.tokens += 1
            for part in self.splitter.token(token):
                self._take(found, part)
            self.thinking_tokens += self.splitter.inside
        return found

    def _take(self, found: list[Piece], part: Token) -> None:
        if part.thinking or self.calls is None:
            _join(found, Piece(part.text, part.thinking))
            return
        for item in self.calls.feed(part.text):
            _join(found, Piece(item) if isinstance(item, str) else Piece(call=item))

    def rest(self) -> list[Piece]:
        """Return the text that was held back, at the end."""
        found: list[Piece] = []
        for part in self.splitter.rest():
            self._take(found, part)
        for item in self.calls.rest() if self.calls is not None else ():
            _join(found, Piece(item) if isinstance(item, str) else Piece(call=item))
        return found

    def end(self, ended: Ended) -> End:
        """Return the figures of a reply that is over."""
        stats: Stats = ended.stats
        return End(
            cut=ended.reason == "length",
            stop=ended.stop,
            prompt_tokens=len(self.ids),
            cached_tokens=stats.reused_tokens,
            tokens=self.tokens,
            thinking_tokens=self.thinking_tokens,
            stats=stats,
        )


def _join(found: list[Piece], part: Piece) -> None:
    if part.call is not None:
        found.append(part)
    elif part.text and found and found[-1].call is None and found[-1].thinking == part.thinking:
        found[-1] = Piece(found[-1].text + part.text, part.thinking)
    elif part.text:
        found.append(part)


async def follow(request: Request, service: Service, reply: Followed, *, stream: bool, arrived: float) -> Response:
    """Submit and answer. Raises ApiError or UserError before anything is sent."""
    streams = service.submit_all([Asked(reply.ids, reply.asked)], reply.salt)
    replies = Replies(service, streams, arrived)
    if stream:
        events = _events(reply, replies, service.settings.limits.ping_seconds)
        return EventStream(events, replies.cancel)
    return await _whole(request, reply, replies)


async def _whole(request: Request, reply: Followed, replies: Replies) -> Response:
    watcher = asyncio.create_task(watch(request.receive, replies.cancel))
    ended: Ended | None = None
    try:
        while replies.open:
            tokens, ended = _sorted(await replies.next())
            for piece in reply.pieces(tokens):
                reply.dialect.write(piece)
        failure = replies.failure(ended) if ended is not None else None
        if failure is not None:
            raise failure
    finally:
        watcher.cancel()
        replies.cancel()
    if ended is None:
        raise RuntimeError("a reply ended without an end")
    for piece in reply.rest():
        reply.dialect.write(piece)
    end = reply.end(ended)
    reply.dialect.closing(end)
    return Response(json.dumps(reply.dialect.whole(end), ensure_ascii=False), media_type="application/json")


async def _events(reply: Followed, replies: Replies, ping: float) -> AsyncIterator[bytes]:
    dialect = reply.dialect
    for part in dialect.opening():
        yield part
    while replies.open and not replies.gone:
        items = await replies.next(ping)
        if not items:
            yield dialect.ping()
            continue
        tokens, ended = _sorted(items)
        for piece in reply.pieces(tokens):
            for part in dialect.write(piece):
                yield part
        if ended is None:
            continue
        failure = replies.failure(ended)
        if failure is not None:
            replies.cancel()
            for part in dialect.failing(failure):
                yield part
            return
        for piece in reply.rest():
            for part in dialect.write(piece):
                yield part
        for part in dialect.closing(reply.end(ended)):
            yield part


def _sorted(items: Sequence[tuple[int, Token | Ended]]) -> tuple[list[Token], Ended | None]:
    tokens = [item for _, item in items if isinstance(item, Token)]
    return tokens, next((item for _, item in items if isinstance(item, Ended)), None)
