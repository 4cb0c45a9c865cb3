"""Every message that travels between threads and widgets, in one place.

Messages about a reply carry the number of the run they belong to, so that what a cancelled run still says is not taken
for the words of the next one.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from textual.message import Message

from nanochat_tui.chat.backend import Backend, FinishReason, SamplingSettings, Stats, Token
from nanochat_tui.tui.chat.inside import Inside


@dataclass
class BackendProgress(Message):
    """The loading thread says what it is doing."""

    backend: Backend
    step: str

    def can_replace(self, message: Message) -> bool:
        """Only the newest step is worth showing."""
        return isinstance(message, BackendProgress)


@dataclass
class BackendReady(Message):
    """The model can answer."""

    backend: Backend


@dataclass
class BackendFailed(Message):
    """The model cannot be used; `text` says why and what to do."""

    backend: Backend
    text: str


@dataclass
class ReplyStarted(Message):
    """The model is reading the prompt."""

    run: int
    prompt_tokens: int
    note: str | None


@dataclass
class ReplyText(Message):
    """More of the reply: the text of all tokens since the last such message, all of it thinking or none of it."""

    run: int
    text: str
    tokens: tuple[Token, ...] = ()
    thinking: bool = False


@dataclass
class ReplyStats(Message):
    """Speeds and context of the reply being written."""

    run: int
    stats: Stats


@dataclass
class ReplyEnded(Message):
    """The reply is over; `error` is set when something went wrong, `reason` otherwise."""

    run: int
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
    sampling: SamplingSettings
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


@dataclass
class ModelUsed(Message):
    """A model file was loaded; the application remembers it for the picker."""

    path: Path


@dataclass
class LensScored(Message):
    """The probabilities of a finished reply were computed, or could not be."""

    turn: object
    tokens: tuple[Token, ...]
    error: str | None = None


@dataclass
class Traced(Message):
    """The inside of the model at its last token was computed, or could not be."""

    backend: Backend
    inside: Inside | None
    error: str | None = None

    def can_replace(self, message: Message) -> bool:
        """Only the newest is worth showing."""
        return isinstance(message, Traced)
