"""Many replies at once from one model: continuous batching (Orca, Yu et al. 2022).

One thread computes. Every pass over the weights takes one token of each reply that is being written, and beside
them some tokens of a prompt that is being read, so that a long prompt stalls nobody. Replies join and leave between
passes. Prompts that begin alike share the pages of the key-value cache. When its pages run out, the youngest request
waits again and later goes on where it was (as in vLLM, Kwon et al. 2023). The batcher does not know who asked: it takes
token ids and settings and hands out tokens; a stream may be read, and cancelled, from any thread.
"""

from __future__ import annotations

import queue
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from nanochat_tui.engine.cache import KVCache
from nanochat_tui.engine.executor import Piece
from nanochat_tui.engine.kernels.slots import HEAD_ROWS
from nanochat_tui.engine.paging import PAGE, PagePool, pages_for
from nanochat_tui.engine.plan import CHUNK
from nanochat_tui.engine.plan_memory import LEAST_CONTEXT, available_memory
from nanochat_tui.engine.replies import FinishReason, Reply, Stats, Token, checked_prompt, reply_room
from nanochat_tui.engine.sampling import Drawn, Sampling
from nanochat_tui.engine.speculation import Costs, Drafter, Lookup, Speculator
from nanochat_tui.errors import UserError

if TYPE_CHECKING:
    from nanochat_tui.engine.model import Model

BURST = 16
"""Most tokens of each reply per return to Python."""
BURST_SECONDS = 0.008
"""Time after which new requests and cancelled ones are looked at again."""
PASS_SECONDS = 0.05
"""How long a pass may become by a prompt's tokens while others are being written."""
SMALLEST_CHUNK = 16
"""Tokens of a prompt that every pass takes, however slow: fewer would cost as much."""
MEMORY_SHARE = 4
"""The cache takes at most one part in so many of the memory that is free, unless told otherwise."""

PROMISED_TOKENS = 512
"""Room for so many tokens to come is kept free for every request. Most clients do not say how long a reply may be; kept
for all that the context holds, the cache would serve one of them at a time."""


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
        if self.finish_reason is None:
            self.finish_reason = reason
            self._arrived.put(error)


@dataclass(slots=True, eq=False)
class _Running:
    """A request and, once it is admitted, its cache.

    ids: its prompt and what has been written so far. last: the token that was sampled last and has not been run yet;
    None while ids are being read, before the first and when the request comes back from waiting again.
    """

    ids: list[int]
    reply: Reply
    stream: Stream
    speculator: Speculator
    drafter: Drafter | None
    cache: KVCache | None = None
    last: int | None = None

    @property
    def pages(self) -> int:
        """Pages that are kept for it."""
        return pages_for(len(self.ids) + min(self.reply.room - self.reply.produced, PROMISED_TOKENS))

    @property
    def held(self) -> KVCache:
        """The cache of a request that was admitted."""
        if self.cache is None:
            raise RuntimeError("a request that waits has no cache")
        return self.cache

    @property
    def reading(self) -> bool:
        """Whether its prompt, or what it was before it waited again, is not in the cache yet."""
        return self.last is None

    @property
    def resumed(self) -> bool:
        """Whether what it is reading is in part its own reply."""
        return self.reply.produced > 0


def _shares_next_page(request: _Running, earlier: _Running) -> bool:
    """Return whether the page that a prompt needs next is about to be computed for another one."""
    end = len(request.held.ids) + PAGE
    return end < len(request.ids) and request.ids[:end] == earlier.ids[:end]


