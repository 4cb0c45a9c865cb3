"""What a session is when it is kept: plain data, the same in the database, in a JSON file and in the application."""

from __future__ import annotations

import time
import uuid
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

from nanochat_tui.chat.backend import FinishReason, SamplingSettings, Stats
from nanochat_tui.errors import UserError

Order = Literal["updated", "created", "title", "turns"]
TITLE_LENGTH = 60
UNTITLED = "New session"


@dataclass(frozen=True, slots=True)
class StoredTurn:
    """One prompt and its reply, in parts: a continuation adds one."""

    prompt: str
    parts: tuple[str, ...] = ("",)
    thinking: str = ""
    reason: FinishReason | None = None
    stats: Stats | None = None

    @property
    def reply(self) -> str:
        """All parts of the reply, joined."""
        return "".join(self.parts)


@dataclass(frozen=True, slots=True)
class SessionSettings:
    """What belongs to one session: the system prompt and how tokens are chosen."""

    system: str = ""
    sampling: SamplingSettings = field(default_factory=SamplingSettings)
    max_tokens: int | None = 256


@dataclass(frozen=True, slots=True)
class SessionInfo:
    """A session without its turns. Times are seconds since the epoch; `parent` is the session it was forked from."""

    id: str
    title: str = UNTITLED
    titled: bool = False
    """Whether a person gave the title; else it follows the first prompt."""
    model: str = ""
    is_chat: bool = False
    settings: SessionSettings = field(default_factory=SessionSettings)
    draft: str = ""
    """What stood in the input, not yet sent."""
    created: float = 0.0
    updated: float = 0.0
    parent: str | None = None
    turns: int = 0


@dataclass(frozen=True, slots=True)
class StoredSession:
    """A session and all its turns, oldest first."""

    info: SessionInfo
    turns: tuple[StoredTurn, ...] = ()


@dataclass(frozen=True, slots=True)
class SearchHit:
    """A turn, or a title (`position` None), in which a search found its words. `snippet` marks them by ⟦ and ⟧."""

    session: str
    title: str
    position: int | None
    snippet: str
    updated: float


def new_session(model: str, *, is_chat: bool, settings: SessionSettings, parent: str | None = None) -> SessionInfo:
    """Return a fresh session with an id of its own."""
    now = time.time()
    return SessionInfo(
        uuid.uuid4().hex, model=model, is_chat=is_chat, settings=settings, created=now, updated=now, parent=parent
    )


def title_of(prompt: str) -> str:
    """Return a title for a session that begins with `prompt`: its first line that says something, cut."""
    line = next((text.strip() for text in prompt.splitlines() if text.strip(" \t/*#!-")), "")
    line = line.strip("/*#! ") or line
    return (line[: TITLE_LENGTH - 1] + "…" if len(line) > TITLE_LENGTH else line) or UNTITLED


def settings_to_dict(settings: SessionSettings) -> dict[str, Any]:
    """Return sampling and length as JSON; the system prompt is kept apart."""
    return {**asdict(settings.sampling), "max_tokens": settings.max_tokens}


def settings_from_dict(system: str, values: Mapping[str, Any]) -> SessionSettings:
    """Undo `settings_to_dict`. Keys that are unknown are ignored, values that make no sense give the defaults."""
    known = {key: value for key, value in values.items() if key in SamplingSettings.__dataclass_fields__}
    try:
        sampling = SamplingSettings(**known)
    except (UserError, TypeError):
        sampling = SamplingSettings()
    limit = values.get("max_tokens", 256)
    whole = isinstance(limit, int) and not isinstance(limit, bool) and limit >= 1
    return SessionSettings(system, sampling, limit if whole or limit is None else 256)


def stats_from_dict(values: Mapping[str, Any] | None) -> Stats | None:
    """Return stats as they were saved, or None if something else was."""
    if not values:
        return None
    try:
        return Stats(**{key: values[key] for key in Stats.__dataclass_fields__ if key in values})
    except TypeError:
        return None


def reason_from(text: object) -> FinishReason | None:
    """Return a finish reason as it was saved, or None."""
    return text if text in ("stop", "length", "cancelled") else None


def named(info: SessionInfo, title: str) -> SessionInfo:
    """Return `info` with a title a person gave. Raises `UserError` for an empty one."""
    clean = " ".join(title.split())
    if not clean:
        raise UserError("A session needs a name; type one, or press Esc to keep the old one.")
    return replace(info, title=clean[:200], titled=True)
