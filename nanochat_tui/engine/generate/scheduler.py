"""Many replies at once from one model: continuous batching (Orca, Yu et al. 2022).

One thread computes, a step at a time (see `step`). Every pass over the weights takes one token of each sequence in
decode, and next to them some tokens of the prompts in prefill, so that a long prompt stalls neither replies nor other
prompts (see `fairness`). Requests join and leave between steps. Prompts that begin alike share the pages of the KV
cache. When its pages run out, the youngest request is preempted and later continues where it was (as in vLLM, Kwon et
al. 2023). The batcher does not know who asked: it takes token ids and settings and hands out tokens; a stream may be
read, and cancelled, from any thread. A request may also want to know something of its prompt's tokens (see `reading`):
they are computed in jobs of their own between the steps, as many as a step may take longer for prompts.
"""

from __future__ import annotations

import queue
import threading
import time
from collections import deque
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from nanochat_tui.engine.generate.fairness import Budget, Prompt, next_to_run, order, share, to_displace
from nanochat_tui.engine.generate.memory_forecast import LEAST_CONTEXT, available_memory
from nanochat_tui.engine.generate.reading import Reading, most_rows
from nanochat_tui.engine.generate.replies import checked_prompt
from nanochat_tui.engine.generate.speculation import Costs, Speculator
from nanochat_tui.engine.generate.step import Pace, Step, TokenSequence, run_step
from nanochat_tui.engine.layout.slots import HEAD_ROWS
from nanochat_tui.engine.run.draw import Drawn
from nanochat_tui.engine.run.kv_cache import KVCache
from nanochat_tui.engine.run.paging import PAGE, PagePool, pages_for
from nanochat_tui.engine.run.tables import CHUNK
from nanochat_tui.errors import UserError
from nanochat_tui.request import FinishReason, GenerationRequest, SamplingParams, Stats, Token, shows_settings

if TYPE_CHECKING:
    from nanochat_tui.engine.generate.model import Model

BURST = 16
"""Most tokens of each reply per return to Python."""
MEMORY_SHARE = 4
"""The cache takes at most one part in so many of the memory that is free, unless told otherwise."""

RESERVED_TOKENS = 512
"""Pages for so many tokens to come are reserved for every request. Most clients do not say how long a reply may be;
with pages for all that the context holds, the cache would serve one of them at a time."""


class QueueFull(UserError):  # noqa: N818 - it is a state of the queue, not a mistake
    """No place is left to wait in; the same request may be accepted later."""


@dataclass(frozen=True, slots=True)
class BatcherStats:
    """What a batcher is doing, and what it has done since it was made.

    running, waiting: requests. kv_used_tokens of kv_total_tokens: positions of the key-value cache. prompt_tokens were
    computed, reused_tokens taken from the cache, generated_tokens handed out. threads: of the latest job; stolen_pieces
    of work that a thread did for a late one, and thread_naps, waits in a pass that became sleep (see `ThreadCounts`).
    """

    running: int
    waiting: int
    kv_used_tokens: int
    kv_total_tokens: int
    prompt_tokens: int
    generated_tokens: int
    reused_tokens: int
    threads: int
    stolen_pieces: int
    thread_naps: int


class Stream(Iterator[Token]):
    """A reply being generated: an iterator over its tokens, which waits for the next one.

    When it is over, `finish_reason` says why ("stop", "length" or "cancelled") and `stats` what it took. What went
    wrong in between is raised from the iterator as UserError.
    """

    def __init__(self, prompt_tokens: int, stats: Stats, cancel: threading.Event | None) -> None:
        self.prompt_tokens = prompt_tokens
        """Tokens of the prompt, computed or reused."""
        self.stats = stats
        self.finish_reason: FinishReason | None = None
        """None while the reply is being generated."""
        self.stop_text: str | None = None
        """The stop string that ended the reply, if one did."""
        self.end_token: Token | None = None
        """The token that ended the reply, if it was not handed out."""
        self.reading: Reading | None = None
        """What was asked of the prompt; complete before the first token comes and when the reply is over."""
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


