"""What a session is when it is kept: plain data, the same in the database, in a JSON file and in the application."""

from __future__ import annotations

import math
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal

from nanochat_tui.chat.backend import FinishReason, Stats
from nanochat_tui.chat.tools.records import CallRecord, calls_from
from nanochat_tui.errors import UserError
from nanochat_tui.request import SAMPLING, GenerationRequest, SamplingParams

Order = Literal["updated", "created", "title", "turns"]
TITLE_LENGTH = 60
UNTITLED = "New session"


@dataclass(frozen=True, slots=True)
class StoredTurn:
    """One prompt and its reply, in parts: a continuation adds one.

    What stood in its place before, written again or edited, are its `versions`, oldest first, which have none
    themselves; `place` is where this one stands among all of them.
    """

    prompt: str
    parts: tuple[str, ...] = ("",)
    thinking: str = ""
    reason: FinishReason | None = None
    stats: Stats | None = None
    versions: tuple[StoredTurn, ...] = ()
    place: int = 0
    calls: tuple[CallRecord, ...] = ()
    """Calls of tools, each of which says where in the reply it stands."""

    @property
    def reply(self) -> str:
        """All parts of the reply, joined."""
        return "".join(self.parts)


@dataclass(frozen=True, slots=True)
class SessionSettings:
    """What belongs to one session: the system prompt and how tokens are chosen."""

    system: str = ""
    sampling: SamplingParams = field(default_factory=SamplingParams)
    max_tokens: int | None = GenerationRequest().max_tokens


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
    """A session and all its turns, oldest first; and those that were deleted, in that order, each with its number."""

    info: SessionInfo
    turns: tuple[StoredTurn, ...] = ()
    deleted: tuple[tuple[int, StoredTurn], ...] = ()


@dataclass(frozen=True, slots=True)
class SearchHit:
    """A turn, or a title (`position` None), in which a search found its words. `snippet` marks them by ⟦ and ⟧;
    `earlier` says that it is a version of the turn that is not shown.
    """

    session: str
    title: str
    position: int | None
    snippet: str
    updated: float
    earlier: bool = False


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
    sampling = settings.sampling
    values = {name: getattr(sampling, name) for name in SAMPLING}
    told = {name: value for name, value in values.items() if SAMPLING[name].everyday or value != SAMPLING[name].default}
    return {**told, "max_tokens": settings.max_tokens}


def settings_from_dict(system: str, values: Mapping[str, Any]) -> SessionSettings:
    """Undo `settings_to_dict`. Keys that are unknown are ignored, values that make no sense give the defaults."""
    try:
        sampling = SamplingParams(**{key: value for key, value in values.items() if key in SAMPLING})
    except UserError:
        sampling = SamplingParams()
    usual = SessionSettings().max_tokens
    limit = values.get("max_tokens", usual)
    whole = isinstance(limit, int) and not isinstance(limit, bool) and limit >= 1
    return SessionSettings(system, sampling, limit if whole or limit is None else usual)


def stats_from_dict(values: Mapping[str, Any] | None) -> Stats | None:
    """Return stats as they were saved, or None if something else was."""
    if not values:
        return None
    kinds = {one.name: str(one.type) for one in fields(Stats)}
    known = {key: value for key, value in values.items() if key in kinds}
    if not all(_is_a(kinds[key], value) for key, value in known.items()):
        return None
    try:
        return Stats(**known)
    except TypeError:
        return None


def _is_a(kind: str, value: object) -> bool:
    """Whether a value is what an annotation such as "float | None" says, and can be shown: finite, not below zero."""
    if value is None:
        return "None" in kind
    numbers = (int, float) if "float" in kind else (int,)
    return isinstance(value, numbers) and math.isfinite(value) and value >= 0


def turn_from_dict(data: Mapping[str, Any]) -> StoredTurn:
    """Undo `dataclasses.asdict` of a turn; what is missing or makes no sense is left out."""
    found = _version_from_dict(data)
    versions = data.get("versions")
    others = tuple(_version_from_dict(v) for v in versions if isinstance(v, dict)) if isinstance(versions, list) else ()
    return with_versions(found, others, data.get("place"))


def with_versions(turn: StoredTurn, others: tuple[StoredTurn, ...], place: object) -> StoredTurn:
    """Return a turn with its other versions, standing at `place` among them; behind them if that makes no sense."""
    at = place if isinstance(place, int) and 0 <= place <= len(others) else len(others)
    return replace(turn, versions=others, place=int(at))


def _version_from_dict(data: Mapping[str, Any]) -> StoredTurn:
    parts = data.get("parts")
    stats = data.get("stats")
    return StoredTurn(
        prompt=str(data.get("prompt") or ""),
        parts=tuple(map(str, parts)) if isinstance(parts, list) and parts else ("",),
        thinking=str(data.get("thinking") or ""),
        reason=reason_from(data.get("reason")),
        stats=stats_from_dict(stats if isinstance(stats, dict) else None),
        calls=calls_from(data.get("calls")),
    )


def reason_from(text: object) -> FinishReason | None:
    """Return a finish reason as it was saved, or None."""
    return text if text in ("stop", "length", "cancelled") else None


def named(info: SessionInfo, title: str) -> SessionInfo:
    """Return `info` with a title a person gave. Raises `UserError` for an empty one."""
    clean = " ".join(title.split())
    if not clean:
        raise UserError("A session needs a name; type one, or press Esc to keep the old one.")
    return replace(info, title=clean[:200], titled=True)
