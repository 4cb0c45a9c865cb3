"""One generation step, which a session takes with one sequence and the scheduler with many.

A step is one job of the executor: some tokens of prompts (prefill), and for each sequence that has sampled before one
token or, with draft tokens, several (decode). A `TokenSequence` holds what a step needs to know of a request: it finds
the prefix that the KV cache has, describes its part of the job, and takes what was sampled until something ends it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, TypeVar

import numpy as np

from nanochat_tui.engine.generate.constraint import GrammarDrafts
from nanochat_tui.engine.generate.replies import Reply
from nanochat_tui.engine.generate.speculation import Speculator
from nanochat_tui.engine.run.drafter import UNLIMITED, Drafter, Lookup, MakeDrafter
from nanochat_tui.engine.run.draw import Drawn
from nanochat_tui.engine.run.executor import Executor, Piece
from nanochat_tui.engine.run.kv_cache import KVCache
from nanochat_tui.engine.run.tables import CHUNK
from nanochat_tui.request import FinishReason, GenerationRequest, Stats

if TYPE_CHECKING:
    from nanochat_tui.engine.generate.model import Model
    from nanochat_tui.request import Token

BURST_SECONDS = 0.008
"""Time after which a job returns to Python: well below what an eye or a cancel key notices."""


class Pace:
    """How many passes a decode job takes: as many as fit `BURST_SECONDS`, at most `most`."""

    def __init__(self, most: int) -> None:
        self._most = most
        self.passes = 1

    def learn(self, seconds: float) -> None:
        """Note what a pass took; the next job has at most twice the passes of this one."""
        self.passes = max(1, min(self._most, 2 * self.passes, int(BURST_SECONDS / seconds)))

    def restart(self) -> None:
        """Begin with one pass again, as after a step with prompts in it."""
        self.passes = 1


class TokenSequence:
    """A request's tokens on their way through the model.

    ids: the prompt and the tokens sampled so far. The cache is attached by the owner of its memory; the tokens in it
    are always the first ones of `ids`, and those behind them are still to be run.
    """

    def __init__(
        self,
        model: Model,
        prompt: Sequence[int],
        request: GenerationRequest,
        context: int,
        burst: int,
        speculator: Speculator,
        make_drafter: MakeDrafter = Lookup,
    ) -> None:
        """Begin with a prompt that was checked. burst: most tokens sampled per step.

        speculator: decides how many draft tokens are tried; it may have served earlier replies.
        """
        self.ids = list(prompt)
        self.reply = Reply(model, prompt, request, context, burst)
        self.stats = Stats()
        self._burst = burst
        self._speculator = speculator
        self._drafter: Drafter | None = None
        rules = self.reply.rules
        if speculator.mode != "off":
            if rules is not None and make_drafter is Lookup:
                self._drafter = GrammarDrafts(rules, prompt, self.reply.room)
            else:
                self._drafter = make_drafter(prompt, self.reply.room)
        self._cache: KVCache | None = None

    @property
    def cache(self) -> KVCache:
        """The cache that was attached."""
        if self._cache is None:
            raise RuntimeError("the sequence has no KV cache")
        return self._cache

    @property
    def finish_reason(self) -> FinishReason | None:
        """Why the reply ended; None before it did."""
        return self.reply.finish_reason

    @property
    def most_passes(self) -> int:
        """Passes that a job may take for it: one if a grammar has to be asked before each."""
        return UNLIMITED if self.reply.rules is None else 1

    @property
    def left(self) -> int:
        """Tokens that the reply may still get."""
        return self.reply.room - self.reply.produced

    @property
    def to_run(self) -> int:
        """Tokens that are not in the cache yet; the last one sampled is always among them."""
        return len(self.ids) - len(self.cache.ids)

    @property
    def resumed(self) -> bool:
        """Whether a part of the reply exists, which a sequence that was preempted runs again like a prompt."""
        return self.reply.produced > 0

    @property
    def prefilling(self) -> bool:
        """Whether tokens are to be run before the next one can be sampled from a step of its own."""
        return not self.resumed or self.to_run > 1

    def cancel(self) -> None:
        """End the reply, if it has not ended."""
        self.reply.finish_reason = self.finish_reason or "cancelled"

    # ---- cache

    def attach(self, cache: KVCache) -> None:
        """Run in this cache from now on. What it holds of other sequences is found by `match_prefix` or dropped."""
        self._cache = cache

    def preempt(self) -> None:
        """Give the cache's pages back; the sequence continues when another cache is attached."""
        self.release()
        if not self.resumed:  # its prompt is run again, and each token of that counts once
            self.stats.prompt_tokens = self.stats.reused_tokens = 0

    def release(self) -> None:
        """Give the cache's pages back, if there is one."""
        if self._cache is not None:
            self._cache.release()
        self._cache = None

    def match_prefix(self) -> int:
        """Take the longest prefix that the cache or its pool holds; return how many tokens of the prompt are new in it.

        At least one token is left to run. What this sequence has computed itself is part of the prefix.
        """
        matched = self.cache.begin(self.ids)
        self._keep_state()
        if self.resumed:
            return 0
        found = matched - self.stats.reused_tokens - self.stats.prompt_tokens
        self.stats.reused_tokens += found
        return found

    def _keep_state(self) -> None:
        """Keep a recurrent state before the last chunk and at the end of a prompt: a later one may continue there."""
        if self.to_run <= CHUNK:
            self.cache.keep_state()

    # ---- parts of a job

    def prefill_piece(self, tokens: int) -> Piece:
        """Return the job's part that runs the next tokens, and samples one if they are the last."""
        begin = len(self.cache.ids)
        part = np.array(self.ids[begin : begin + tokens], np.int64)
        draw = self.reply.draw if begin + len(part) == len(self.ids) else None
        return Piece(self.cache, part, begin, draw, drafter=self._drafter)

    def reading_piece(self, tokens: int) -> Piece:
        """Return the part of a job of its own that runs the next tokens and samples none."""
        begin = len(self.cache.ids)
        return Piece(self.cache, np.array(self.ids[begin : begin + tokens], np.int64), begin)

    def decode_piece(self, passes: int, *, draft: bool) -> Piece:
        """Return the job's part that runs the last token and samples in up to `passes` passes; draft: with drafts."""
        drafts = self._speculator.most() if draft else 0
        if drafts and self._drafter is not None:
            passes = min(passes, self._drafter.most_passes)
        steps = min(self._burst, passes * (1 + drafts), self.left)
        # an interrupted job may have overwritten what lies behind the cache's tokens, never what lies before
        begin = len(self.cache.ids)
        last = np.array(self.ids[begin:], np.int64)
        return Piece(self.cache, last, begin, self.reply.draw, steps, passes, self._drafter, drafts)

    def prefilled(self, tokens: int, seconds: float) -> None:
        """Note that a step ran the piece of `prefill_piece`."""
        begin = len(self.cache.ids)
        self.cache.extend(self.ids[begin : begin + tokens])
        self._keep_state()
        if self.resumed:
            self.stats.decode_seconds += seconds
        else:
            self.stats.prompt_tokens += tokens
            self.stats.prompt_seconds += seconds

    def decoded(self, seconds: float, *, draft: bool) -> None:
        """Note that a step ran the piece of `decode_piece`; draft: its time says what draft tokens cost."""
        self.cache.extend(self.ids[len(self.cache.ids) :])
        self.stats.decode_seconds += seconds
        drafter = self._drafter
        if draft and drafter is not None:
            self.stats.drafted_tokens += drafter.drafted
            self.stats.accepted_tokens += drafter.accepted
            self._speculator.learn(seconds, drafter.passes, drafter.drafted_passes, drafter.accepted)

    def accept(self, drawn: Drawn, cancel: threading.Event) -> Iterator[Token]:
        """Take the tokens that a step sampled; yield those to be handed out, until `finish_reason` is set."""
        if self.resumed:
            self.stats.generated_tokens += len(drawn.ids)
        reply, cache, last = self.reply, self.cache, len(drawn.ids) - 1
        for index, token in enumerate(drawn.ids):
            if cancel.is_set():
                self.cancel()
                return
            handed = reply.accept(drawn, index)
            self.ids.append(token)
            over = reply.finish_reason is not None
            if index < last and not over:
                cache.extend([token])
            if handed is not None:
                yield handed
            if over:
                return