class _Request(TokenSequence):
    """A sequence in the queue or, with a cache, in the batch.

    owner: what replies that were asked for together have in common. arrived: when, by `time.perf_counter`. reading:
    takes what is computed for the prompt's tokens.
    """

    def __init__(
        self,
        batcher: Batcher,
        prompt: Sequence[int],
        request: GenerationRequest,
        *,
        cancel: threading.Event | None,
        owner: Hashable,
        salt: str | None,
        reading: Reading | None,
    ) -> None:
        speculator = Speculator(batcher.model.speculation, batcher.costs)
        super().__init__(batcher.model, prompt, request, batcher.context, BURST, speculator)
        self.stream = Stream(len(prompt), self.stats, cancel)
        self.stream.reading = self.reading = reading
        self.owner = self.stream if owner is None else owner
        self.salt = salt if reading is None else None  # what the cache knows cannot be read
        self.arrived = time.perf_counter()

    @property
    def to_read(self) -> int:
        """Tokens that the reading takes next; 0 if it takes none, or none yet."""
        if self.reading is None or self.resumed or len(self.cache.ids) < self.reading.first:
            return 0
        return max(0, self.reading.rows - len(self.cache.ids))

    @property
    def to_prefill(self) -> int:
        """Tokens to be run before the next one is sampled, or before the reading takes some."""
        known = len(self.cache.ids)
        if self.reading is not None and not self.resumed and known < self.reading.first:
            return self.reading.first - known
        return self.to_run

    @property
    def reads_states(self) -> bool:
        """Whether the reading takes states, not logits."""
        return self.reading is not None and self.reading.states

    @property
    def over(self) -> bool:
        """Whether nothing is left to be done."""
        known = len(self.cache.ids)
        return self.reply.room == 0 and (self.reading is None or known >= self.reading.rows)

    @property
    def reserved_pages(self) -> int:
        """Pages that are kept for it."""
        return pages_for(len(self.ids) + min(self.left, RESERVED_TOKENS))

    @property
    def next_page_end(self) -> int:
        """Tokens in its cache once the next page is full."""
        return (len(self.cache.ids) // PAGE + 1) * PAGE

    def shares_next_page(self, other: _Request) -> bool:
        """Return whether the page that is needed next is one of the other's, too, and can be taken from there."""
        if self.salt is None or self.salt != other.salt:
            return False
        end = self.next_page_end
        return end < len(self.ids) and self.cache.state_address == 0 and self.ids[:end] == other.ids[:end]

    def waits_for(self, leader: _Request) -> bool:
        """Return whether the other is about to compute the page that is needed next."""
        return len(leader.cache.ids) < self.next_page_end and self.shares_next_page(leader)


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
        self._waiting: deque[_Request] = deque()
        self._running: list[_Request] = []
        self._closed = False
        self._prompt_tokens = self._generated_tokens = self._reused_tokens = 0
        self.costs = Costs()
        """Of passes with and without draft tokens, of all requests."""
        self._pace = Pace(BURST)
        self._budget = Budget(model.executor.tile)
        self._reading_budgets = {states: Budget(model.executor.tile) for states in (False, True)}
        self._thread = threading.Thread(target=self._work, name="nanochat-batcher", daemon=True)
        self._thread.start()

    def _default_tokens(self, sequences: int) -> int:
        context = self.model.config.context_length
        fitting = available_memory() // MEMORY_SHARE // max(1, self._pool.page_bytes) * PAGE
        return max(min(context, LEAST_CONTEXT), min(sequences * context, fitting))

    @shows_settings
    def submit(
        self,
        ids: Sequence[int],
        params: GenerationRequest | SamplingParams | None = None,
        *,
        cancel: threading.Event | None = None,
        cache_salt: str | None = "",
        owner: Hashable = None,
        reading: Reading | None = None,
        **settings: Any,
    ) -> Stream:
        """Queue a prompt and return the stream of its reply at once. params, settings: as in `Session.generate`.

        cache_salt: beginnings of prompts are shared among requests with the same salt; None shares with none.
        owner: the same for replies that were asked for together, which share their places; None for a single one.
        reading: takes what is computed for the prompt's tokens, of which the cache knows none then.
        Raises UserError for impossible settings, a prompt longer than the context or a closed batcher, and
        QueueFull when no place to wait in is left.
        """
        asked = GenerationRequest.of(params, **settings)
        tokens = checked_prompt(self.model, ids, self.context)
        request = _Request(self, tokens, asked, cancel=cancel, owner=owner, salt=cache_salt, reading=reading)
        with self._changed:
            if self._closed:
                raise UserError("the model is being closed and takes no more requests")
            free = self._max_sequences - len(self._running)
            if len(self._waiting) >= self._max_waiting + max(0, free):
                raise QueueFull(f"{len(self._waiting)} requests are waiting already; try again in a moment")
            self._waiting.append(request)
            self._changed.notify_all()
        return request.stream

    def snapshot(self) -> BatcherStats:
        """Return what is going on now."""
        threads = self.model.executor.thread_counts()
        with self._changed:
            return BatcherStats(
                running=len(self._running),
                waiting=len(self._waiting),
                kv_used_tokens=self._pool.used * PAGE,
                kv_total_tokens=self._pool.capacity * PAGE,
                prompt_tokens=self._prompt_tokens,
                generated_tokens=self._generated_tokens,
                reused_tokens=self._reused_tokens,
                threads=threads.now,
                stolen_pieces=threads.stolen,
                thread_naps=threads.naps,
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
            except BaseException as error:  # the readers of streams have to learn of it
                for request in list(self._running):
                    self._finish(request, "cancelled", error)

    def _admit(self) -> None:
        """Move requests from waiting to running: whose owner runs the fewest first, when there is memory for each."""
        for request in [r for r in self._waiting if r.stream._cancel.is_set()]:
            self._waiting.remove(request)
            request.stream._end("cancelled")
        while self._waiting:
            owners, running = [r.owner for r in self._waiting], [r.owner for r in self._running]
            if len(self._running) == self._max_sequences:
                # one that asked for many replies at once gives a place back; it loses no more than a page's tokens
                displaced = to_displace(owners, running)
                if displaced is None:
                    return
                self._preempt(self._running[displaced])
                continue
            reserved = sum(request.reserved_pages for request in self._running)
            request = self._waiting[next_to_run(owners, running)]
            if reserved + request.reserved_pages > self._pool.capacity:
                return
            self._waiting.remove(request)
            try:
                request.attach(KVCache(self.model.config, self.context, self.model.kv, self._pool, request.salt))
            except BaseException as error:  # no memory for this one; its reader learns of it, and the others go on
                request.stream._end("cancelled", error)
                self._changed.notify_all()
                continue
            self._running.append(request)

    def _preempt(self, request: _Request) -> None:
        """Take a request's pages; as many as stay unused are found again when it is its turn."""
        with self._changed:
            self._running.remove(request)
            request.preempt()
            self._waiting.appendleft(request)

    def _schedule(self) -> tuple[dict[_Request, int], dict[_Request, int]]:
        """Return how many tokens of each prompt in prefill the next step takes, in the order of their turn, and how
        many tokens of prompts go to their readings next to it.

        The youngest requests are preempted until there are pages for that and for the next tokens of the others. The
        oldest alone always has room, so one always makes progress; and what was preempted comes back only when there
        are pages for a while.
        """
        while True:
            prefilling = [request for request in self._running if request.prefilling and not request.to_read]
            now = time.perf_counter()
            prompts = [Prompt(request.to_prefill, now - request.arrived) for request in prefilling]
            turns: list[int] = []
            leaders: list[_Request] = []
            for number in order(prompts):
                # what another one computes in this step is found in the next one
                if not any(prefilling[number].waits_for(leader) for leader in leaders):
                    turns.append(number)
                    leaders.append(prefilling[number])
            decoding = sum(not request.prefilling for request in self._running)
            budget = self._budget.tokens(CHUNK - decoding, decoding)
            shares = share([prompts[number] for number in turns], budget)
            prefill = {leader: tokens for leader, tokens in zip(leaders, shares, strict=True) if tokens}
            reads = self._share_reading(now, decoding)
            missing = 0
            for request in self._running:
                planned = prefill.get(request, 0) + reads.get(request, 0)
                tokens = planned if request.prefilling else min(BURST, request.left)
                missing += request.cache.missing(len(request.cache.ids) + tokens)
            if missing <= self._pool.available or len(self._running) == 1:
                return prefill, reads
            self._preempt(self._running[-1])  # they came in this order, and come back in it

    def _share_reading(self, now: float, decoding: int) -> dict[_Request, int]:
        """Return how many tokens go to which readings next: those of one kind, logits or states."""
        readers = [request for request in self._running if request.to_read]
        if not readers:
            return {}
        turns = [readers[i] for i in order([Prompt(r.to_read, now - r.arrived) for r in readers])]
        states = turns[0].reads_states
        turns = [request for request in turns if request.reads_states == states]
        most = most_rows(states, self.model.executor.vocab_padded)
        budget = self._reading_budgets[states].tokens(most, decoding)
        shares = share([Prompt(request.to_read, now - request.arrived) for request in turns], budget)
        return {request: tokens for request, tokens in zip(turns, shares, strict=True) if tokens}

    def _read(self, reads: dict[_Request, int], decoding: int) -> None:
        """Run tokens of prompts that are read, in a job of their own."""
        began = time.perf_counter()
        pieces = [request.reading_piece(tokens) for request, tokens in reads.items()]
        states = next(iter(reads)).reads_states
        rows, place = self.model.executor.read(pieces, states=states), 0
        for (request, tokens), piece in zip(reads.items(), pieces, strict=True):
            if request.reading is not None:
                request.reading.take(piece.position, rows[place : place + tokens])
            place += tokens
        seconds = time.perf_counter() - began
        for request, tokens in reads.items():
            request.prefilled(tokens, seconds)
        budget = self._reading_budgets[states]
        budget.learn(budget.plain * (decoding > 0) + seconds, decoding, sum(reads.values()))
        with self._changed:
            self._prompt_tokens += sum(reads.values())

    def _finish(self, request: _Request, reason: FinishReason, error: BaseException | None = None) -> None:
        with self._changed:
            self._running.remove(request)
            request.release()
            self._changed.notify_all()
        request.stream.stop_text, request.stream.end_token = request.reply.stop_text, request.reply.end_token
        request.stream._end(reason, error)

    def _step(self) -> None:
        """Run one job: a pass with tokens of prompts in it, or a few passes of decode alone."""
        for request in list(self._running):
            if request.stream._cancel.is_set():
                self._finish(request, "cancelled")
            elif request.over:
                self._finish(request, "length")
        for request in self._running:
            if request.prefilling:
                self._match_prefix(request)
        prefill, reads = self._schedule()
        decode = [request for request in self._running if not request.prefilling]
        if reads:
            self._read(reads, len(decode))
        if not prefill and not decode:
            return
        step = run_step(self.model.executor, prefill, decode, 1 if prefill else self._pace.passes)
        self._learn(step, prefill, len(decode))
        for request, drawn in step.drawn:
            self._hand_out(request, drawn)

    def _match_prefix(self, request: _Request) -> None:
        """Take pages of a prompt that another request has computed by now."""
        known = len(request.cache.ids)
        if known + PAGE >= len(request.ids):
            return
        end = request.next_page_end
        others = (other for other in self._running if other is not request and len(other.cache.ids) >= end)
        if known % PAGE == 0 or any(request.shares_next_page(other) for other in others):
            found = request.match_prefix()
            with self._changed:
                self._reused_tokens += found

    def _learn(self, step: Step[_Request], prefill: dict[_Request, int], decoding: int) -> None:
        """Note what a step took, with so many sequences in decode."""
        tokens = sum(prefill.values())
        self._budget.learn(step.seconds / step.passes, decoding, tokens)
        if not prefill:
            for each in self._reading_budgets.values():
                each.learn(step.seconds / step.passes, decoding, 0)
            self._pace.learn(step.seconds / step.passes)
            return
        self._pace.restart()
        with self._changed:
            self._prompt_tokens += sum(tokens for request, tokens in prefill.items() if not request.resumed)

    def _hand_out(self, request: _Request, drawn: Drawn) -> None:
        """Turn what was sampled into tokens of the stream, and end it where it ends."""
        try:
            for token in request.accept(drawn, request.stream._cancel):
                with self._changed:
                    self._generated_tokens += 1
                request.stream._put(token)
        except UserError as error:  # of this reply alone, such as a grammar that leads nowhere
            self._finish(request, "cancelled", error)
            return
        if request.finish_reason is not None:
            self._finish(request, request.finish_reason)
