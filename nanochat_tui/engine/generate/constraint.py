"""Replies that follow a grammar: which tokens may come next is asked before every pass, and the sampler obeys.

The grammars are llguidance's (https://github.com/guidance-ai/llguidance): it reads JSON schemas, regular expressions
and grammars in Lark's form, and says in some microseconds which tokens of a vocabulary may follow. The mask of the next
token is known before its pass, and so are those behind draft tokens; the compiled program is left once per pass.
"""

from __future__ import annotations

import json
import threading
from collections import OrderedDict
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from nanochat_tui.engine.generate.vocabulary import Vocabulary, set_bits
from nanochat_tui.engine.run.drafter import NGRAM, Proposals
from nanochat_tui.errors import UserError
from nanochat_tui.request import Grammar
from nanochat_tui.text import display_safe

if TYPE_CHECKING:
    from llguidance import LLMatcher

    from nanochat_tui.model.tokenizer import TextCodec

MOST_KEPT = 32
"""Grammars that are kept ready for the next request that has the same."""
MAX_CHARACTERS = 1 << 18
"""Longest grammar: a hundred times what schemas have, and a fraction of a second to read."""
MAX_RULES = 1 << 14
"""The same for GBNF, whose rules are put in order by Python in quadratic time."""
WHITESPACE = r"( |\n[ \t]{0,20})?"
"""Where JSON may have white space: a space, or a new line with indentation, as models write it, but no endless run."""
ERROR_CHARACTERS = 300
ANY_TEXT = r"/(.|\n)*/"
_SHORTEST = 2
"""Tokens that must agree before a place in the history is believed, see `kernels.drafting`."""


class Grammars:
    """The grammars of a model, made when they are asked for. May be used from several threads."""

    def __init__(self, codec: TextCodec, rows: int) -> None:
        self._codec, self._rows = codec, rows
        self._lock = threading.Lock()
        self._vocabulary: Vocabulary | None = None
        self._ready: OrderedDict[Grammar, LLMatcher] = OrderedDict()

    def rules(self, grammar: Grammar, prompt: Sequence[int], *, min_tokens: int, ignore_eos: bool) -> GrammarRules:
        """Return the rules of a reply to a prompt. Raises UserError for a grammar that cannot be used, saying why.

        min_tokens, ignore_eos: as in `GenerationRequest`, as far as the grammar leaves a choice.
        """
        matcher, vocabulary = self._matcher(grammar)
        never = ignore_eos or not vocabulary.ends
        rules = GrammarRules(matcher, vocabulary, list(prompt), min_tokens=min_tokens, never_ends=never)
        if grammar.thinking is not None and grammar.budget is not None:
            rules.thought = Thought(vocabulary, grammar)
        return rules

    def check(self, grammar: Grammar) -> None:
        """Make a grammar ready. Raises UserError as `rules`."""
        self._matcher(grammar)

    def _matcher(self, grammar: Grammar) -> tuple[LLMatcher, Vocabulary]:
        from llguidance import LLMatcher

        with self._lock:
            vocabulary = self._vocabulary = self._vocabulary or Vocabulary(self._codec, self._rows)
            matcher = self._ready.get(grammar)
            if matcher is None:
                matcher = LLMatcher(vocabulary.tokenizer, definition(grammar), log_level=0)
                if matcher.is_error():
                    raise UserError(_refusal(matcher.get_error()))
                self._ready[grammar] = matcher
                if len(self._ready) > MOST_KEPT:
                    self._ready.popitem(last=False)
            self._ready.move_to_end(grammar)
            return matcher.deep_copy(), vocabulary


def definition(grammar: Grammar) -> str:
    """Return a grammar in the library's own form. Raises UserError if it cannot be read."""
    if len(grammar.text) > MAX_CHARACTERS:
        raise UserError(f"the grammar has {len(grammar.text):,} characters; {MAX_CHARACTERS:,} are the most")
    try:
        parts = [_part(grammar)]
    except Exception as error:  # the converter of GBNF raises what Python raises
        raise UserError(_refusal(str(error) or "it is nested too deeply")) from error
    if grammar.thinking is not None:
        parts.insert(0, {"lark_grammar": _thought_first(grammar, grammar.thinking)})
    return json.dumps({"grammars": parts})


