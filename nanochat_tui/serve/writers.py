"""Putting one reply into OpenAI's words: whole, or in the pieces of a stream.

A writer is fed the tokens of one reply. In a stream every lot becomes a choice of a chunk; without one the same
state becomes the final choice, so that both always say the same.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Protocol

from nanochat_tui.model.chat.thinking import ThinkingSplitter
from nanochat_tui.request import Token
from nanochat_tui.serve.replies import (
    AssistantMessage,
    ChatChoice,
    ChatLogprobs,
    CompletionChoice,
    CompletionLogprobs,
    EndReason,
    TokenLogprob,
)
from nanochat_tui.serve.spelling import Spelling, legacy_name


class Writer(Protocol):
    """Writes one reply."""

    tokens: int

    def opening(self) -> dict[str, Any] | None:
        """Return the choice that begins a stream, if there is one."""

    def add(self, tokens: Sequence[Token]) -> list[dict[str, Any]]:
        """Take tokens; return the choices of a stream for them, none when nothing can be said yet."""

    def closing(self, reason: EndReason) -> list[dict[str, Any]]:
        """Return the choices that end a stream."""

    def whole(self, reason: EndReason) -> ChatChoice | CompletionChoice:
        """Return the whole reply."""


class ChatWriter:
    """A reply of a conversation. `spelling` is given when probabilities are wanted."""

    def __init__(self, index: int, splitter: ThinkingSplitter, spelling: Spelling | None) -> None:
        self.tokens = 0
        self._index = index
        self._splitter = splitter
        self._spelling = spelling
        self._said: list[str] = []
        self._thought: list[str] = []
        self._logprobs: list[TokenLogprob] = []

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
        return self._deltas(self._splitter.rest(), entries)

    def _deltas(self, pieces: Iterable[Token], entries: list[TokenLogprob]) -> list[dict[str, Any]]:
        deltas = []
        for piece in pieces:
            if piece.text:
                (self._thought if piece.thinking else self._said).append(piece.text)
                deltas.append({"reasoning_content" if piece.thinking else "content": piece.text})
        if entries and not deltas:
            deltas = [{"content": ""}]
        return [self._choice(delta, None if place else entries) for place, delta in enumerate(deltas)]

    def closing(self, reason: EndReason) -> list[dict[str, Any]]:
        """Return the last text, if any was held back, and the reason."""
        return [*self._rest(), {**self._choice({}), "finish_reason": reason}]

    def whole(self, reason: EndReason) -> ChatChoice:
        """Return the whole reply."""
        self._rest()
        message = AssistantMessage(content="".join(self._said), reasoning_content="".join(self._thought) or None)
        logprobs = ChatLogprobs(content=self._logprobs) if self._spelling else None
        return ChatChoice(index=self._index, message=message, logprobs=logprobs, finish_reason=reason)


class TextWriter:
    """A continuation of a text; `echo` is the prompt when the reply is to begin with it."""

    def __init__(self, index: int, echo: str, spelling: Spelling | None) -> None:
        self.tokens = 0
        self._index = index
        self._spelling = spelling
        self._echo = echo
        self._text: list[str] = []
        self._all = CompletionLogprobs(tokens=[], token_logprobs=[], top_logprobs=[], text_offset=[])

    def _choice(self, text: str, logprobs: CompletionLogprobs | None = None) -> dict[str, Any]:
        shown = logprobs.model_dump() if logprobs else None
        return {"index": self._index, "text": text, "logprobs": shown, "finish_reason": None}

    def opening(self) -> dict[str, Any] | None:
        """Return the prompt when it is to be repeated."""
        return self._choice(self._echo) if self._echo else None

    def add(self, tokens: Sequence[Token]) -> list[dict[str, Any]]:
        """Take tokens; see `Writer.add`."""
        self.tokens += len(tokens)
        text = "".join(token.text for token in tokens)
        self._text.append(text)
        logprobs = self._listed(self._spelling.take(tokens)) if self._spelling else None
        return [self._choice(text, logprobs)] if text or logprobs else []

    def _listed(self, found: Sequence[tuple[TokenLogprob, int]]) -> CompletionLogprobs | None:
        if not found:
            return None
        entries = [entry for entry, _ in found]
        new = CompletionLogprobs(
            tokens=[legacy_name(entry) for entry in entries],
            token_logprobs=[entry.logprob for entry in entries],
            top_logprobs=[{legacy_name(o): o.logprob for o in (*entry.top_logprobs, entry)} for entry in entries],
            text_offset=[len(self._echo) + place for _, place in found],
        )
        whole = self._all
        whole.tokens += new.tokens
        whole.token_logprobs += new.token_logprobs
        whole.text_offset += new.text_offset
        whole.top_logprobs += new.top_logprobs
        return new

    def closing(self, reason: EndReason) -> list[dict[str, Any]]:
        """Return the reason, with the last probabilities if some were held back."""
        logprobs = self._listed(self._spelling.rest()) if self._spelling else None
        return [{**self._choice("", logprobs), "finish_reason": reason}]

    def whole(self, reason: EndReason) -> CompletionChoice:
        """Return the whole continuation."""
        if self._spelling:
            self._listed(self._spelling.rest())
        logprobs = self._all if self._spelling else None
        text = self._echo + "".join(self._text)
        return CompletionChoice(index=self._index, text=text, logprobs=logprobs, finish_reason=reason)
