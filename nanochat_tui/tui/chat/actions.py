"""What the parts of the chat that offer commands have in common: the same session, model, widgets and screen."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from nanochat_tui.tui.chat.act import Act
from nanochat_tui.tui.chat.model_slot import ModelSlot
from nanochat_tui.tui.chat.replies import ReplyRunner
from nanochat_tui.tui.chat.session import ChatSession
from nanochat_tui.tui.chat.session_flow import SessionFlow
from nanochat_tui.tui.chat.view import ChatView, Desk


@dataclass(frozen=True, slots=True)
class ChatParts:
    """What commands act on."""

    session: ChatSession
    model: ModelSlot
    replies: ReplyRunner
    flow: SessionFlow
    view: ChatView
    desk: Desk


class Actions(ABC):
    """A group of commands that act on the parts of a chat."""

    def __init__(self, parts: ChatParts) -> None:
        self._session, self._model, self._replies = parts.session, parts.model, parts.replies
        self._flow, self._view, self._desk = parts.flow, parts.view, parts.desk

    @abstractmethod
    def acts(self) -> dict[str, Act]:
        """Return the commands by their names."""
