"""One reply being written: sampled tokens become text, until something ends it.

A reply knows neither where its tokens are computed nor with whom: a session of its own and a batch use it alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from nanochat_tui.arguments import token_ids
from nanochat_tui.engine.generate.constraint import GrammarRules
from nanochat_tui.engine.generate.stopping import ReplyText
from nanochat_tui.engine.run.draw import Draw, Drawn
from nanochat_tui.errors import UserError
from nanochat_tui.request import FinishReason, GenerationRequest, Token

if TYPE_CHECKING:
    from nanochat_tui.engine.generate.model import Model


def checked_prompt(model: Model, ids: Sequence[int], context: int) -> list[int]:
    """Return a prompt as plain integers, an empty one as the token that begins a text.

    Raises UserError if it is longer than the context, has an id outside the vocabulary, or is empty without remedy.
    """
    tokens = token_ids("the prompt", ids)
    if not tokens and model.codec.bos is not None:
        tokens = [model.codec.bos]
    if not tokens:
        raise UserError("the prompt is empty and the model has no token to begin a text with; write something")
    if len(tokens) > context:
        raise UserError(f"the prompt has {len(tokens)} tokens and the context holds {context}; shorten the prompt")
    if min(tokens) < 0 or max(tokens) >= model.config.vocab_size:
        raise UserError(f"a token id of the prompt is outside the vocabulary of {model.config.vocab_size}")
    return tokens


class Reply:
    """The state of one reply: its draw, its text, how many tokens it has and may have.

    finish_reason: None until it is over. Tokens are offered in order by `accept`. Raises UserError for a grammar or
    biases that this model cannot follow.
    """

    def __init__(
        self, model: Model, prompt: Sequence[int], request: GenerationRequest, context: int, capacity: int
    ) -> None:
        self._codec = model.codec
        self._ends = request.stop_token_ids if request.ignore_eos else request.stop_token_ids | self._codec.end_ids
        self._min_tokens = request.min_tokens
        left = context - len(prompt)
        self.room = left if request.max_tokens is None else min(request.max_tokens, left)
        self.produced = 0
        self.finish_reason: FinishReason | None = None
        self.end_token: Token | None = None
        """The token that ended the reply, if it was not handed out."""
        self.rules: GrammarRules | None = None
        """What the reply has to follow, if anything."""
        if request.grammar is not None:
            self.rules = model.grammars.rules(
                request.grammar, prompt, min_tokens=request.min_tokens, ignore_eos=request.ignore_eos
            )
        self.draw = Draw(request, model.config.vocab_size, self._ends, capacity, self.rules)
        self.draw.see(prompt)
        self._text = ReplyText(self._codec.stream(after=list(prompt)), request.stop)

    def accept(self, drawn: Drawn, index: int) -> Token | None:
        """Take a sampled token; return what is to be handed out, and set `finish_reason` if it was the last.

        A token that ends the text is not handed out, unless text was held back that goes with it. Raises UserError if
        the reply's grammar has come to an end that is none.
        """
        token = drawn.ids[index]
        rules = self.rules
        if rules is not None and rules.failure is not None:
            self.finish_reason = "cancelled"
            raise UserError(rules.failure)
        self.produced += 1
        early = self.produced <= self._min_tokens
        if token in self._ends and not early:
            self.finish_reason = "stop"
            rest = self._text.finish()
            if rest:
                return self._token(drawn, index, rest)
            self.end_token = self._token(drawn, index, "")
            return None
        if rules is not None:
            rules.take(token)
        piece = self._text.feed(token, early=early)
        if self._text.stopped:
            self.finish_reason = "stop"
        elif rules is not None and rules.complete:
            piece += self._text.finish()
            self.finish_reason = "stop"
        elif self.produced == self.room:
            piece += self._text.finish()
            self.finish_reason = "stop" if self._text.stopped else "length"
        return self._token(drawn, index, piece)

    @property
    def stop_text(self) -> str | None:
        """The stop string that ended the reply; None if something else did."""
        return self._text.stop

    def _token(self, drawn: Drawn, index: int, text: str) -> Token:
        decode = self._codec.decode
        top = tuple((token, decode([token]), logprob) for token, logprob in drawn.alternatives[index])
        return Token(text, drawn.ids[index], drawn.logprobs[index], top)