def _part(grammar: Grammar) -> dict[str, Any]:
    from llguidance import LLMatcher
    from llguidance.gbnf_to_lark import gbnf_to_lark, is_lark_syntax

    name, text = "answer", grammar.text
    match grammar.kind:
        case "json_schema":
            schema = json.loads(text)
            if isinstance(schema, dict):
                schema = {**schema, "x-guidance": {"whitespace_pattern": WHITESPACE}}
            return {"name": name, "json_schema": schema}
        case "regex":
            made = json.loads(LLMatcher.grammar_from_regex(text))
            return {"name": name, "lark_grammar": made["grammars"][0]["lark_grammar"]}
        case "choices":
            return {"name": name, "lark_grammar": "start: " + " | ".join(quoted(one) for one in json.loads(text))}
        case "text":
            return {"name": name, "lark_grammar": f"start: {ANY_TEXT}"}
    if not is_lark_syntax(text):
        if len(text) > MAX_RULES:
            raise ValueError(f"it has {len(text):,} characters and GBNF may have {MAX_RULES:,}")
        text = gbnf_to_lark(text)
    return {"name": name, "lark_grammar": text}


def quoted(text: str) -> str:
    """Return a text as a literal of a grammar in Lark's form."""
    return json.dumps(text, ensure_ascii=False)


def _thought_first(grammar: Grammar, marks: tuple[str, str]) -> str:
    opening, closing = marks
    begin = "thought BLANK" if grammar.inside else f"({quoted(opening)} thought BLANK)?"
    # the first closing mark ends the thought; a lexeme without it would swallow its beginning
    body = [f"start: {begin} @answer", f"thought[suffix={quoted(closing)}]: {ANY_TEXT}", r"BLANK: /\n{0,2}/"]
    return "\n".join(body) + "\n"


class Thought:
    """How far a reply is in the thinking before its answer, which may have `grammar.budget` tokens."""

    def __init__(self, vocabulary: Vocabulary, grammar: Grammar) -> None:
        opening, closing = grammar.thinking or ("", "")
        self._vocabulary, self._budget = vocabulary, grammar.budget or 0
        self._opening, self._closing = opening.encode(), closing.encode()
        self._forced = vocabulary.ids_of(closing)
        self._said = b"" if not grammar.inside else self._opening
        self._spent = 0
        self._closed = 0

    def take(self, token: int) -> None:
        """Go on behind a token."""
        if self._closed < len(self._forced) and token == self.forced:
            self._closed += 1
        self._spent += self._said.startswith(self._opening)
        self._said += self._vocabulary.bytes_of(token)

    @property
    def forced(self) -> int | None:
        """The token that has to come because the budget is spent, None if there is none."""
        if self._closing in self._said or not self._said.startswith(self._opening) or self._spent < self._budget:
            return None
        return self._forced[self._closed] if self._closed < len(self._forced) else None


def _refusal(reason: str) -> str:
    first = next((line for line in reason.splitlines() if line.strip()), "unknown")
    return f"the grammar or schema cannot be used: {display_safe(first)[:ERROR_CHARACTERS]}"


