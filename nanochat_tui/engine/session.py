"""One conversation with a model: a key-value cache and the tokens in it.

The session does not know what the tokens mean: chat templates and histories belong to the caller, who simply
passes the whole sequence each time; whatever it shares with the previous one is not computed again.
"""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from nanochat_tui.engine.cache import CacheType, KVCache
from nanochat_tui.engine.executor import CHUNK
from nanochat_tui.engine.paging import pages_for
from nanochat_tui.engine.sampling import Draw, Drawn, Sampling
from nanochat_tui.engine.stopping import ReplyText
from nanochat_tui.errors import UserError

if TYPE_CHECKING:
    from nanochat_tui.engine.model import Model

FinishReason = Literal["stop", "length", "cancelled"]
BURST = 32
"""Most tokens computed per return to Python."""
BURST_SECONDS = 0.004
"""Time after which the next tokens should be handed out: well below what an eye or a cancel key notices."""


@dataclass(frozen=True, slots=True)
class Token:
    """One generated token. `text` has whole characters only and may be empty.

    logprob: natural log of its probability before temperature and cuts; top: the likeliest tokens (id, text,
    logprob) of the same distribution, as many as asked for.
    """

    id: int
    text: str
    logprob: float
    top: list[tuple[int, str, float]]


@dataclass(slots=True)
class Stats:
    """Of the last reply. Prompt figures leave out tokens re-used from the cache and include the first
    generated token; decode figures count the others."""

    prompt_tokens: int = 0
    prompt_seconds: float = 0.0
    reused_tokens: int = 0
    generated_tokens: int = 0
    decode_seconds: float = 0.0


def checked_prompt(model: Model, ids: Sequence[int], context: int) -> list[int]:
    """Return a prompt as plain integers, an empty one as the token that begins a text.

    Raises UserError if it is longer than the context, has an id outside the vocabulary, or is empty without remedy.
    """
    tokens = [int(token) for token in ids]
    if not tokens and model.codec.bos is not None:
        tokens = [model.codec.bos]
    if not tokens:
        raise UserError("the prompt is empty and the model has no token to begin a text with; write something")
    if len(tokens) > context:
        raise UserError(f"the prompt has {len(tokens)} tokens and the context holds {context}; shorten the prompt")
    if min(tokens) < 0 or max(tokens) >= model.config.vocab_size:
        raise UserError(f"a token id of the prompt is outside the vocabulary of {model.config.vocab_size}")
    return tokens


class Session:
    """A model with a cache of its own. Several sessions may share a model; each is used by one thread at a time."""

    def __init__(self, model: Model, context: int | None = None, kv: CacheType | None = None) -> None:
        limit = model.config.context_length
        positions = limit if context is None else context
        if not 1 <= positions <= limit:
            raise UserError(f"a context of {context} tokens is outside 1 to {limit}, the model's own")
        self._begin(model, positions, KVCache(model.config, positions, kv or model.kv))

    def _begin(self, model: Model, context: int, cache: KVCache) -> None:
        self.model = model
        self.context = context
        self.stats = Stats()
        self.finish_reason: FinishReason = "stop"
        self._cache = cache
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
        other._begin(self.model, self.context, self._cache.fork())
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
        cancel: threading.Event | None = None,
    ) -> Iterator[Token]:
        """Check the request and return an iterator over the reply's tokens; `finish_reason` is set when it ends.

        A token that ends the text is not handed out, unless text was held back that goes with it. A reply that begins
        ends an earlier one of this session that was left unfinished. Raises UserError for impossible settings and
        for a prompt longer than the context.
        """
        sampling = Sampling(
            temperature, top_k, top_p, min_p, repeat_penalty, seed, top_logprobs, presence_penalty, frequency_penalty
        )
        stops = [stop] if isinstance(stop, str) else list(stop)
        tokens = checked_prompt(self.model, ids, self.context)
        if max_tokens < 0:
            raise UserError(f"max_tokens is {max_tokens} and must be 0 or more")
        room = min(max_tokens, self.context - len(tokens))
        return self._run(tokens, room, sampling, stops, cancel or threading.Event())

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
        return tokens[start:]

    def _run(
        self, tokens: list[int], room: int, sampling: Sampling, stops: list[str], cancel: threading.Event
    ) -> Iterator[Token]:
        self.stats = Stats()
        self.finish_reason = "length"
        self._reply = reply = object()
        codec, executor = self.model.codec, self.model.executor
        pending = self._prefill(tokens, cancel)
        if pending is None or cancel.is_set():
            self.finish_reason = "cancelled"
            return
        if room == 0:
            return
        draw = Draw(sampling, self.model.config.vocab_size, codec.end_ids, BURST)
        draw.see(tokens)
        text = ReplyText(codec.stream(after=tokens), stops)
        ends = codec.end_ids
        produced, steps = 0, 1
        while True:
            began = time.perf_counter()
            position = len(self._cache.ids)
            # an interrupted job may have overwritten what lies beyond, never what lies before
            drawn = executor.generate(self._cache, np.array(pending, np.int64), position, draw, steps)
            seconds = time.perf_counter() - began
            if produced == 0:
                self.stats.prompt_tokens += len(pending)
                self.stats.prompt_seconds += seconds
            else:
                self.stats.generated_tokens += len(drawn.ids)
                self.stats.decode_seconds += seconds
            self._cache.extend(pending)
            for index, token in enumerate(drawn.ids):
                if cancel.is_set():
                    self.finish_reason = "cancelled"
                    return
                produced += 1
                if token in ends:
                    self.finish_reason = "stop"
                    rest = text.finish()
                    if rest:
                        yield self._token(drawn, index, rest)
                    return
                piece = text.feed(token)
                last = produced == room
                if last and not text.stopped:
                    piece += text.finish()
                if text.stopped:
                    self.finish_reason = "stop"
                if index + 1 < len(drawn.ids) and not (text.stopped or last):
                    self._cache.extend([token])
                yield self._token(drawn, index, piece)
                if text.stopped or last or self._reply is not reply:
                    return
            pending = [drawn.ids[-1]]
            each = seconds / len(drawn.ids) if produced > 1 else BURST_SECONDS / 2
            steps = max(1, min(BURST, 2 * steps, int(BURST_SECONDS / each), room - produced))

    def _token(self, drawn: Drawn, index: int, text: str) -> Token:
        decode = self.model.codec.decode
        top = [(token, decode([token]), logprob) for token, logprob in drawn.alternatives[index]]
        return Token(drawn.ids[index], text, drawn.logprobs[index], top)