class Batcher:
    """Runs up to `max_sequences` (1 to 16) replies of a model at once; `max_waiting` more requests wait their turn.

    kv_tokens: positions of the key-value cache for all of them; None is a full context for each, as far as a
    quarter of the free memory goes, or what one short reply takes. Raises UserError for impossible sizes.
    """

    def __init__(
        self, model: Model, *, max_sequences: int = 8, max_waiting: int = 64, kv_tokens: int | None = None
    ) -> None:
        if not 1 <= max_sequences <= HEAD_ROWS or max_waiting < 0:
            raise UserError(
                f"a batcher runs 1 to {HEAD_ROWS} sequences and has 0 or more places to wait in, "
                f"not {max_sequences} and {max_waiting}"
            )
        if kv_tokens is not None and kv_tokens < 1:
            raise UserError(f"a key-value cache of {kv_tokens} tokens holds nothing; give 1 or more")
        self.model = model
        self._max_sequences, self._max_waiting = max_sequences, max_waiting
        self._pool = PagePool(model.config, 0, model.kv)
        self._pool.grow(pages_for(kv_tokens or self._default_tokens(max_sequences)))
        self.context = min(model.config.context_length, self._pool.capacity * PAGE)
        """Most tokens of one request, prompt and reply together."""
        self._changed = threading.Condition()
        self._waiting: deque[_Running] = deque()
        self._running: list[_Running] = []
        self._closed = False
        self._prompt_tokens = self._generated_tokens = self._reused_tokens = 0
        self._costs = Costs()
        self._passes = 1
        self._row_seconds = 0.0
        self._thread = threading.Thread(target=self._work, name="nanochat-batcher", daemon=True)
        self._thread.start()

    def _default_tokens(self, sequences: int) -> int:
        context = self.model.config.context_length
        fitting = available_memory() // MEMORY_SHARE // max(1, self._pool.page_bytes) * PAGE
        return max(min(context, LEAST_CONTEXT), min(sequences * context, fitting))

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
        logprobs: bool = True,
        cancel: threading.Event | None = None,
    ) -> Stream:
        """Queue a prompt and return the stream of its reply at once. Settings are those of `Session.generate`.

        Raises UserError for impossible settings, a prompt longer than the context or a closed batcher, and
        QueueFull when no place to wait in is left.
        """
        sampling = Sampling(
            temperature, top_k, top_p, min_p, repeat_penalty, seed, top_logprobs, presence_penalty, frequency_penalty,
            logprobs,
        )  # fmt: skip
        tokens = checked_prompt(self.model, ids, self.context)
        room = reply_room(max_tokens, tokens, self.context)
        stream = Stream(len(tokens), cancel)
        mode = self.model.speculation
        reply = Reply(self.model, tokens, room, sampling, stop, BURST)
        drafter = Lookup(tokens, room) if mode != "off" else None
        request = _Running(tokens, reply, stream, Speculator(mode, self._costs), drafter)
        with self._changed:
            if self._closed:
                raise UserError("the model is being closed and takes no more requests")
            free = self._max_sequences - len(self._running)
            if len(self._waiting) >= self._max_waiting + max(0, free):
                raise QueueFull(f"{len(self._waiting)} requests are waiting already; try again in a moment")
            self._waiting.append(request)
            self._changed.notify_all()
        return stream

    def snapshot(self) -> BatcherStats:
        """Return what is going on now."""
        with self._changed:
            return BatcherStats(
                running=len(self._running),
                waiting=len(self._waiting),
                kv_used_tokens=self._pool.used * PAGE,
                kv_total_tokens=self._pool.capacity * PAGE,
                prompt_tokens=self._prompt_tokens,
                generated_tokens=self._generated_tokens,
                reused_tokens=self._reused_tokens,
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
                self._changed.wait_for(lambda: not self._waiting and not self._running, drain_seconds)
            for request in (*self._waiting, *self._running):
                request.stream.cancel()
        if threading.current_thread() is not self._thread:
            self._thread.join()

    # ---- the batcher's own thread

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._running or self._closed)
                if not self._waiting and not self._running:
                    return
                self._admit()
            try:
                self._step()
            except BaseException as error:  # whoever reads a stream has to learn of it
                for request in list(self._running):
                    self._finish(request, "cancelled", error)

    def _admit(self) -> None:
        """Move requests from waiting to running: in their order, when there is memory for what is kept for each."""
        for request in [r for r in self._waiting if r.stream._cancel.is_set()]:
            self._waiting.remove(request)
            request.stream._end("cancelled")
        while self._waiting and len(self._running) < self._max_sequences:
            promised = sum(request.pages for request in self._running)
            request = self._waiting[0]
            if promised + request.pages > self._pool.capacity:
                return
            self._waiting.popleft()
            try:
                request.cache = KVCache(self.model.config, self.context, self.model.kv, self._pool)
            except BaseException as error:  # no memory for this one; its reader learns of it, and the others go on
                request.stream._end("cancelled", error)
                self._changed.notify_all()
                continue
            self._running.append(request)

    def _wait_again(self, request: _Running) -> None:
        """Take a request's pages; as many as stay unused are found again when it is its turn."""
        if not request.resumed:  # it reads its prompt anew, and each token of that counts once
            stats = request.stream.stats
            stats.prompt_tokens = stats.reused_tokens = 0
        with self._changed:
            self._running.remove(request)
            request.held.release()
            request.cache = request.last = None
            self._waiting.appendleft(request)

    def _make_room(self) -> None:
        """Let the youngest requests wait again until there are pages for the next pass of the others.

        The oldest alone always has room, so somebody always gets on; and who has to wait again comes back only when
        there are pages for a while.
        """
        while len(self._running) > 1:
            budget, missing = CHUNK, 0
            for request in self._running:
                known = len(request.held.ids)
                if request.reading:
                    tokens = min(budget, len(request.ids) - known)
                    budget -= tokens
                else:
                    tokens = min(BURST, request.reply.room - request.reply.produced)
                missing += request.held.missing(known + tokens)
            if missing <= self._pool.available:
                return
            self._wait_again(self._running[-1])  # they came in this order, and come back in it

    def _finish(self, request: _Running, reason: FinishReason, error: BaseException | None = None) -> None:
        with self._changed:
            self._running.remove(request)
            if request.cache is not None:
                request.cache.release()
            self._changed.notify_all()
        request.stream._end(reason, error)

    def _step(self) -> None:
        """Run one job: a pass with tokens of a prompt in it, or a few passes of replies alone."""
        for request in list(self._running):
            if request.stream._cancel.is_set():
                self._finish(request, "cancelled")
            elif request.reply.room == 0:
                self._finish(request, "length")
        self._make_room()
        reading = [request for request in self._running if request.reading]
        writing = [request for request in self._running if not request.reading]
        if not reading and not writing:
            return
        passes = 1 if reading else self._passes
        pieces = [self._writing_piece(request, passes, alone=len(self._running) == 1) for request in writing]
        drawing = list(writing)
        read: list[tuple[_Running, list[int]]] = []
        budget = self._budget(len(writing))
        for number, request in enumerate(reading):
            if budget == 0:
                break
            self._look_for_pages(request)
            if any(_shares_next_page(request, earlier) for earlier in reading[:number]):
                continue
            part, last = self._next_part(request, budget)
            budget -= len(part)
            read.append((request, part))
            cache = request.held
            draw = request.reply.draw if last else None
            pieces.append(Piece(cache, np.array(part, np.int64), len(cache.ids), draw, drafter=request.drafter))
            if last:
                drawing.append(request)
        began = time.perf_counter()
        results = self.model.executor.execute(pieces)
        seconds = time.perf_counter() - began
        self._learn(seconds, len(writing) + sum(len(part) for _, part in read), writing, bool(reading))
        for request, part in read:
            self._note_read(request, part, seconds)
        for request, drawn in zip(drawing, results, strict=True):
            self._hand_out(request, drawn)

    def _writing_piece(self, request: _Running, passes: int, *, alone: bool) -> Piece:
        cache, reply = request.held, request.reply
        # beside others a guess would take their time, and its own could not be told from theirs
        guesses = request.speculator.most() if alone else 0
        steps = min(BURST, passes * (1 + guesses), reply.room - reply.produced)
        ids = np.array([request.last], np.int64)
        return Piece(cache, ids, len(cache.ids), reply.draw, steps, passes, request.drafter, guesses)

    def _budget(self, writing: int) -> int:
        """Return how many tokens of prompts the next pass takes."""
        most = CHUNK - writing
        if not writing or not self._row_seconds:
            return most
        return max(SMALLEST_CHUNK, min(most, int(PASS_SECONDS / self._row_seconds)))

    def _look_for_pages(self, request: _Running) -> None:
        """Take pages of a prompt that another request has computed by now."""
        cache, ids = request.held, request.ids
        known = len(cache.ids)
        if known % PAGE == 0 and known + PAGE < len(ids):
            found = cache.begin(ids) - known
            if request.resumed:
                return
            request.stream.stats.reused_tokens += found
            with self._changed:
                self._reused_tokens += found

    def _next_part(self, request: _Running, budget: int) -> tuple[list[int], bool]:
        """Return the next tokens of a prompt, and whether they are its last."""
        known, ids = len(request.held.ids), request.ids
        part = ids[known : known + budget]
        return part, known + len(part) == len(ids)

    def _learn(self, seconds: float, rows: int, writing: list[_Running], mixed: bool) -> None:
        for request in writing:
            request.stream.stats.decode_seconds += seconds
        if mixed:
            self._row_seconds = seconds / rows
            self._passes = 1
            return
        passes = max(request.reply.draw.passes for request in writing)
        self._passes = max(1, min(BURST, 2 * self._passes, int(BURST_SECONDS / (seconds / max(1, passes)))))
        for request in writing:
            drafter, stats = request.drafter, request.stream.stats
            if drafter is not None and len(writing) == 1:
                stats.drafted_tokens += drafter.drafted
                stats.accepted_tokens += drafter.accepted
                request.speculator.learn(seconds, drafter.passes, drafter.drafted_passes, drafter.accepted)

    def _note_read(self, request: _Running, part: list[int], seconds: float) -> None:
        request.held.extend(part)
        request.held.keep_state()
        stats = request.stream.stats
        if request.resumed:
            stats.decode_seconds += seconds
            return
        stats.prompt_tokens += len(part)
        stats.prompt_seconds += seconds
        with self._changed:
            self._prompt_tokens += len(part)

    def _hand_out(self, request: _Running, drawn: Drawn) -> None:
        """Turn what was sampled into tokens of the stream, and end it where it ends."""
        cache, reply, stream = request.held, request.reply, request.stream
        if request.last is not None:
            cache.extend([request.last])
        if request.resumed:
            stream.stats.generated_tokens += len(drawn.ids)
        for index, token in enumerate(drawn.ids):
            if stream._cancel.is_set():
                self._finish(request, "cancelled")
                return
            handed = reply.accept(drawn, index)
            request.ids.append(token)
            if index + 1 < len(drawn.ids) and reply.finish_reason is None:
                cache.extend([token])
            if handed is not None:
                with self._changed:
                    self._generated_tokens += 1
                stream._put(handed)
            if reply.finish_reason is not None:
                self._finish(request, reply.finish_reason)
                return
        request.last = drawn.ids[-1]
