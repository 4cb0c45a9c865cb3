"""One conversation with a model: a key-value cache and the tokens in it.

The session does not know what the tokens mean: chat templates and histories belong to the caller, who simply
passes the whole sequence each time; whatever it shares with the previous one is not computed again.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from nanochat_tui.engine.generate.replies import checked_prompt
from nanochat_tui.engine.generate.speculation import Mode, Speculator
from nanochat_tui.engine.generate.step import Pace, TokenSequence, run_step
from nanochat_tui.engine.run.drafter import Lookup, MakeDrafter
from nanochat_tui.engine.run.kv_cache import KVCache
from nanochat_tui.engine.run.paging import pages_for
from nanochat_tui.engine.run.tables import CHUNK
from nanochat_tui.errors import UserError
from nanochat_tui.request import FinishReason, GenerationRequest, SamplingParams, Stats, Token, shows_settings

if TYPE_CHECKING:
    from nanochat_tui.engine.generate.model import Model

BURST = 32
"""Most tokens computed per return to Python."""


class Session:
    """A model with a cache of its own. Several sessions may share a model; each is used by one thread at a time.

    speculation: whether draft tokens are tried, which never changes the reply; None is the model's own setting.
    drafter: makes what proposes draft tokens, for each reply again.
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
        self._cache = cache
        self._speculator = Speculator(speculation)
        self._drafter = drafter
        self._sequence: TokenSequence | None = None
        # the pages of a pool shared with forks go back to it when no reference to the session is left
        weakref.finalize(self, cache.release).atexit = False

    @property
    def position(self) -> int:
        """Tokens of the context in use."""
        return len(self._cache.ids)

    @property
    def finish_reason(self) -> FinishReason:
        """Why the latest reply ended; "length" while it is being generated."""
        return "stop" if self._sequence is None else self._sequence.finish_reason or "length"

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

    @shows_settings
    def generate(
        self,
        ids: Sequence[int],
        params: GenerationRequest | SamplingParams | None = None,
        *,
        cancel: threading.Event | None = None,
        **settings: Any,
    ) -> Iterator[Token]:
        """Check the request and return an iterator over the reply's tokens; `finish_reason` is set when it ends.

        settings: fields of `GenerationRequest` or `SamplingParams`, over those of `params`. A token that ends the text
        is not handed out, unless text was held back that goes with it. A reply that begins ends an earlier one of this
        session that was left unfinished. Raises UserError for impossible settings and for a prompt longer than the
        context.
        """
        request = GenerationRequest.of(params, **settings)
        tokens = checked_prompt(self.model, ids, self.context)
        sequence = TokenSequence(self.model, tokens, request, self.context, BURST, self._speculator, self._drafter)
        return self._run(sequence, cancel or threading.Event())

    def _run(self, sequence: TokenSequence, cancel: threading.Event) -> Iterator[Token]:
        self._sequence, self.stats = sequence, sequence.stats
        sequence.attach(self._cache)
        sequence.match_prefix()
        pace = Pace(BURST)
        while sequence.finish_reason is None:
            if cancel.is_set():
                sequence.cancel()
                return
            if sequence.left == 0 and sequence.to_run <= CHUNK:
                return
            if sequence.prefilling:
                step = run_step(self.model.executor, {sequence: min(CHUNK, sequence.to_run)}, (), 1)
            else:
                step = run_step(self.model.executor, {}, (sequence,), pace.passes)
                pace.learn(step.seconds / step.passes)
            for _, drawn in step.drawn:
                for token in sequence.accept(drawn, cancel):
                    yield token
                    if self._sequence is not sequence:
                        return
