"""Many replies at once from one model: a queue, one thread that computes, a stream per request.

The batcher does not know who asked: it takes token ids and settings and hands out tokens. Its thread is the only one
that computes; a stream may be read, and cancelled, from any thread.
"""

from __future__ import annotations

import queue
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from nanochat_tui.engine.sampling import Sampling
from nanochat_tui.engine.session import FinishReason, Session, Stats, Token, checked_prompt
from nanochat_tui.errors import UserError

if TYPE_CHECKING:
    from nanochat_tui.engine.model import Model


class QueueFull(UserError):  # noqa: N818 - it is a state of the queue, not a mistake
    """No place is left to wait in; the same request may be accepted later."""


@dataclass(frozen=True, slots=True)
class BatcherStats:
    """What a batcher is doing, and what it has done since it was made.

    running, waiting: requests. kv_used_tokens of kv_total_tokens: positions of the key-value cache. prompt_tokens were
    computed, reused_tokens taken from the cache, generated_tokens handed out.
    """

    running: int
    waiting: int
    kv_used_tokens: int
    kv_total_tokens: int
    prompt_tokens: int
    generated_tokens: int
    reused_tokens: int


class Stream(Iterator[Token]):
    """A reply being written: an iterator over its tokens, which waits for the next one.

    When it is over, `finish_reason` says why ("stop", "length" or "cancelled") and `stats` what it took. What went
    wrong in between is raised from the iterator as UserError.
    """

    def __init__(self, prompt_tokens: int, cancel: threading.Event | None) -> None:
        self.prompt_tokens = prompt_tokens
        """Tokens of the prompt, computed or reused."""
        self.stats = Stats()
        self.finish_reason: FinishReason | None = None
        """None while the reply is being written."""
        self._cancel = cancel or threading.Event()
        self._arrived: queue.SimpleQueue[Token | BaseException | None] = queue.SimpleQueue()
        self._over = False

    def __next__(self) -> Token:
        if self._over:
            raise StopIteration
        item = self._arrived.get()
        if isinstance(item, Token):
            return item
        self._over = True
        if item is not None:
            raise item
        raise StopIteration

    def cancel(self) -> None:
        """End the reply before its next token; may be called from any thread, and when it is over."""
        self._cancel.set()

    def _put(self, token: Token) -> None:
        self._arrived.put(token)

    def _end(self, reason: FinishReason, error: BaseException | None = None) -> None:
        self.finish_reason = reason
        self._arrived.put(error)


@dataclass(frozen=True, slots=True)
class _Request:
    ids: list[int]
    settings: dict[str, Any]
    stream: Stream


class Batcher:
    """Runs up to `max_sequences` replies of a model at once; up to `max_waiting` more requests wait their turn.

    kv_tokens: positions of the key-value cache for all of them; None lets every reply fill the model's context.
    Raises UserError for impossible sizes.
    """

    def __init__(
        self, model: Model, *, max_sequences: int = 8, max_waiting: int = 64, kv_tokens: int | None = None
    ) -> None:
        context = model.config.context_length
        if max_sequences < 1 or max_waiting < 0:
            raise UserError(
                f"a batcher needs 1 or more sequences and 0 or more places to wait in, "
                f"not {max_sequences} and {max_waiting}"
            )
        if kv_tokens is not None and kv_tokens < 1:
            raise UserError(f"a key-value cache of {kv_tokens} tokens holds nothing; give 1 or more")
        self.model = model
        self._max_waiting = max_waiting
        self._session = Session(model, min(context, kv_tokens or context))
        self._kv_total = self._session.context
        self._changed = threading.Condition()
        self._waiting: deque[_Request] = deque()
        self._running: _Request | None = None
        self._closed = False
        self._counts = Stats()
        self._thread = threading.Thread(target=self._work, name="nanochat-batcher", daemon=True)
        self._thread.start()

    def submit(
        self,
        ids: Sequence[int],
        *,
        max_tokens: int = 256,
        temperature: float = 0.8,
        top_k: int = 40,
        top_p: float = 0.95,
        min_p: float = 0.0,
        repeat_penalty: float = 1.0,
        seed: int | None = None,
        stop: Sequence[str] = (),
        top_logprobs: int = 0,
        presence_penalty: float = 0.0,
        frequency_penalty: float = 0.0,
        cancel: threading.Event | None = None,
    ) -> Stream:
        """Queue a prompt and return the stream of its reply at once. Settings are those of `Session.generate`.

        Raises UserError for impossible settings, a prompt longer than the context or a closed batcher, and
        QueueFull when no place to wait in is left.
        """
        settings = {
            "temperature": temperature,
            "top_k": top_k,
            "top_p": top_p,
            "min_p": min_p,
            "repeat_penalty": repeat_penalty,
            "seed": seed,
            "top_logprobs": top_logprobs,
            "presence_penalty": presence_penalty,
            "frequency_penalty": frequency_penalty,
        }
        Sampling(**settings)  # type: ignore[arg-type]
        tokens = checked_prompt(self.model, ids, self._session.context)
        if max_tokens < 0:
            raise UserError(f"max_tokens is {max_tokens} and must be 0 or more")
        stream = Stream(len(tokens), cancel)
        request = _Request(tokens, {**settings, "stop": stop, "max_tokens": max_tokens}, stream)
        with self._changed:
            if self._closed:
                raise UserError("the model is being closed and takes no more requests")
            if len(self._waiting) >= self._max_waiting + (self._running is None):
                raise QueueFull(f"{len(self._waiting)} requests are waiting already; try again in a moment")
            self._waiting.append(request)
            self._changed.notify_all()
        return stream

    def snapshot(self) -> BatcherStats:
        """Return what is going on now."""
        with self._changed:
            now = self._counts
            return BatcherStats(
                running=int(self._running is not None),
                waiting=len(self._waiting),
                kv_used_tokens=self._session.position,
                kv_total_tokens=self._kv_total,
                prompt_tokens=now.prompt_tokens,
                generated_tokens=now.generated_tokens,
                reused_tokens=now.reused_tokens,
            )

    def close(self, drain_seconds: float | None = None) -> None:
        """Take no more requests and end the thread.

        drain_seconds: how long replies, running and waiting ones, may go on before they are cancelled; None cancels
        them at once.
        """
        with self._changed:
            self._closed = True
            self._changed.notify_all()
            if drain_seconds:
                self._changed.wait_for(lambda: not self._waiting and self._running is None, drain_seconds)
            for request in [*self._waiting, *([self._running] if self._running else [])]:
                request.stream.cancel()
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._closed)
                if not self._waiting:
                    return
                request = self._running = self._waiting.popleft()
            error: BaseException | None = None
            try:
                self._reply(request)
            except BaseException as caught:  # whoever reads the stream has to learn of it
                error = caught
            with self._changed:
                self._running = None
                self._counts.prompt_tokens += request.stream.stats.prompt_tokens
                self._counts.reused_tokens += request.stream.stats.reused_tokens
                self._changed.notify_all()
            request.stream._end("cancelled" if error else self._session.finish_reason, error)

    def _reply(self, request: _Request) -> None:
        session, stream = self._session, request.stream
        for token in session.generate(request.ids, cancel=stream._cancel, **request.settings):
            with self._changed:
                self._counts.generated_tokens += 1
            stream.stats = session.stats
            stream._put(token)
        stream.stats = session.stats
