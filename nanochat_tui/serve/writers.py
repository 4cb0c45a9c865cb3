"""Putting one reply into OpenAI's words: whole, or in the pieces of a stream.

A writer is fed the tokens of one reply. In a stream every lot becomes a choice of a chunk; without one the same
state becomes the final choice, so that both always say the same.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Protocol

from nanochat_tui.model.chat.thinking import ThinkingSplitter
from nanochat_tui.model.chat.tools.calls import CallSplitter, ToolCall
from nanochat_tui.request import Token
from nanochat_tui.serve.replies import (
    AssistantMessage,
    CalledFunction,
    CalledTool,
    ChatChoice,
    ChatLogprobs,
    CompletionChoice,
    CompletionLogprobs,
    EndReason,
    TokenLogprob,
)
from nanochat_tui.serve.spelling import PromptScores, Spelling, legacy_name, named_logprobs


class Writer(Protocol):
    """Writes one reply."""

    tokens: int

    @property
    def mean_logprob(self) -> float:
        """The mean log-probability of the tokens that were drawn, by which replies are ranked."""

    def ended(self, token: Token | None) -> None:
        """Learn that no tokens follow, and of the one that ended the reply without being part of it."""

    def opening(self) -> dict[str, Any] | None:
        """Return the choice that begins a stream, if there is one."""

    def add(self, tokens: Sequence[Token]) -> list[dict[str, Any]]:
        """Take tokens; return the choices of a stream for them, none when nothing can be said yet."""

    def closing(self, reason: EndReason) -> list[dict[str, Any]]:
        """Return the choices that end a stream."""

    def whole(self, reason: EndReason) -> ChatChoice | CompletionChoice:
        """Return the whole reply."""


class ChatWriter:
    """A reply of a conversation. `spelling` is given when probabilities are wanted, `calls` when it may call tools."""

    def __init__(
        self, index: int, splitter: ThinkingSplitter, spelling: Spelling | None, calls: CallSplitter | None = None
    ) -> None:
        self.tokens = 0
        self._calls = calls
        self._called: list[ToolCall] = []
        self._index = index
        self._splitter = splitter
        self._spelling = spelling
        self._said: list[str] = []
        self._thought: list[str] = []
        self._logprobs: list[TokenLogprob] = []

    @property
    def mean_logprob(self) -> float:
        """Replies of conversations are not ranked."""
        return 0.0

    def ended(self, token: Token | None) -> None:
        """Nothing is said of a token that is no part of the reply."""

    def _choice(self, delta: dict[str, Any], entries: list[TokenLogprob] | None = None) -> dict[str, Any]:
        logprobs = {"content": [e.model_dump() for e in entries]} if entries else None
        return {"index": self._index, "delta": delta, "logprobs": logprobs, "finish_reason": None}

    def opening(self) -> dict[str, Any] | None:
        """Return the choice that says who speaks."""
        return self._choice({"role": "assistant", "content": ""})

    def add(self, tokens: Sequence[Token]) -> list[dict[str, Any]]:
        """Take tokens; see `Writer.add`."""
        self.tokens += len(tokens)
        entries = [entry for entry, _ in self._spelling.take(tokens)] if self._spelling else []
        self._logprobs += entries
        return self._deltas(self._splitter.token(Token("".join(token.text for token in tokens))), entries)

    def _rest(self) -> list[dict[str, Any]]:
        entries = [entry for entry, _ in self._spelling.rest()] if self._spelling else []
        self._logprobs += entries
        return self._deltas(self._splitter.rest(), entries, last=True)

    def _deltas(
        self, pieces: Iterable[Token], entries: list[TokenLogprob], *, last: bool = False
    ) -> list[dict[str, Any]]:
        deltas: list[dict[str, Any]] = []
        for piece in pieces:
            if not piece.text:
                continue
            if piece.thinking:
                self._thought.append(piece.text)
                deltas.append({"reasoning_content": piece.text})
            elif self._calls is None:
                self._said.append(piece.text)
                deltas.append({"content": piece.text})
            else:
                deltas += self._told(self._calls.feed(piece.text))
        if last and self._calls is not None:
            deltas += self._told(self._calls.rest())
        if entries and not deltas:
            deltas = [{"content": ""}]
        return [self._choice(delta, None if place else entries) for place, delta in enumerate(deltas)]

    def _told(self, items: Iterable[str | ToolCall]) -> Iterator[dict[str, Any]]:
        for item in items:
            if isinstance(item, str):
                self._said.append(item)
                yield {"content": item}
                continue
            place = len(self._called)
            self._called.append(item)
            # the name first, as OpenAI has it: some clients begin a call by it and add up the arguments
            head = {"index": place, "id": item.id, "type": "function"}
            yield {"tool_calls": [{**head, "function": {"name": item.name, "arguments": ""}}]}
            yield {"tool_calls": [{"index": place, "function": {"arguments": item.arguments}}]}

    def _reason(self, reason: EndReason) -> EndReason:
        return "tool_calls" if self._called and reason == "stop" else reason

    def closing(self, reason: EndReason) -> list[dict[str, Any]]:
        """Return the last text, if any was held back, and the reason."""
        rest = self._rest()
        return [*rest, {**self._choice({}), "finish_reason": self._reason(reason)}]

    def whole(self, reason: EndReason) -> ChatChoice:
        """Return the whole reply."""
        self._rest()
        said = "".join(self._said)
        calls = [
            CalledTool(id=call.id, function=CalledFunction(name=call.name, arguments=call.arguments))
            for call in self._called
        ]
        message = AssistantMessage(
            content=None if calls and not said else said,
            tool_calls=calls or None,
            reasoning_content="".join(self._thought) or None,
        )
        logprobs = ChatLogprobs(content=self._logprobs) if self._spelling else None
        return ChatChoice(index=self._index, message=message, logprobs=logprobs, finish_reason=self._reason(reason))


class TextWriter:
    """A continuation of a text; `echo` is the prompt when the reply is to begin with it, `scores` its probabilities.

    With those the token that ended the reply has an entry too, as with OpenAI: programs that score a prompt ask for one
    token more and drop the last entry.
    """

    def __init__(self, index: int, echo: str, spelling: Spelling | None, scores: PromptScores | None = None) -> None:
        self.tokens = 0
        self._scores = scores
        self._begun = scores is None
        self._end: Token | None = None
        self._drawn: list[float] = []
        self._index = index
        self._spelling = spelling
        self._echo = echo
        self._text: list[str] = []
        self._all = CompletionLogprobs(tokens=[], token_logprobs=[], top_logprobs=[], text_offset=[])

    def _choice(self, text: str, logprobs: CompletionLogprobs | None = None) -> dict[str, Any]:
        shown = logprobs.model_dump() if logprobs else None
        return {"index": self._index, "text": text, "logprobs": shown, "finish_reason": None}

    @property
    def mean_logprob(self) -> float:
        """See `Writer.mean_logprob`; a reply without tokens is the least likely one."""
        return sum(self._drawn) / len(self._drawn) if self._drawn else -math.inf

    def ended(self, token: Token | None) -> None:
        """Learn of the token that ended the reply; see `Writer.ended`."""
        self._end = token
        if token is not None and token.logprob is not None:
            self._drawn.append(token.logprob)

    def opening(self) -> dict[str, Any] | None:
        """Return the prompt when it is to be repeated, and its probabilities need not be waited for."""
        return self._choice(self._echo) if self._echo and self._begun else None

    def _begin(self) -> list[dict[str, Any]]:
        """Return the choice with the prompt and its probabilities, once they are there."""
        if self._begun or self._scores is None:
            return []
        self._begun = True
        return [self._choice(self._echo, self._scores.listed())]

    def add(self, tokens: Sequence[Token]) -> list[dict[str, Any]]:
        """Take tokens; see `Writer.add`."""
        self.tokens += len(tokens)
        text = "".join(token.text for token in tokens)
        self._text.append(text)
        self._drawn += [token.logprob for token in tokens if token.logprob is not None]
        logprobs = self._listed(self._spelling.take(tokens)) if self._spelling else None
        return [*self._begin(), *([self._choice(text, logprobs)] if text or logprobs else [])]

    def _listed(self, found: Sequence[tuple[TokenLogprob, int]]) -> CompletionLogprobs | None:
        if not found:
            return None
        entries = [entry for entry, _ in found]
        new = CompletionLogprobs(
            tokens=[legacy_name(entry) for entry in entries],
            token_logprobs=[entry.logprob for entry in entries],
            top_logprobs=[named_logprobs(entry) for entry in entries],
            text_offset=[len(self._echo) + place for _, place in found],
        )
        _append(self._all, new)
        return new

    def _rest(self) -> CompletionLogprobs | None:
        """Return the last probabilities, if some were held back or the end has one."""
        if self._spelling is None:
            return None
        last = self._spelling.rest()
        if self._scores is not None and self._end is not None:
            last.append((self._spelling.spell(self._end), sum(map(len, self._text))))
        return self._listed(last)

    def closing(self, reason: EndReason) -> list[dict[str, Any]]:
        """Return the reason, with the last probabilities if some were held back."""
        return [*self._begin(), {**self._choice("", self._rest()), "finish_reason": reason}]

    def whole(self, reason: EndReason) -> CompletionChoice:
        """Return the whole continuation."""
        self._rest()
        logprobs = self._all if self._spelling else None
        if logprobs is not None and self._scores is not None:
            logprobs = _append(self._scores.listed().model_copy(deep=True), logprobs)
        text = self._echo + "".join(self._text)
        return CompletionChoice(index=self._index, text=text, logprobs=logprobs, finish_reason=reason)


def _append(lists: CompletionLogprobs, more: CompletionLogprobs) -> CompletionLogprobs:
    lists.tokens += more.tokens
    lists.token_logprobs += more.token_logprobs
    lists.top_logprobs += more.top_logprobs
    lists.text_offset += more.text_offset
    return lists
