"""One conversation with a model: a key-value cache and the tokens in it.

The session does not know what the tokens mean: chat templates and histories belong to the caller, who simply
passes the whole sequence each time; whatever it shares with the previous one is not computed again.
"""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from nanochat_tui.engine.cache import KVCache
from nanochat_tui.engine.executor import Piece
from nanochat_tui.engine.paging import pages_for
from nanochat_tui.engine.plan import CHUNK
from nanochat_tui.engine.replies import FinishReason, Reply, Stats, Token, checked_prompt, reply_room
from nanochat_tui.engine.sampling import Sampling
from nanochat_tui.engine.speculation import Lookup, MakeDrafter, Mode, Speculator
from nanochat_tui.errors import UserError

if TYPE_CHECKING:
    from nanochat_tui.engine.model import Model

__all__ = ["BURST", "BURST_SECONDS", "FinishReason", "Session", "Stats", "Token"]

BURST = 32
"""Most tokens computed per return to Python."""
BURST_SECONDS = 0.008
"""Time after which the next tokens should be handed out: well below what an eye or a cancel key notices."""


class Session:
    """A model with a cache of its own. Several sessions may share a model; each is used by one thread at a time.

    speculation: whether tokens are guessed ahead, which never changes the reply; None is the model's own setting.
    drafter: makes what guesses, for every reply anew.
    """

    def __init__(
        self,
        model: Model,
        context: int | None = None,
        speculation: Mode | None = None,
        drafter: MakeDrafter = Lookup,
    ) -> None:
        limit = model.config.context_length
        positions = limit if context is None else context
        if not 1 <= positions <= limit:
            raise UserError(f"a context of {context} tokens is outside 1 to {limit}, the model's own")
        self._begin(
            model, positions, KVCache(model.config, positions, model.kv), speculation or model.speculation, drafter
        )

    def _begin(self, model: Model, context: int, cache: KVCache, speculation: Mode, drafter: MakeDrafter) -> None:
        self.model = model
        self.context = context
        self.stats = Stats()
        self.finish_reason: FinishReason = "stop"
        self._cache = cache
        self._speculator = Speculator(speculation)
        self._drafter = drafter
        self._reply: object = None
        # the pages of a pool shared with forks go back to it when nobody refers to the session any more
        weakref.finalize(self, cache.release).atexit = False

    @property
    def position(self) -> int:
        """Tokens of the context in use."""
        return len(self._cache.ids)

    def fork(self) -> Session:
        """Return a session with the same tokens in its cache, which it shares until one of the two goes on.

        Both then cost only what they do not have in common. Forks share one pool of memory, which grows by the fork's
        context and shrinks again when the fork is no longer used.
        """
        pool, pages = self._cache.pool, pages_for(self.context) + 1
        pool.grow(pages)
        other = Session.__new__(Session)
        other._begin(self.model, self.context, self._cache.fork(), self._speculator.mode, self._drafter)
        weakref.finalize(other, pool.grow, -pages).atexit = False
        return other

    def generate(
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
    ) -> Iterator[Token]:
        """Check the request and return an iterator over the reply's tokens; `finish_reason` is set when it ends.

        A token that ends the text is not handed out, unless text was held back that goes with it. A reply that begins
        ends an earlier one of this session that was left unfinished. Raises UserError for impossible settings and
        for a prompt longer than the context.
        """
        sampling = Sampling(
            temperature, top_k, top_p, min_p, repeat_penalty, seed, top_logprobs, presence_penalty, frequency_penalty,
            logprobs,
        )  # fmt: skip
        tokens = checked_prompt(self.model, ids, self.context)
        room = reply_room(max_tokens, tokens, self.context)
        reply = Reply(self.model, tokens, room, sampling, stop, BURST)
        return self._run(tokens, reply, cancel or threading.Event())

    def _prefill(self, tokens: list[int], cancel: threading.Event) -> list[int] | None:
        """Run the prompt but its last chunk, which is returned; None if cancelled."""
        start = self._cache.begin(tokens)
        self.stats.reused_tokens = start
        while len(tokens) - start > CHUNK:
            if cancel.is_set():
                return None
            began = time.perf_counter()
            part = tokens[start : start + CHUNK]
            self.model.executor.run(self._cache, np.array(part, np.int64), start)
            self._cache.extend(part)
            start += CHUNK
            self.stats.prompt_tokens += CHUNK
            self.stats.prompt_seconds += time.perf_counter() - began
        self._cache.keep_state()
        return tokens[start:]

    def _run(self, tokens: list[int], reply: Reply, cancel: threading.Event) -> Iterator[Token]:
        self.stats = stats = Stats()
        self.finish_reason = "length"
        self._reply = reply
        cache, executor, speculator = self._cache, self.model.executor, self._speculator
        pending = self._prefill(tokens, cancel)
        if pending is None or cancel.is_set():
            self.finish_reason = "cancelled"
            return
        if reply.room == 0:
            return
        drafter = self._drafter(tokens, reply.room) if speculator.mode != "off" else None
        passes = 1
        while True:
            first = reply.produced == 0
            guesses = speculator.most()
            if guesses and drafter is not None:
                passes = min(passes, drafter.most_passes)
            steps = min(BURST, passes * (1 + guesses), reply.room - reply.produced)
            began = time.perf_counter()
            # an interrupted job may have overwritten what lies beyond, never what lies before
            piece = Piece(
                cache, np.array(pending, np.int64), len(cache.ids), reply.draw, steps, passes, drafter, guesses
            )
            (drawn,) = executor.execute([piece])
            seconds = time.perf_counter() - began
            if first:
                stats.prompt_tokens += len(pending)
                stats.prompt_seconds += seconds
            else:
                stats.generated_tokens += len(drawn.ids)
                stats.decode_seconds += seconds
            if drafter is not None:
                stats.drafted_tokens += drafter.drafted
                stats.accepted_tokens += drafter.accepted
                if not first:
                    speculator.learn(seconds, drafter.passes, drafter.drafted_passes, drafter.accepted)
            cache.extend(pending)
            if first:
                cache.keep_state()
            for index, token in enumerate(drawn.ids):
                if cancel.is_set():
                    self.finish_reason = "cancelled"
                    return
                handed = reply.accept(drawn, index)
                over = reply.finish_reason
                if index + 1 < len(drawn.ids) and over is None:
                    cache.extend([token])
                if over is not None:
                    self.finish_reason = over
                if handed is not None:
                    yield handed
                if over is not None or self._reply is not reply:
                    return
            pending = [drawn.ids[-1]]
            each = seconds / reply.draw.passes if not first else BURST_SECONDS / 2
            passes = max(1, min(BURST, 2 * passes, int(BURST_SECONDS / each)))
