"""Every message that travels between threads and widgets, in one place.

Messages about a reply carry the number of the run they belong to, so that what a cancelled run still says is not taken
for the words of the next one.
"""

from __future__ import annotations

from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path

from textual.message import Message

from nanochat_tui.chat.backend import WARNING, Backend, FinishReason, Stats, Token
from nanochat_tui.chat.tools.definitions import Tool
from nanochat_tui.chat.tools.records import CallRecord
from nanochat_tui.chat.tools.toolbox import Answer
from nanochat_tui.request import SamplingParams


@dataclass
class BackendMessage(Message):
    """Something about the loading of `backend`."""

    backend: Backend


@dataclass
class BackendProgress(BackendMessage):
    """The loading thread says what it is doing."""

    step: str

    def can_replace(self, message: Message) -> bool:
        """Only the newest step is worth showing, but every warning is."""
        return isinstance(message, BackendProgress) and not message.step.startswith(WARNING)


@dataclass
class BackendReady(BackendMessage):
    """The model can answer."""


@dataclass
class BackendFailed(BackendMessage):
    """The model cannot be used; `text` says why and what to do."""

    text: str


@dataclass
class ReplyMessage(Message):
    """Something about the reply number `run`."""

    run: int


@dataclass
class ReplyStarted(ReplyMessage):
    """The model is reading the prompt."""

    prompt_tokens: int
    note: str | None


@dataclass
class ReplyText(ReplyMessage):
    """More of the reply: the text of all tokens since the last such message, all of it thinking or none of it."""

    text: str
    tokens: tuple[Token, ...] = ()
    thinking: bool = False


@dataclass
class ReplyStats(ReplyMessage):
    """Speeds and context of the reply being written."""

    stats: Stats


@dataclass
class ReplyCall(ReplyMessage):
    """A call of a tool was made by the model, or its state changed."""

    record: CallRecord


@dataclass
class ReplyAsks(ReplyMessage):
    """May this call be made? The reply waits for `answer`."""

    record: CallRecord
    tool: Tool
    answer: Future[Answer]


@dataclass
class ReplyNote(ReplyMessage):
    """Something about tools that does not stop the reply, as a sentence."""

    text: str


@dataclass
class ReplyEnded(ReplyMessage):
    """The reply is over; `error` is set when something went wrong, `reason` otherwise."""

    reason: FinishReason | None
    error: str | None = None


@dataclass
class PromptSubmitted(Message):
    """Enter was pressed in the input."""

    text: str


@dataclass
class SettingsChanged(Message):
    """The settings panel holds a new, valid set of values."""

    system: str
    sampling: SamplingParams
    max_tokens: int | None


@dataclass
class StoreProblem(Message):
    """Sessions are not being saved, or are again; `text` says which and why."""

    text: str


@dataclass
class SessionChosen(Message):
    """A session is to be opened, at one of its turns if `position` says so."""

    session: str
    position: int | None = None


@dataclass
class SessionAction(Message):
    """Something is to be done to a session of the list: "rename", "delete", "fork" or "export"."""

    action: str
    session: str


@dataclass
class BranchChosen(Message):
    """The lens asks for another token at place `at` of the reply of turn `turn`."""

    turn: int
    at: int
    token: Token


@dataclass
class OpenFile(Message):
    """Posted to the application: show this model file in the inspector."""

    path: Path


@dataclass
class ChatWith(Message):
    """Posted to the application: load this model file in the chat, with its mHC sidecar if it needs one."""

    path: Path
    mhc: Path | None = None
    threads: int | None = None
    """Most threads it may take; None: as many as it would."""
    note: str = ""
    """What to say when it is loaded."""


@dataclass
class ModeNews(Message):
    """Posted to the application: something happened in a mode that may not be on show; '' when it was seen."""

    mode: str
    badge: str


@dataclass
class ModelUsed(Message):
    """A model file was loaded; the application remembers it for the picker."""

    path: Path