class GrammarRules:
    """The rules of one reply, see `run.draw.Rules`: a matcher that follows every accepted token."""

    def __init__(
        self, matcher: LLMatcher, vocabulary: Vocabulary, prompt: list[int], *, min_tokens: int, never_ends: bool
    ) -> None:
        self._matcher, self._vocabulary = matcher, vocabulary
        self._state = vocabulary.state_after(prompt)
        self._min_tokens, self._never_ends = min_tokens, never_ends
        self._taken = 0
        self._found = np.zeros(-(-vocabulary.tokenizer.vocab_size // 32), np.uint32)
        self._ends = np.array(vocabulary.ends, np.int64)
        self.thought: Thought | None = None
        """What is thought before the answer, if that has a budget."""
        self.failure: str | None = None
        """Why no token may come any more although the grammar is not complete."""

    @property
    def complete(self) -> bool:
        """Whether nothing can follow."""
        return self._matcher.is_stopped() and not self._matcher.is_error()

    def take(self, token: int) -> None:
        """Go on behind a token that was sampled. Raises UserError if it leads nowhere."""
        self._taken += 1
        if self.thought is not None:
            self.thought.take(token)
        if not self._matcher.consume_token(self._state.take(token)):
            raise UserError(_refusal(self._matcher.get_error()))

    def masks(self, drafts: NDArray[np.int64], out: NDArray[np.uint32]) -> int:
        """See `run.draw.Rules`."""
        state, kept, matcher = self._state.copy(), 0, self._matcher
        self._mask(matcher, out[0], state.beginning, 0)
        forced = None if self.thought is None else self.thought.forced
        if forced is not None and out[0, forced // 32] >> np.uint32(forced % 32) & 1:  # not within a character
            out[0] = 0
            out[0, forced // 32] = np.uint32(1 << forced % 32)
        # how much of a budget is left behind draft tokens is not followed
        for draft in drafts.tolist() if self.thought is None else ():
            if not out[kept, draft // 32] >> np.uint32(draft % 32) & 1 or draft in self._vocabulary.ends:
                break
            if matcher.is_stopped() or not matcher.try_consume_tokens([state.take(draft)]):
                break
            kept += 1
            self._mask(matcher, out[kept], state.beginning, kept)
        if kept:
            matcher.rollback(kept)
        return kept

    def _mask(self, matcher: LLMatcher, out: NDArray[np.uint32], beginning: bool, ahead: int) -> None:
        found, ends = self._found, self._ends
        matcher.unsafe_compute_mask_ptr(found.ctypes.data, found.nbytes)
        self._vocabulary.narrow(found, out, beginning)
        if len(ends) and (self._never_ends or self._taken + ahead < self._min_tokens):
            kept = out[ends // 32].copy()
            out[ends // 32] &= ~(np.uint32(1) << (ends % 32).astype(np.uint32))
            if not out.any():
                out[ends // 32] = kept
        if not out.any():
            # the sampler has to draw something, which is not handed out
            if ahead == 0:
                error = self._matcher.get_error()
                self.failure = _refusal(error or "it asks for what no token of this model spells")
            out[0] = 1

    def forced(self) -> list[int]:
        """Return the tokens that the grammar leaves no choice about."""
        rows, changed = self._vocabulary.rows, self._vocabulary.changed
        if self._matcher.is_stopped():
            return []
        return [token if token < rows else int(changed[token - rows]) for token in self._matcher.compute_ff_tokens()]

    def allowed(self) -> list[int]:
        """Return the ids that may come next."""
        out = np.zeros((1, self._vocabulary.words), np.uint32)
        self.masks(np.zeros(0, np.int64), out)
        return list(set_bits(out[0]))


class GrammarDrafts(Proposals):
    """Drafts what the grammar forces, else what followed the last time that a text ended like this."""

    def __init__(self, rules: GrammarRules, ids: Sequence[int], room: int) -> None:
        super().__init__(ids, room)
        self._rules = rules

    def propose(self, ids: NDArray[np.int64], most: int) -> Sequence[int]:
        """See `Proposals`."""
        return self._rules.forced()[:most] or looked_up(ids, most)


def looked_up(ids: NDArray[np.int64], most: int) -> list[int]:
    """Return what followed the last occurrence of the longest repeated ending of ids, int64 [n], up to `most` tokens.

    The ending has 2 to NGRAM tokens; of equally long ones the latest counts. As `kernels.drafting` finds it.
    """
    n = len(ids)
    if n <= _SHORTEST:
        return []
    # places whose two tokens before are the last two
    places = np.flatnonzero((ids[1 : n - 1] == ids[n - 1]) & (ids[: n - 2] == ids[n - 2])) + _SHORTEST
    for length in range(NGRAM, _SHORTEST, -1):
        longer = places[places >= length]
        for back in range(_SHORTEST + 1, length + 1):
            longer = longer[ids[longer - back] == ids[n - back]]
        if len(longer):
            places = longer
            break
    return [int(token) for token in ids[places[-1] : places[-1] + most]] if len(places) else []