S = TypeVar("S", bound=TokenSequence)


@dataclass(frozen=True, slots=True)
class Step(Generic[S]):
    """What a step did: its seconds, the passes it took, and what was sampled of which sequences."""

    seconds: float
    passes: int
    drawn: list[tuple[S, Drawn]]


def run_step(executor: Executor, prefill: Mapping[S, int], decode: Collection[S], passes: int) -> Step[S]:
    """Run one job: so many tokens of each sequence in `prefill`, up to `passes` passes of those in `decode`.

    Draft tokens are tried for a sequence that is alone only: next to others they would take their time, and what they
    cost could not be told. The caller hands what was sampled to `TokenSequence.accept`.
    """
    draft = len(decode) == 1 and not prefill
    # a sequence that left the job early would leave the weights to be read for the others alone
    passes = min([passes, *(sequence.most_passes for sequence in decode)])
    pieces = [sequence.decode_piece(passes, draft=draft) for sequence in decode]
    pieces += [sequence.prefill_piece(tokens) for sequence, tokens in prefill.items()]
    began = time.perf_counter()
    results = executor.execute(pieces)
    seconds = time.perf_counter() - began
    for sequence in decode:
        sequence.decoded(seconds, draft=draft)
    for sequence, tokens in prefill.items():
        sequence.prefilled(tokens, seconds)
    sampled = [s for s, piece in zip((*decode, *prefill), pieces, strict=True) if piece.draw is not None]
    taken = max((sequence.reply.draw.passes for sequence in decode), default=1)
    return Step(seconds, max(1, taken), list(zip(sampled, results, strict=True)))
