"""The trainer's configuration as a form: groups, kinds, defaults and descriptions, all read from the schema itself.

Nothing here names a field, so whatever the configuration gains appears in the form.
"""

from __future__ import annotations

import re
import types
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

from pydantic import ValidationError
from pydantic.fields import FieldInfo

from nanochat_tui.errors import UserError
from nanochat_tui.files import atomic_write_text
from nanochat_tui.paths import expanded
from nanochat_tui.runs.config import FIELD_GROUPS, TrainConfig, problem_of
from nanochat_tui.runs.config_file import on_preset, read_settings, settings_text
from nanochat_tui.text import display_safe

_ESCAPE = re.compile(r"\\(.)")
Kind = Literal["text", "whole", "number", "switch", "choice", "path"]


@dataclass(frozen=True, slots=True)
class FormField:
    """One line of the form."""

    name: str
    group: str
    kind: Kind
    default: str
    """What the default looks like in the form; '' when there is none."""
    description: str
    choices: tuple[str, ...] = ()
    optional: bool = False
    """Whether an empty field is allowed and means: decided elsewhere."""
    bounds: str = ""
    """What numbers are allowed, such as "≥ 1"."""


def form_fields(model: type[TrainConfig] = TrainConfig) -> list[FormField]:
    """Describe every field of the configuration, in its order."""
    group, fields = "General", []
    for name, info in model.model_fields.items():
        group = FIELD_GROUPS.get(name, group)
        fields.append(_field(name, group, info))
    return fields


def _field(name: str, group: str, info: FieldInfo) -> FormField:
    annotation, optional = _inner(info.annotation)
    kind, choices = _kind(annotation)
    extra = info.json_schema_extra
    if isinstance(extra, dict) and isinstance(extra.get("enum"), list):
        kind, choices = "choice", tuple(str(value) for value in extra["enum"])  # type: ignore[union-attr]
    return FormField(
        name,
        group,
        kind,
        to_text(info.default),
        info.description or name.replace("_", " "),
        choices,
        optional,
        _bounds(info),
    )


def _inner(annotation: Any) -> tuple[Any, bool]:
    if get_origin(annotation) in (Union, types.UnionType):
        arms = get_args(annotation)
        inner = [a for a in arms if a is not type(None)]
        return inner[0], len(inner) < len(arms)
    return annotation, False


def _kind(annotation: Any) -> tuple[Kind, tuple[str, ...]]:
    if get_origin(annotation) is Literal:
        return "choice", tuple(str(value) for value in get_args(annotation))
    kinds: dict[Any, Kind] = {bool: "switch", int: "whole", float: "number", Path: "path"}
    return kinds.get(annotation, "text"), ()


def _bounds(info: FieldInfo) -> str:
    signs = (("ge", "≥"), ("gt", ">"), ("le", "≤"), ("lt", "<"))
    found = [
        f"{sign} {getattr(constraint, attribute):g}"
        for constraint in info.metadata
        for attribute, sign in signs
        if isinstance(getattr(constraint, attribute, None), (int, float))
    ]
    return ", ".join(found)


def to_text(value: object) -> str:
    """How the form shows a value; line ends and tabs as escapes, for a field is one line."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, str):
        return value.replace("\\", "\\\\").replace("\n", "\\n").replace("\t", "\\t")
    return str(value)


def from_text(field: FormField, text: str) -> object:
    """The value a field's text spells; the schema judges it. Raises ValueError for what is no number but must be."""
    if field.kind == "text":
        return _ESCAPE.sub(lambda m: {"n": "\n", "t": "\t"}.get(m[1], m[1]), text)
    text = text.strip()
    if field.kind == "switch":
        return text in ("yes", "true", "True", "1")
    if field.kind == "path":
        return expanded(Path(text))
    if field.kind in ("whole", "number"):
        plain = text.replace("_", "").replace(",", "")
        try:
            return int(plain) if field.kind == "whole" else float(plain)
        except ValueError:
            raise ValueError(f"needs a {'whole number' if field.kind == 'whole' else 'number'}") from None
    if field.choices and all(choice.isdigit() for choice in field.choices) and text.isdigit():
        return int(text)
    return text


@dataclass(frozen=True, slots=True)
class Checked:
    """A form's texts judged: the configuration, or what is wrong with which field."""

    config: TrainConfig | None
    problems: dict[str, str]
    """By field; '' holds what concerns several."""


def check(texts: Mapping[str, str]) -> Checked:
    """Judge all texts of a form at once; an empty field means its default."""
    values: dict[str, object] = {}
    problems: dict[str, str] = {}
    for field in form_fields():
        text = texts.get(field.name, field.default)
        if not text.strip():
            if not field.optional and field.default and field.kind != "text":
                problems[field.name] = f"must not be empty (default {field.default})"
            continue
        try:
            values[field.name] = from_text(field, text)
        except ValueError as error:
            problems[field.name] = str(error)
    try:
        config = TrainConfig.model_validate(values)
    except ValidationError as error:
        for one in error.errors():
            name, message = problem_of(one)
            problems.setdefault(name, _plain(message))
        return Checked(None, problems)
    return Checked(None if problems else config, problems)


def _plain(message: str) -> str:
    return message.replace("Input should be", "should be").replace("String should match", "should match")


def texts_of(values: Mapping[str, object]) -> dict[str, str]:
    """What the form shows for given values; fields that are not given show their default."""
    shown = {field.name: field.default for field in form_fields()}
    for name, value in values.items():
        if name in shown:
            shown[name] = to_text(value)
    return shown


def load_preset(path: Path) -> dict[str, str]:
    """Texts of the form from a file of `init-config`, or from a run's config.json. Raises UserError."""
    found = on_preset(read_settings(path))
    unknown = [key for key in found.values if key not in TrainConfig.model_fields]
    if unknown:
        raise UserError(
            f"{found.place(unknown[0])} is a setting this trainer does not know: {display_safe(unknown[0])}"
        )
    return texts_of(found.values)


def save_settings(path: Path, config: TrainConfig) -> None:
    """Write settings as `train --config` and `load_preset` read them. Raises UserError or OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write_text(path, settings_text(config.model_dump(mode="json"), "Settings of a run of nanochat-train."))
