"""Configurations as files: TOML that `init-config` writes, a run's config.json, and the names of presets.

A file is a flat list of settings, each called as the option is, with underscores. `config` names the shape, or any
named configuration, whose settings are then taken for those the file does not have.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from nanochat_tui.errors import UserError, plain_reason
from nanochat_tui.paths import expanded
from nanochat_tui.runs.config import FIELD_GROUPS, LENGTHS, TrainConfig
from nanochat_tui.runs.directory import read_json
from nanochat_tui.runs.presets import PRESETS
from nanochat_tui.text import display_safe

LONGEST_VALUE = 100
"""Lines of one value up to which the lines of what follows are known; settings are numbers, words and paths."""
LARGEST_FILE = 1 << 20
"""Bytes of a configuration file; a larger one is not one."""


@dataclass(frozen=True, slots=True)
class Settings:
    """Settings that were read, and where."""

    values: dict[str, Any]
    path: Path | None = None
    lines: dict[str, int] = field(default_factory=dict)
    """Line of each setting, counted from 1, where the file has lines."""
    recorded: bool = False
    """Whether a run wrote them, all of them."""

    def place(self, name: str) -> str:
        """Where a setting stands, in words; "" when in no file."""
        if self.path is None:
            return ""
        shown = display_safe(str(self.path))
        return f"{shown}, line {self.lines[name]}" if name in self.lines else shown

    @property
    def origins(self) -> dict[str, str]:
        """The place of every setting of the file, as `parse_config` takes it."""
        return {} if self.path is None else {name: self.place(name) for name in self.lines or self.values}


def find_settings(name: str) -> Settings:
    """Settings of a named configuration or of a file. Raises UserError when there is neither."""
    if name in PRESETS:
        return Settings(dict(PRESETS[name].values))
    path = expanded(Path(name))
    if not path.exists():
        raise UserError(
            f"there is no configuration {display_safe(name)}: neither a file nor one of {', '.join(PRESETS)}"
        )
    return on_preset(read_settings(path))


def on_preset(found: Settings) -> Settings:
    """Settings of a file over those of the named configuration it begins from.

    Those a run recorded are whole as they are. Raises UserError for a name there is none of.
    """
    base = found.values.get("config")
    if found.recorded or not isinstance(base, str):
        return found
    if base not in PRESETS:
        raise UserError(
            f"{found.place('config')}: there is no configuration {display_safe(base)}; name one of {', '.join(PRESETS)}"
        )
    own = {name: value for name, value in found.values.items() if name != "config"}
    return Settings(combined(PRESETS[base].values, own), found.path, found.lines)


def combined(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Settings `base` with those of `over` in their place; a length in `over` replaces every length of `base`,
    instead of the shorter of both ending the run.
    """
    kept = {k: v for k, v in base.items() if k not in LENGTHS} if set(LENGTHS) & over.keys() else dict(base)
    return {**kept, **over}


def read_settings(path: Path) -> Settings:
    """Read a TOML file, a JSON file or a run directory's config.json; nothing is judged. Raises UserError."""
    if path.is_dir():
        path = path / "config.json"
    if path.suffix == ".json":
        values = read_json(path)
        inner = values.get("config")
        recorded = isinstance(inner, dict)
        values = inner if isinstance(inner, dict) else values
        return Settings({key: value for key, value in values.items() if value is not None}, path, recorded=recorded)
    shown = display_safe(str(path))
    try:
        if path.stat().st_size > LARGEST_FILE:
            raise UserError(f"{shown} is too large for a configuration; name a file made by init-config")
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot read {shown}: {plain_reason(error)}") from None
    except UnicodeDecodeError:
        raise UserError(f"{shown} is not a text file; name a file made by init-config") from None
    try:
        return Settings(tomllib.loads(text), path, _lines_of(text))
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"{shown} is not valid TOML: {display_safe(str(error))}") from None
    except RecursionError:
        raise UserError(f"{shown} is nested too deeply for a configuration") from None


def _lines_of(text: str) -> dict[str, int]:
    """Line at which each key of a valid file begins: the first one with which the file up to there has the key."""
    found: dict[str, int] = {}
    lines = text.split("\n")
    begin = 0
    for number in range(1, len(lines) + 1):
        if number - begin > LONGEST_VALUE:  # each further line would parse all of them once more
            break
        statement = "\n".join(lines[begin:number])
        try:
            keys = tomllib.loads(statement)
        except tomllib.TOMLDecodeError:
            continue  # the value continues in the next line
        for key in keys:
            found.setdefault(key, begin + 1)
        begin = number
    return found


def settings_text(values: Mapping[str, Any], title: str) -> str:
    """Return a TOML file of `values` (those of JSON) with every setting described; raises TypeError for other types.

    Settings that are not in `values` have their default; those without one are commented out.
    """
    lines = [f"# {title}", "# Use it with: nanochat-train train --config FILE. Options on the command line win."]
    for name, info in TrainConfig.model_fields.items():
        if name in FIELD_GROUPS:
            lines += ["", f"# ---- {FIELD_GROUPS[name]}"]
        value = values.get(name, info.default)
        lines += ["", f"# {info.description}"]
        if choices := _choices(name):
            lines.append(f"# One of: {', '.join(choices)}.")
        lines.append(f"# {name} =" if value is None else f"{name} = {_toml(value)}")
    return "\n".join(lines) + "\n"


def _choices(name: str) -> list[str]:
    info = TrainConfig.model_fields[name]
    if name == "config":
        return list(PRESETS)
    kinds = [info.annotation, *get_args(info.annotation)]
    return [_toml(value) for kind in kinds if get_origin(kind) is Literal for value in get_args(kind)]


def _toml(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (int, float)):
        return repr(value)
    if isinstance(value, (str, Path)):
        # a TOML basic string has JSON's escapes, but no surrogate pairs
        return json.dumps(str(value), ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(_toml, value))}]"
    raise TypeError(f"{type(value).__name__} is no value of a configuration")
