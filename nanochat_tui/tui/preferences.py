"""What a person prefers, kept as TOML in the configuration folder. The settings screen is made from this schema."""

from __future__ import annotations

import os
import tomllib
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from nanochat_tui.chat.backend import SamplingSettings
from nanochat_tui.chat.places import config_directory, make_private
from nanochat_tui.chat.records import SessionSettings
from nanochat_tui.errors import UserError, display_safe

FILE = "settings.toml"


class Appearance(BaseModel):
    """How it looks."""

    model_config = ConfigDict(extra="forbid")
    theme: str = Field("nanochat", title="Theme", description="nanochat, nanochat-light, high-contrast, or any other")
    unfold_thinking: bool = Field(False, title="Unfold thinking", description="show what models think without asking")


class Sampling(BaseModel):
    """What a new session begins with."""

    model_config = ConfigDict(extra="forbid")
    temperature: float = Field(0.8, ge=0, le=100, title="Temperature", description="0 is greedy; higher is wilder")
    top_k: int = Field(40, ge=0, title="Top-k", description="likeliest tokens kept; 0: all")
    top_p: float = Field(0.95, gt=0, le=1, title="Top-p", description="probability kept")
    min_p: float = Field(0.0, ge=0, le=1, title="Min-p", description="least share of the likeliest")
    repeat_penalty: float = Field(1.0, gt=0, le=100, title="Repeat penalty", description="1 is none")
    completion_penalty: float = Field(
        1.1, gt=0, le=100, title="Completion penalty", description="repeat penalty where text is continued"
    )
    max_tokens: int = Field(256, ge=0, title="Max tokens", description="length of one reply; 0: all that fit")
    system: str = Field("", title="System prompt", description="what chat models are told first")


class Chat(BaseModel):
    """How the chat behaves."""

    model_config = ConfigDict(extra="forbid")
    resume: bool = Field(True, title="Resume", description="begin with the last session of the model")
    alternatives: int = Field(8, ge=1, le=20, title="Alternatives", description="shown by the token lens")
    order: Literal["updated", "created", "title", "turns"] = Field("updated", title="Order of sessions")
    model_folder: str = Field("", title="Model folder", description="where the picker looks for GGUF files")


class Remote(BaseModel):
    """How servers are spoken to."""

    model_config = ConfigDict(extra="forbid")
    timeout: float = Field(120.0, gt=0, le=3600, title="Timeout", description="seconds of silence before giving up")
    connect_timeout: float = Field(10.0, gt=0, le=600, title="Connect timeout", description="seconds")


class Preferences(BaseModel):
    """Everything a person may prefer. `keys` maps the names of key bindings to keys, `recent` is kept by the picker."""

    model_config = ConfigDict(extra="forbid")
    appearance: Appearance = Field(default_factory=Appearance, title="Appearance")
    sampling: Sampling = Field(default_factory=Sampling, title="New sessions")
    chat: Chat = Field(default_factory=Chat, title="Chat")
    remote: Remote = Field(default_factory=Remote, title="Servers")
    keys: dict[str, str] = Field(default_factory=dict, title="Keys")
    recent: list[str] = Field(default_factory=list, title="Recent models")

    def session_settings(self) -> SessionSettings:
        """Return what a new session begins with."""
        s = self.sampling
        chosen = SamplingSettings(s.temperature, s.top_k, s.top_p, s.min_p, s.repeat_penalty)
        return SessionSettings(s.system, chosen, s.max_tokens or None)


def preferences_file() -> Path:
    """Return where preferences are kept."""
    return config_directory() / FILE


def load_preferences(path: Path) -> tuple[Preferences, str | None]:
    """Return the preferences kept at `path`, and what is wrong with them if anything is; then they are the defaults."""
    try:
        return Preferences.model_validate(tomllib.loads(path.read_text(encoding="utf-8"))), None
    except FileNotFoundError:
        return Preferences(), None
    except ValidationError as exc:
        first = exc.errors()[0]
        where = ".".join(map(str, first["loc"]))
        why = f"{where}: {first['msg']}"
    except (OSError, ValueError) as exc:
        why = str(exc)
    return (
        Preferences(),
        f"The preferences in {display_safe(str(path))} are not used ({display_safe(why)}); mend the file.",
    )


def save_preferences(preferences: Preferences, path: Path) -> None:
    """Write what differs from the defaults to `path`. Raises `UserError` if the system refuses."""
    import tomli_w

    values: dict[str, Any] = preferences.model_dump(exclude_defaults=True, exclude_none=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        make_private(path.parent)
        temporary.write_text(tomli_w.dumps(values), encoding="utf-8")
        temporary.replace(path)
    except OSError as exc:
        raise UserError(f"The preferences cannot be kept in {display_safe(str(path))}: {exc.strerror or exc}.") from exc


def remember_model(preferences: Preferences, path: Path, most: int = 12) -> Preferences:
    """Return preferences with `path` first among the recent models."""
    text = str(path.resolve())
    recent = [text, *(other for other in preferences.recent if other != text)][:most]
    return preferences.model_copy(update={"recent": recent})
