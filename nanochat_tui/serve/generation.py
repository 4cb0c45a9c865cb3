"""Between the engine's threads and the server's event loop: the tokens of one request, as they come.

A request has one stream per reply. Each is read by a small thread, because an engine stream can only be waited for;
what arrives is handed to the loop in lots, so that a fast model does not wake it for every token.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from starlette.types import Receive

from nanochat_tui.engine.generate.scheduler import Stream
from nanochat_tui.errors import UserError
from nanochat_tui.request import Stats, Token
from nanochat_tui.serve.errors import ApiError, from_user_error, internal_error, unavailable
from nanochat_tui.serve.service import Service


@dataclass(frozen=True, slots=True)
class Ended:
    """The last item of a reply: the engine's reason, its figures, and what went wrong, if anything did."""

    reason: str
    stats: Stats
    error: BaseException | None = None
    stop: str | None = None
    """The stop string that ended it, if one did."""
    end_token: Token | None = None
    """The token that ended it, if it is no part of it."""


Item = tuple[int, Token | Ended]
"""Index of the reply, and what it has to say."""


class Replies:
    """The streams of one request. Made on the event loop; `next` until `open` is 0; `cancel` if the client leaves."""

    def __init__(self, service: Service, streams: Sequence[Stream], arrived: float) -> None:
        self.open = len(streams)
        """Replies that are still being written."""
        self._service = service
        self._streams = streams
        self._loop = asyncio.get_running_loop()
        self._woken = asyncio.Event()
        self._lock = threading.Lock()
        self._items: list[Item] = []
        self._gone = False
        self._arrived = arrived
        for index, stream in enumerate(streams):
            threading.Thread(target=self._read, args=(index, stream), name="nanochat-reply", daemon=True).start()

    def _read(self, index: int, stream: Stream) -> None:
        metrics = self._service.metrics
        last: float | None = None
        count = 0
        try:
            for token in stream:
                now = time.monotonic()
                if last is None:
                    metrics.first.observe(now - self._arrived)
                else:
                    metrics.between.observe(now - last)
                last = now
                count += 1
                metrics.generated(1)
                self._put((index, token))
            reason = stream.finish_reason or "cancelled"
            ended = Ended(reason, stream.stats, stop=stream.stop_text, end_token=stream.end_token)
        except BaseException as error:  # handed to the loop
            ended = Ended("cancelled", stream.stats, error)
        self._service.ended(stream)
        self._count(stream, ended, count)
        self._put((index, ended))

    def _count(self, stream: Stream, ended: Ended, count: int) -> None:
        metrics, stats = self._service.metrics, ended.stats
        if count or stats.prompt_tokens or stats.reused_tokens:  # it has begun, and did not only wait
            metrics.prompt_tokens.inc(stream.prompt_tokens)
            metrics.cache_queries.inc(stream.prompt_tokens)
            metrics.prompt_sizes.observe(stream.prompt_tokens)
        metrics.cache_hits.inc(stats.reused_tokens)
        metrics.drafted.inc(stats.drafted_tokens)
        metrics.accepted.inc(stats.accepted_tokens)
        metrics.reply_sizes.observe(count)
        metrics.whole.observe(time.monotonic() - self._arrived)
        metrics.finished("error" if ended.error else {"cancelled": "abort"}.get(ended.reason, ended.reason))
        if ended.error is not None and not isinstance(ended.error, UserError):
            self._service.broken(ended.error)

    def _put(self, item: Item) -> None:
        with self._lock:
            self._items.append(item)
            first = len(self._items) == 1
        if first:
            try:
                self._loop.call_soon_threadsafe(self._woken.set)
            except RuntimeError:  # the loop is closed: no client waits any more
                for stream in self._streams:
                    stream.cancel()

    async def next(self, timeout: float | None = None) -> list[Item]:
        """Wait for the next items; an empty list after `timeout` seconds without one."""
        late = False

        def ring() -> None:
            nonlocal late
            late = True
            self._woken.set()

        # asyncio.wait_for makes a task each time, and this is called for every token
        timer = None if timeout is None else self._loop.call_later(timeout, ring)
        lot: list[Item] = []
        try:
            while not lot and not late:
                await self._woken.wait()
                self._woken.clear()
                with self._lock:
                    lot, self._items = self._items, []
        finally:
            if timer is not None:
                timer.cancel()
        self.open -= sum(isinstance(item, Ended) for _, item in lot)
        return lot

    def stats(self) -> list[Stats]:
        """Return the figures of all replies as they are now."""
        return [stream.stats for stream in self._streams]

    @property
    def gone(self) -> bool:
        """Whether the client has left."""
        return self._gone

    def cancel(self) -> None:
        """End all replies at their next token, because the client has left."""
        self._gone = True
        for stream in self._streams:
            stream.cancel()

    def failure(self, ended: Ended) -> ApiError | None:
        """Return what a client is told of a reply that did not end by itself; None if it did."""
        if isinstance(ended.error, UserError):
            return from_user_error(ended.error)
        if ended.error is not None:
            return internal_error()
        if ended.reason == "cancelled" and self._gone:  # not read, but counted: it is not a failure of ours
            return ApiError(499, "the client has left", code="client_closed_request")
        if ended.reason == "cancelled":
            return unavailable("the server is being stopped; the reply is not complete", "stopping")
        return None


async def watch(receive: Receive, left: Callable[[], None]) -> None:
    """Call `left` once the client has closed its connection; cancel this when it is not needed any more."""
    while (await receive())["type"] != "http.disconnect":
        pass
    left()
