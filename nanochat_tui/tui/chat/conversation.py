"""What has been said, and what to ask next. Pure state: no widgets, no threads, no model.

With a chat model the conversation is a list of messages. With a base model it is one growing document: each prompt is
appended to it and the model continues the whole, so that a second prompt builds on the first.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate

from nanochat_tui.chat.backend import FinishReason, Message, Request, Stats, Token
from nanochat_tui.chat.experience import behind
from nanochat_tui.chat.store.records import SessionSettings, StoredTurn
from nanochat_tui.chat.tools.records import CallRecord, Segment, messages_of, segments

TOKENS_KEPT = 16
"""Newest turns whose single tokens stay in memory: half a kilobyte each, a hundred times their text."""


@dataclass(eq=False)
class Turn:
    """One prompt and its reply. The reply is kept in parts: a continuation adds one, a retry writes the last again.

    Two turns are the same only if they are one: equal words may stand in two places.
    """

    prompt: str
    parts: list[str] = field(default_factory=lambda: [""])
    reason: FinishReason | None = None
    stats: Stats | None = None
    thinking: str = ""
    tokens: list[list[Token]] = field(default_factory=list)
    """The tokens of each part, as far as they came in this run of the program; the lens shows them."""
    error: str | None = None
    """Why the reply broke off, if it did."""
    versions: list[Turn] = field(default_factory=list)
    """What stood here before and was written again or edited, oldest first; these have no versions themselves."""
    place: int = 0
    """Where this one stands among all of them."""
    calls: list[CallRecord] = field(default_factory=list)
    """Calls of tools, in the order in which they were made."""

    @property
    def segments(self) -> list[Segment]:
        """The reply as text and calls in turns."""
        return segments(self.parts, self.calls)

    def take_call(self, record: CallRecord) -> CallRecord:
        """Remember a call that begins here, or its new state; returns it with its place in the reply."""
        for index, known in enumerate(self.calls):
            if (known.id, known.round) == (record.id, record.round):
                self.calls[index] = replace(record, part=known.part, at=known.at)
                return self.calls[index]
        self.calls.append(replace(record, part=len(self.parts) - 1, at=len(self.parts[-1])))
        return self.calls[-1]

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

    # Versions

    @property
    def mark(self) -> str:
        """Which version this is, as in "2/3"; empty if there is only one."""
        return f"{self.place + 1}/{len(self.versions) + 1}" if self.versions else ""

    def all_versions(self) -> list[Turn]:
        """Return every version, oldest first: the others, and a copy of this one in its place."""
        own = replace(
            self,
            parts=[*self.parts],
            tokens=[[*part] for part in self.tokens],
            versions=[],
            place=0,
            calls=[*self.calls],
        )
        return [*self.versions[: self.place], own, *self.versions[self.place :]]

    def begin_version(self) -> None:
        """Keep what is here as a version; what is written from now on is a newer one."""
        self.versions = self.all_versions()
        self.place = len(self.versions)

    def show_version(self, place: int) -> None:
        """Become the version at `place`, which must exist; the present one is kept."""
        self._become(self.all_versions(), place)

    def drop_version(self, place: int) -> None:
        """Forget the present version, of which nothing came, and become the one at `place` of the others."""
        self._become(self.versions, place)

    def follow(self, other: Turn) -> None:
        """Be a newer version of `other`, whose place in the conversation this one takes."""
        self.versions = other.all_versions()
        self.place = len(self.versions)

    def _become(self, versions: list[Turn], place: int) -> None:
        shown = versions[place]
        for name in ("prompt", "parts", "reason", "stats", "thinking", "tokens", "error", "calls"):
            setattr(self, name, getattr(shown, name))
        self.versions = [*versions[:place], *versions[place + 1 :]]
        self.place = place

    def stored(self) -> StoredTurn:
        """Return what is kept of it."""
        others = tuple(version.stored() for version in self.versions)
        parts, calls = tuple(self.parts), tuple(self.calls)
        return StoredTurn(self.prompt, parts, self.thinking, self.reason, self.stats, others, self.place, calls)

    @classmethod
    def from_stored(cls, old: StoredTurn) -> Turn:
        """Return a turn as it was kept; its tokens were not."""
        versions = [cls.from_stored(version) for version in old.versions]
        parts, calls = list(old.parts) or [""], list(old.calls)
        return cls(old.prompt, parts, old.reason, old.stats, old.thinking, [], None, versions, old.place, calls)


class Conversation:
    """The turns so far. `is_chat` False means a base model that continues a document."""

    def __init__(self, *, is_chat: bool, turns: Iterable[StoredTurn] = ()) -> None:
        self.is_chat = is_chat
        self.rules = ""
        """Rules from experience that stand before each message; not kept with it."""
        self.turns = [Turn.from_stored(old) for old in turns]
        self.deleted: list[tuple[int, Turn]] = []
        """Turns that were deleted, in that order, each with the number it had."""

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
        if len(self.turns) > TOKENS_KEPT:  # all that grows with every reply but its text; the lens computes them again
            old = self.turns[-TOKENS_KEPT - 1]
            for version in (old, *old.versions):
                version.tokens = []
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
        """Begin another version of the last reply, without its last part, which is to be written again; None if there
        is none.
        """
        if self.last is None:
            return None
        self.last.begin_version()
        self.last.parts[-1] = ""
        self.last.tokens[len(self.last.parts) - 1 :] = [[]]
        self.last.calls = [call for call in self.last.calls if call.part < len(self.last.parts) - 1]
        if len(self.last.parts) == 1:
            self.last.thinking = ""
        self._reopen(self.last)
        return self.last

    def up_to(self, index: int) -> Conversation:
        """Return a conversation that ends with the prompt of turn `index`, whose reply is empty; this one stays."""
        made = Conversation(is_chat=self.is_chat)
        made.rules = self.rules
        made.turns = [*self.turns[:index], Turn(self.turns[index].prompt)]
        return made

    def cut(self, index: int) -> list[Turn]:
        """Remove the turns from `index` on and return them."""
        removed, self.turns[index:] = self.turns[index:], []
        return removed

    def delete(self, index: int) -> None:
        """Remove one turn; `undelete` brings it back."""
        self.deleted.append((index, self.turns.pop(index)))

    def undelete(self) -> int | None:
        """Bring back the turn that was deleted last; returns its number, None if there is none."""
        if not self.deleted:
            return None
        index, turn = self.deleted.pop()
        index = min(index, len(self.turns))
        self.turns.insert(index, turn)
        return index

    def branch(self, index: int, at: int, chosen: Token) -> Turn:
        """Take another token at place `at` of a reply: what came after it goes, and the reply can go on from there."""
        turn = self.turns[index]
        kept = [*turn.all_tokens[:at], replace(chosen, thinking=turn.all_tokens[at].thinking)]
        self.cut(index + 1)
        before = "".join(token.text for token in kept if not token.thinking)
        starts = [0, *accumulate(map(len, turn.parts))]
        placed = [replace(call, part=0, at=starts[min(call.part, len(turn.parts))] + call.at) for call in turn.calls]
        turn.calls = [call for call in placed if call.at < len(before)]
        turn.parts = [before]
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
        reply = segments(last.parts[:-1], last.calls)
        so_far = reply[-1].text
        known = last.tokens[:-1] if len(last.tokens) == len(last.parts) else []
        tokens = [token for part in known for token in part]
        ids = [token.id for token in tokens if token.id is not None]
        exact = (
            not last.calls and len(ids) == len(tokens) and "".join(t.text for t in tokens if not t.thinking) == so_far
        )
        request = Request(
            prompt="",
            sampling=settings.sampling,
            max_tokens=settings.max_tokens,
            top_logprobs=top_logprobs,
            prefix=so_far,
            prefix_ids=tuple(ids) if exact and not last.calls else (),
            prefix_thinking=bool(tokens and tokens[-1].thinking and not last.calls),
        )
        if not self.is_chat:
            return replace(request, prompt=self.document[: len(self.document) - len(last.reply)])
        messages = [Message("system", settings.system)] if settings.system.strip() else []
        for turn in self.turns[:-1]:
            if answered := messages_of(turn.segments, whole=True):
                messages += [Message("user", turn.prompt), *answered]
            # else it was stopped at once or failed; templates want roles to alternate
        messages += [Message("user", behind(self.rules, last.prompt)), *messages_of(reply, whole=False)]
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
