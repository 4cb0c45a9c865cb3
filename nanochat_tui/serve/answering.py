"""Answering a request: submit it, follow its replies, send them whole or as a stream of server-sent events."""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from fastapi import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from nanochat_tui.request import GenerationRequest, Stats, Token
from nanochat_tui.serve.errors import ApiError
from nanochat_tui.serve.generation import Ended, Item, Replies, watch
from nanochat_tui.serve.replies import ChatCompletion, Completion, EndReason, PromptDetails, Timings, Usage
from nanochat_tui.serve.service import Asked, Service
from nanochat_tui.serve.spelling import PromptScores
from nanochat_tui.serve.writers import Writer
from nanochat_tui.version import __version__

Kind = Literal["chat.completion", "text_completion"]
DONE = b"data: [DONE]\n\n"
PING = b": still working\n\n"
LINE_ENDS = {ord(end): f"\\u{ord(end):04x}" for end in "\x85\u2028\u2029"}
"""Line ends for Unicode though not for server-sent events; clients that split lines with Unicode's rules exist."""
STREAM_HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
"""No proxy may keep a stream back (the second is nginx's name for that)."""


PROGRESS_SECONDS = 0.5
"""Between two words on how much of a prompt has been read."""


@dataclass(frozen=True, slots=True)
class Extras:
    """What a stream has apart from its text: token counts (at the end, always), timings, progress of the prompt."""

    usage: bool = False
    usage_always: bool = False
    timings_always: bool = False
    progress: bool = False


@dataclass
class Answer:
    """One request on its way: prompt, settings and writer of each reply, and what stays the same in all chunks."""

    kind: Kind
    prompts: Sequence[Sequence[int]]
    requests: Sequence[GenerationRequest]
    salt: str | None
    writers: Sequence[Writer]
    model: str
    fingerprint: str
    extras: Extras = Extras()
    distinct_prompts: int = 1
    scores: Sequence[PromptScores] = ()
    """Probabilities of the prompt of each reply, if they are wanted; the same of neighbours that share them."""
    keep: int | None = None
    """So many replies of each prompt are answered with, the likeliest ones; None: all."""
    id: str = field(init=False)
    created: int = field(default_factory=lambda: int(time.time()))
    stats: dict[int, Stats] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.id = ("chatcmpl-" if self.kind == "chat.completion" else "cmpl-") + uuid.uuid4().hex

    def asked(self) -> list[Asked]:
        """Return what is to be submitted; scores that replies share are computed with the first of them."""
        readings = [None if n and s is self.scores[n - 1] else s.reading for n, s in enumerate(self.scores)]
        each = zip(self.prompts, self.requests, readings or [None] * len(self.prompts), strict=True)
        return [Asked(ids, request, reading) for ids, request, reading in each]

    def kept(self) -> list[int]:
        """Return which replies to answer with: of each prompt the `keep` with the highest mean log-probability."""
        if self.keep is None:
            return list(range(len(self.writers)))
        found: list[int] = []
        each = len(self.writers) // self.distinct_prompts
        for first in range(0, len(self.writers), each):
            ranked = sorted(range(first, first + each), key=lambda i: -self.writers[i].mean_logprob)
            found += ranked[: self.keep]
        return found

    def usage(self) -> Usage:
        """Count the tokens; a prompt with several replies counts once."""
        each = len(self.prompts) // self.distinct_prompts
        prompt = sum(len(ids) for ids in self.prompts[::each])
        reply = sum(writer.tokens for writer in self.writers)
        cached = sum(self.stats[i].reused_tokens for i in range(0, len(self.prompts), each) if i in self.stats)
        return Usage(
            prompt_tokens=prompt,
            completion_tokens=reply,
            total_tokens=prompt + reply,
            prompt_tokens_details=PromptDetails(cached_tokens=cached),
        )

    def timings(self) -> Timings | None:
        """Return the figures of a single reply; several at once have none that mean anything."""
        if len(self.writers) != 1 or 0 not in self.stats:
            return None
        return timings_of(self.stats[0], self.writers[0].tokens)

    def chunk(self, choices: list[dict[str, Any]], **more: Any) -> bytes:
        """Return one event of a stream."""
        row: dict[str, Any] = {
            "id": self.id,
            "object": "chat.completion.chunk" if self.kind == "chat.completion" else self.kind,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": self.fingerprint,
            "choices": choices,
        }
        if self.extras.usage:
            row["usage"] = self.usage().model_dump() if self.extras.usage_always else None
        return event({**row, **more})

    def piece(self, choice: dict[str, Any], *, last: bool = False) -> bytes:
        """Return the event of a part of a reply, with timings if it is the last or they are always wanted."""
        timings = self.timings() if last or self.extras.timings_always else None
        return self.chunk([choice], **({"timings": timings.model_dump()} if timings else {}))

    def progress(self, replies: Replies) -> bytes:
        """Return the event that says how much of the prompts has been read, in llama-server's words."""
        read = replies.stats()
        cached = sum(stats.reused_tokens for stats in read)
        progress = {
            "total": sum(len(ids) for ids in self.prompts),
            "cache": cached,
            "processed": cached + sum(stats.prompt_tokens for stats in read),
            "time_ms": round(1e3 * sum(stats.prompt_seconds for stats in read)),
        }
        empty: dict[str, Any] = {"delta": {}} if self.kind == "chat.completion" else {"text": ""}
        choice = {"index": 0, **empty, "logprobs": None, "finish_reason": None}
        return self.chunk([choice], prompt_progress=progress)


