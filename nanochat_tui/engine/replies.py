"""One reply being written: sampled tokens become text, until something ends it.

A reply knows neither where its tokens are computed nor with whom: a session of its own and a batch use it alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from nanochat_tui.engine.sampling import Draw, Drawn, Sampling
from nanochat_tui.engine.stopping import ReplyText
from nanochat_tui.errors import UserError

if TYPE_CHECKING:
    from nanochat_tui.engine.model import Model

FinishReason = Literal["stop", "length", "cancelled"]


@dataclass(frozen=True, slots=True)
class Token:
    """One generated token. `text` has whole characters only and may be empty.

    logprob: natural log of its probability before temperature and cuts, nan if not wanted; top: the likeliest tokens
    (id, text, logprob) of the same distribution, as many as asked for.
    """

    id: int
    text: str
    logprob: float
    top: list[tuple[int, str, float]]


@dataclass(slots=True)
class Stats:
    """Of one reply. Prompt figures leave out tokens re-used from the cache and include the first
    generated token; decode figures count the others. Of drafted (guessed) tokens, accepted ones were right."""

    prompt_tokens: int = 0
    prompt_seconds: float = 0.0
    reused_tokens: int = 0
    generated_tokens: int = 0
    decode_seconds: float = 0.0
    drafted_tokens: int = 0
    accepted_tokens: int = 0


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


def reply_room(max_tokens: int, prompt: Sequence[int], context: int) -> int:
    """Return how many tokens a reply may have. Raises UserError if max_tokens is negative."""
    if max_tokens < 0:
        raise UserError(f"max_tokens is {max_tokens} and must be 0 or more")
    return min(max_tokens, context - len(prompt))


class Reply:
    """The state of one reply: its draw, its text, how many tokens it has and may have.

    finish_reason: None until it is over. Tokens are offered in order by `accept`.
    """

    def __init__(
        self,
        model: Model,
        prompt: Sequence[int],
        room: int,
        sampling: Sampling,
        stops: Sequence[str],
        capacity: int,
    ) -> None:
        self._codec = model.codec
        self.room = room
        self.produced = 0
        self.finish_reason: FinishReason | None = None
        self.draw = Draw(sampling, model.config.vocab_size, self._codec.end_ids, capacity)
        self.draw.see(prompt)
        self._text = ReplyText(self._codec.stream(after=list(prompt)), [stops] if isinstance(stops, str) else stops)

    def accept(self, drawn: Drawn, index: int) -> Token | None:
        """Take a sampled token; return what is to be handed out, and set `finish_reason` if it was the last.

        A token that ends the text is not handed out, unless text was held back that goes with it.
        """
        token = drawn.ids[index]
        self.produced += 1
        if token in self._codec.end_ids:
            self.finish_reason = "stop"
            rest = self._text.finish()
            return self._token(drawn, index, rest) if rest else None
        piece = self._text.feed(token)
        if self._text.stopped:
            self.finish_reason = "stop"
        elif self.produced == self.room:
            piece += self._text.finish()
            self.finish_reason = "stop" if self._text.stopped else "length"
        return self._token(drawn, index, piece)

    def _token(self, drawn: Drawn, index: int, text: str) -> Token:
        decode = self._codec.decode
        top = [(token, decode([token]), logprob) for token, logprob in drawn.alternatives[index]]
        return Token(drawn.ids[index], text, drawn.logprobs[index], top)
