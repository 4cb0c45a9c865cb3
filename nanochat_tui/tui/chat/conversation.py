"""What has been said, and what to ask next. Pure state: no widgets, no threads, no model.

With a chat model the conversation is a list of messages. With a base model it is one growing document: each prompt is
appended to it and the model continues the whole, so that a second prompt builds on the first.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, fields, replace

from nanochat_tui.chat.backend import FinishReason, Message, Request, Stats, Token
from nanochat_tui.chat.records import SessionSettings, StoredTurn

TOKENS_KEPT = 16
"""Newest turns whose single tokens stay in memory: half a kilobyte each, a hundred times their text."""


@dataclass
class Turn:
    """One prompt and its reply. The reply is kept in parts: a continuation adds one, a retry replaces the last."""

    prompt: str
    parts: list[str] = field(default_factory=lambda: [""])
    reason: FinishReason | None = None
    stats: Stats | None = None
    thinking: str = ""
    tokens: list[list[Token]] = field(default_factory=list)
    """The tokens of each part, as far as they came in this run of the program; the lens shows them."""
    error: str | None = None
    """Why the reply broke off, if it did."""

    @property
    def reply(self) -> str:
        """All parts of the reply, joined."""
        return "".join(self.parts)

    @property
    def all_tokens(self) -> list[Token]:
        """The tokens of the whole reply; empty if those of any part are unknown."""
        if len(self.tokens) != len(self.parts):
            return []
        found = [token for part in self.tokens for token in part]
        text = "".join(t.text for t in found if not t.thinking)
        return found if self.reply in (text, text + "\n") else []  # a following turn ends the last line

    def copy(self) -> Turn:
        """Return a turn that does not change with this one."""
        return replace(self, parts=[*self.parts], tokens=[[*part] for part in self.tokens])

    def take(self, other: Turn) -> None:
        """Become what `other` is."""
        for one in fields(self):
            setattr(self, one.name, getattr(other, one.name))

    def stored(self) -> StoredTurn:
        """Return what is kept of it."""
        return StoredTurn(self.prompt, tuple(self.parts), self.thinking, self.reason, self.stats)


class Conversation:
    """The turns so far. `is_chat` False means a base model that continues a document."""

    def __init__(self, *, is_chat: bool, turns: Iterable[StoredTurn] = ()) -> None:
        self.is_chat = is_chat
        self.turns = [
            Turn(old.prompt, list(old.parts) or [""], old.reason, old.stats, old.thinking)  # tokens are not kept
            for old in turns
        ]

    @property
    def last(self) -> Turn | None:
        """The newest turn, if there is one."""
        return self.turns[-1] if self.turns else None

    @property
    def document(self) -> str:
        """Everything written so far, as a base model sees it."""
        return "".join(turn.prompt + turn.reply for turn in self.turns)

    def say(self, text: str) -> Turn:
        """Begin a turn with `text`. In a document it starts on a line of its own."""
        if self.last is not None and not self.is_chat and not self.document.endswith("\n"):
            self._end_line(self.last)
        turn = Turn(text, tokens=[[]])
        self.turns.append(turn)
        if len(self.turns) > TOKENS_KEPT:  # all that grows with every reply but its text; the lens computes them anew
            self.turns[-TOKENS_KEPT - 1].tokens = []
        return turn

    def go_on(self) -> Turn | None:
        """Let the last reply continue; None if there is nothing to continue."""
        if self.last is None:
            return None
        self.last.parts.append("")
        self.last.tokens.append([])
        self._reopen(self.last)
        return self.last

    def retry(self) -> Turn | None:
        """Discard the last part of the last reply, to write it anew; None if there is none."""
        if self.last is None:
            return None
        self.last.parts[-1] = ""
        self.last.tokens[len(self.last.parts) - 1 :] = [[]]
        if len(self.last.parts) == 1:
            self.last.thinking = ""
        self._reopen(self.last)
        return self.last

    def up_to(self, index: int) -> Conversation:
        """Return a conversation that ends with the prompt of turn `index`, whose reply is empty; this one stays."""
        made = Conversation(is_chat=self.is_chat)
        made.turns = [*self.turns[:index], Turn(self.turns[index].prompt)]
        return made

    def cut(self, index: int) -> list[Turn]:
        """Remove the turns from `index` on and return them."""
        removed, self.turns[index:] = self.turns[index:], []
        return removed

    def delete(self, index: int) -> Turn:
        """Remove one turn and return it."""
        return self.turns.pop(index)

    def branch(self, index: int, at: int, chosen: Token) -> Turn:
        """Take another token at place `at` of a reply: what came after it goes, and the reply can go on from there."""
        turn = self.turns[index]
        kept = [*turn.all_tokens[:at], replace(chosen, thinking=turn.all_tokens[at].thinking)]
        self.cut(index + 1)
        turn.parts = ["".join(token.text for token in kept if not token.thinking)]
        turn.thinking = "".join(token.text for token in kept if token.thinking)
        turn.tokens = [kept]
        return turn

    def write(self, text: str, tokens: Sequence[Token] = (), *, thinking: bool = False) -> None:
        """Append to the reply being written."""
        turn = self.turns[-1]
        if thinking:
            turn.thinking += text
        else:
            turn.parts[-1] += text
        if len(turn.tokens) == len(turn.parts):
            turn.tokens[-1] += tokens

    def request(self, settings: SessionSettings, *, top_logprobs: int = 0) -> Request:
        """Return what to ask the backend, so that it continues the last turn's last part."""
        last = self.turns[-1]
        so_far = "".join(last.parts[:-1])
        known = last.tokens[:-1] if len(last.tokens) == len(last.parts) else []
        tokens = [token for part in known for token in part]
        ids = [token.id for token in tokens if token.id is not None]
        exact = len(ids) == len(tokens) and "".join(t.text for t in tokens if not t.thinking) == so_far
        request = Request(
            prompt="",
            sampling=settings.sampling,
            max_tokens=settings.max_tokens,
            top_logprobs=top_logprobs,
            prefix=so_far,
            prefix_ids=tuple(ids) if exact else (),
            prefix_thinking=bool(tokens and tokens[-1].thinking),
        )
        if not self.is_chat:
            return replace(request, prompt=self.document[: len(self.document) - len(last.reply)])
        messages = [Message("system", settings.system)] if settings.system.strip() else []
        for turn in self.turns[:-1]:
            if turn.reply:  # a turn without one was stopped at once or failed; templates want roles to alternate
                messages += [Message("user", turn.prompt), Message("assistant", turn.reply)]
        messages.append(Message("user", last.prompt))
        return replace(request, prompt=None, messages=tuple(messages))

    @staticmethod
    def _reopen(turn: Turn) -> None:
        turn.reason = None
        turn.error = None

    @staticmethod
    def _end_line(turn: Turn) -> None:
        if turn.parts and turn.reply:
            turn.parts[-1] += "\n"
        else:
            turn.prompt += "\n"