def timings_of(stats: Stats, tokens: int) -> Timings:
    """Return the figures of a reply of so many tokens; the rate leaves out the first, whose time is the prompt's."""
    return Timings(
        cache_n=stats.reused_tokens,
        prompt_n=stats.prompt_tokens,
        prompt_ms=stats.prompt_seconds * 1e3,
        prompt_per_second=stats.prompt_tps or 0.0,
        predicted_n=tokens,
        predicted_ms=stats.decode_seconds * 1e3,
        predicted_per_second=stats.decode_tps or 0.0,
        draft_n=stats.drafted_tokens,
        draft_n_accepted=stats.accepted_tokens,
    )


def fingerprint(kernel: str) -> str:
    """Return what computes: clients compare it to know whether equal seeds give equal replies."""
    return f"nanochat-{__version__}-{kernel}"


def event(row: dict[str, Any]) -> bytes:
    """Return a server-sent event."""
    text = json.dumps(row, ensure_ascii=False, separators=(",", ":"))
    return b"data: " + text.translate(LINE_ENDS).encode() + b"\n\n"


async def respond(request: Request, service: Service, answer: Answer, *, stream: bool, arrived: float) -> Response:
    """Submit and answer. Raises ApiError or UserError before anything is sent."""
    streams = service.submit_all(answer.asked(), answer.salt)
    replies = Replies(service, streams, arrived)
    if stream:
        events = _events(answer, replies, service.settings.limits.ping_seconds)
        return EventStream(events, replies.cancel)
    return await _whole(request, answer, replies)


def _lots(items: Sequence[Item]) -> list[tuple[int, list[Token] | Ended]]:
    """Join neighbouring tokens of the same reply."""
    lots: list[tuple[int, list[Token] | Ended]] = []
    for index, item in items:
        last = lots[-1] if lots else None
        if isinstance(item, Ended):
            lots.append((index, item))
        elif last is not None and last[0] == index and isinstance(last[1], list):
            last[1].append(item)
        else:
            lots.append((index, [item]))
    return lots


def _reason(ended: Ended) -> EndReason:
    return "length" if ended.reason == "length" else "stop"


async def _whole(request: Request, answer: Answer, replies: Replies) -> Response:
    watcher = asyncio.create_task(watch(request.receive, replies.cancel))
    reasons: dict[int, EndReason] = {}
    try:
        while replies.open:
            for index, item in _lots(await replies.next()):
                if isinstance(item, list):
                    answer.writers[index].add(item)
                    continue
                failure = replies.failure(item)
                if failure is not None:
                    raise failure
                answer.stats[index], reasons[index] = item.stats, _reason(item)
                answer.writers[index].ended(item.end_token)
    finally:
        watcher.cancel()
        replies.cancel()
    if answer.scores:  # of a long prompt they are megabytes
        return await asyncio.to_thread(_written, answer, reasons)
    return _written(answer, reasons)


def _written(answer: Answer, reasons: Mapping[int, EndReason]) -> Response:
    found = [answer.writers[index].whole(reasons[index]) for index in answer.kept()]
    choices = [choice.model_copy(update={"index": index}) for index, choice in enumerate(found)]
    make: type[ChatCompletion] | type[Completion] = ChatCompletion if answer.kind == "chat.completion" else Completion
    body = make(
        id=answer.id,
        created=answer.created,
        model=answer.model,
        system_fingerprint=answer.fingerprint,
        choices=choices,  # writers and kind belong together
        usage=answer.usage(),
        timings=answer.timings(),
    )
    return Response(body.model_dump_json(), media_type="application/json")


async def _events(answer: Answer, replies: Replies, ping: float) -> AsyncIterator[bytes]:
    failure: ApiError | None = None
    for writer in answer.writers:
        opening = writer.opening()
        if opening is not None:
            yield answer.chunk([opening])
    reading = answer.extras.progress
    while replies.open and not replies.gone:
        items = await replies.next(min(PROGRESS_SECONDS, ping) if reading else ping)
        if not items:
            yield answer.progress(replies) if reading else PING
        elif reading:
            reading = False
            yield answer.progress(replies)
        for index, item in _lots(items):
            writer = answer.writers[index]
            failure = replies.failure(item) if isinstance(item, Ended) else None
            if failure is not None:
                break
            if answer.scores:
                await asyncio.to_thread(answer.scores[index].listed)
            if isinstance(item, list):
                answer.stats[index] = replies.stats()[index]
                for choice in writer.add(item):
                    yield answer.piece(choice)
                continue
            answer.stats[index] = item.stats
            writer.ended(item.end_token)
            choices = writer.closing(_reason(item))
            for place, choice in enumerate(choices, 1):
                yield answer.piece(choice, last=place == len(choices))
        if failure is not None:
            replies.cancel()
            yield event(failure.body())
            break
    if answer.extras.usage and failure is None:
        yield answer.chunk([], usage=answer.usage().model_dump())
    yield DONE


class EventStream(Response):
    """A response of server-sent events that notices, between two of them, that its reader has gone."""

    media_type = "text/event-stream"

    def __init__(self, events: AsyncIterator[bytes], left: Callable[[], None]) -> None:
        super().__init__(None, headers=STREAM_HEADERS)
        del self.headers["content-length"]
        self._events = events
        self._left = left

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the events."""
        watcher = asyncio.create_task(watch(receive, self._left))
        try:
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            async for part in self._events:
                await send({"type": "http.response.body", "body": part, "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        finally:
            watcher.cancel()
            self._left()
