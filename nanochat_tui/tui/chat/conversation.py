"""What has been said, and what to ask next. Pure state: no widgets, no threads, no model.

With a chat model the conversation is a list of messages. With a base model it is one growing document: each prompt is
appended to it and the model continues the whole, so that a second prompt builds on the first.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from nanochat_tui.chat.backend import FinishReason, Message, Request, SamplingSettings, Stats


@dataclass
class Turn:
    """One prompt and its reply. The reply is kept in parts: a continuation adds one, a retry replaces the last."""

    prompt: str
    parts: list[str] = field(default_factory=list)
    reason: FinishReason | None = None
    stats: Stats | None = None

    @property
    def reply(self) -> str:
        """All parts of the reply, joined."""
        return "".join(self.parts)


class Conversation:
    """The turns so far. `is_chat` False means a base model that continues a document."""

    def __init__(self, *, is_chat: bool) -> None:
        self.is_chat = is_chat
        self.turns: list[Turn] = []

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
        turn = Turn(text, [""])
        self.turns.append(turn)
        return turn

    def go_on(self) -> Turn | None:
        """Let the last reply continue; None if there is nothing to continue or the model answers messages."""
        if self.is_chat or self.last is None:
            return None
        self.last.parts.append("")
        self.last.reason = None
        return self.last

    def retry(self) -> Turn | None:
        """Discard the last part of the last reply, to write it anew; None if there is none."""
        if self.last is None:
            return None
        self.last.parts[-1] = ""
        self.last.reason = None
        return self.last

    def write(self, text: str) -> None:
        """Append to the reply being written."""
        self.turns[-1].parts[-1] += text

    def request(self, sampling: SamplingSettings, max_tokens: int | None) -> Request:
        """Return what to ask the backend, so that it continues the last turn's last part."""
        if not self.is_chat:
            return Request(prompt=self.document, sampling=sampling, max_tokens=max_tokens)
        messages: list[Message] = []
        for turn in self.turns[:-1]:
            if turn.reply:  # a turn without one was stopped at once or failed; templates want roles to alternate
                messages += [Message("user", turn.prompt), Message("assistant", turn.reply)]
        if self.last is not None:
            messages.append(Message("user", self.last.prompt))
        return Request(messages=tuple(messages), sampling=sampling, max_tokens=max_tokens)

    @staticmethod
    def _end_line(turn: Turn) -> None:
        if turn.parts and turn.reply:
            turn.parts[-1] += "\n"
        else:
            turn.prompt += "\n"
