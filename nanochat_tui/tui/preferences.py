"""What a person prefers, kept as TOML in the configuration folder. The settings screen is made from this schema."""

from __future__ import annotations

import tomllib
from collections.abc import Container, MutableMapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model
from pydantic_core import ErrorDetails

from nanochat_tui.chat.store.records import SessionSettings
from nanochat_tui.errors import UserError, WriteError, reason_of
from nanochat_tui.files import atomic_write_text
from nanochat_tui.paths import config_directory, make_private
from nanochat_tui.request import REQUEST, SAMPLING, SamplingParams, Setting
from nanochat_tui.text import display_safe

FILE = "settings.toml"
NAMED = 4
"""Most faults of a file that are told."""


class Appearance(BaseModel):
    """How it looks."""

    model_config = ConfigDict(extra="forbid")
    theme: str = Field("nanochat", title="Theme", description="nanochat, nanochat-light, high-contrast, or any other")
    unfold_thinking: bool = Field(False, title="Unfold thinking", description="show what models think without asking")


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


def _like(setting: Setting, default: float | None, **words: str) -> Any:
    """Return a field with the bounds of a setting."""
    options: dict[str, Any] = {"title": setting.title, "description": setting.help, **words, **setting.bounds}
    return Field(default, **options)


if TYPE_CHECKING:
    _SamplingFields = _Section
else:
    # what may be left out, such as the seed, belongs to one session alone
    _SamplingFields = create_model(
        "_SamplingFields",
        __base__=_Section,
        **{
            name: (int if one.is_whole else float, _like(one, one.default))
            for name, one in SAMPLING.items()
            if one.everyday and not one.blank
        },
    )


class Sampling(_SamplingFields):
    """What a new session begins with: the settings of `SamplingParams` that forms offer, and these."""

    completion_penalty: float = _like(
        SAMPLING["repeat_penalty"],
        1.1,
        title="Completion penalty",
        description="repeat penalty where text is continued",
    )
    max_tokens: int = _like(
        REQUEST["max_tokens"], REQUEST["max_tokens"].default, description="length of one reply; 0: all that fit"
    )
    system: str = Field("", title="System prompt", description="what chat models are told first")

    def params(self) -> SamplingParams:
        """Return the settings of the sampler alone."""
        return SamplingParams(**self.model_dump(include=set(_SamplingFields.model_fields)))


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
        return SessionSettings(s.system, s.params(), s.max_tokens or None)


def preferences_file() -> Path:
    """Return where preferences are kept."""
    return config_directory() / FILE


def load_preferences(path: Path) -> tuple[Preferences, str | None]:
    """Return the preferences kept at `path`, and what is wrong with them if anything is. What is wrong is left at its
    default, the others hold; of a file that is no TOML nothing does.
    """
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return Preferences(), None
    except UnicodeDecodeError:
        why = "it is not text in UTF-8"
    except OSError as exc:
        why = exc.strerror or "it cannot be read"
    except RecursionError:
        why = "it is nested too deeply"
    except ValueError as exc:
        why = str(exc)
    else:
        found, wrong = _valid_part(values)
        if not wrong:
            return found, None
        named = display_safe("; ".join(wrong[:NAMED]) + (f"; {len(wrong) - NAMED} more" if len(wrong) > NAMED else ""))
        return found, f"Preferences in {display_safe(str(path))} that are not used: {named}. Fix or delete them there."
    return (
        Preferences(),
        f"The preferences in {display_safe(str(path))} are not used ({display_safe(why)}); fix or delete the file.",
    )


def _valid_part(values: dict[str, Any]) -> tuple[Preferences, list[str]]:
    """Return the preferences that `values` hold without those that are wrong, and what is wrong, in words."""
    wrong: list[str] = []
    while True:
        try:
            return Preferences.model_validate(values), wrong
        except ValidationError as exc:
            # from the end, so that places in a list stay what they are
            for error in sorted(exc.errors(), key=lambda one: [str(part) for part in one["loc"]], reverse=True):
                where = [part for part in error["loc"] if part != "[key]"]
                wrong.insert(0, _in_words(where, error))
                values = _without(values, where)


def _in_words(where: Sequence[int | str], error: ErrorDetails) -> str:
    name = ".".join(map(str, where))
    if error["type"] == "extra_forbidden":
        return f"{name} is unknown"
    return f"{name}: {error['msg'][:1].lower()}{error['msg'][1:]}"


def _without(values: Any, where: Sequence[int | str]) -> Any:
    """Return nested dictionaries and lists without what stands at `where`."""
    if isinstance(values, dict):
        rest = {key: value for key, value in values.items() if key != where[0]}
        return rest if len(where) == 1 else rest | {where[0]: _without(values[where[0]], where[1:])}
    if isinstance(values, list) and isinstance(where[0], int):
        return [*values[: where[0]], *values[where[0] + 1 :]]
    return values


def unused_appearance(preferences: Preferences, themes: Container[str]) -> list[str]:
    """Return what is wrong with a theme's name, in words."""
    theme = preferences.appearance.theme
    return [] if theme in themes else [f"there is no theme {display_safe(theme)}"]


def save_preferences(preferences: Preferences, path: Path) -> None:
    """Write what differs from the defaults to `path`; the comments and the order of a file that exists stay.
    Raises `UserError` if the system refuses.
    """
    values: dict[str, Any] = preferences.model_dump(exclude_defaults=True, exclude_none=True)
    try:
        make_private(path.parent)
        atomic_write_text(path, _changed(path, values))
    except WriteError as exc:
        raise UserError(f"The preferences cannot be kept: {exc}.") from exc
    except OSError as exc:
        raise UserError(
            f"The preferences cannot be kept in {display_safe(str(path.parent))}: {reason_of(exc)}; check the folder."
        ) from exc


def _changed(path: Path, values: dict[str, Any]) -> str:
    """Return the text of the TOML file at `path` with `values` in the place of its own."""
    import tomlkit
    from tomlkit.exceptions import TOMLKitError

    try:
        document = tomlkit.parse(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError, TOMLKitError):  # nothing that could be kept
        document = tomlkit.document()
    _change(document, values)
    return tomlkit.dumps(document)


def _change(table: MutableMapping[str, Any], values: dict[str, Any]) -> None:
    """Make a TOML table hold `values` and nothing else; what does not change stays as it is written."""
    for key in [key for key in table if key not in values]:
        if isinstance(table[key], MutableMapping):
            _change(table[key], {})  # its comments may be instructions to the reader
        else:
            del table[key]
    for key, value in values.items():
        present = table.get(key)
        if isinstance(value, dict) and isinstance(present, MutableMapping):
            _change(present, value)
        elif key not in table or present != value:
            table[key] = value


def remember_model(preferences: Preferences, path: Path, most: int = 12) -> Preferences:
    """Return preferences with `path` first among the recent models."""
    text = str(path.resolve())
    recent = [text, *(other for other in preferences.recent if other != text)][:most]
    return preferences.model_copy(update={"recent": recent})
