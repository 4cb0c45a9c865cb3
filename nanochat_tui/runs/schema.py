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
from nanochat_tui.runs.config import FIELD_GROUPS, TrainConfig
from nanochat_tui.runs.directory import read_json, write_json

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
        return Path(text).expanduser()
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
            message = one["msg"].removeprefix("Value error, ")
            name = str(one["loc"][0]) if one["loc"] else _named_in(message)
            problems.setdefault(name, _plain(message))
        return Checked(None, problems)
    return Checked(None if problems else config, problems)


def _named_in(message: str) -> str:
    """The field a rule over several fields speaks of first, so that its message stands beside that field."""
    first = message.split(" ", 1)[0]
    return first if first in TrainConfig.model_fields else ""


def _plain(message: str) -> str:
    return message.replace("Input should be", "should be").replace("String should match", "should match")


def texts_of(values: Mapping[str, object]) -> dict[str, str]:
    """What the form shows for given values; fields that are not given show their default."""
    shown = {field.name: field.default for field in form_fields()}
    for name, value in values.items():
        if name in shown:
            shown[name] = to_text(value)
    return shown


PRESETS: dict[str, tuple[str, dict[str, object]]] = {
    "try-out": (
        "tiny model, made-up data, 200 steps: a minute on any machine",
        {
            "config": "tiny",
            "vocab_size": 256,
            "dataset": "synthetic",
            "seq_len": 64,
            "batch_size": 8,
            "steps": 200,
            "compile": False,
            "eval_interval": 50,
            "checkpoint_interval": 50,
            "warmup_steps": 20,
        },
    ),
    "d20 on a CPU": (
        "as the shipped model was trained: short sequences first, estimated softmax",
        {
            "config": "d20",
            "batch_size": 8,
            "short_seq_len": 256,
            "short_fraction": 0.75,
            "ns_steps": 4,
            "head_frequent": 6144,
            "minutes": 90.0,
            "eval_tokens": 49152,
            "checkpoint_interval": 250,
        },
    ),
    "d20 on a GPU": (
        "one pass over the data, large batches, exact softmax",
        {"config": "d20", "device": "cuda", "batch_size": 64, "epochs": 1.0, "warmup_steps": 200},
    ),
}
"""Named settings to begin from: what each is for, and the fields it sets."""


def load_preset(path: Path) -> dict[str, str]:
    """Texts of the form from a JSON file of `init-config`, or from a run's config.json. Raises UserError."""
    values = read_json(path / "config.json" if path.is_dir() else path)
    inner = values.get("config")
    if isinstance(inner, dict):
        values = inner
    unknown = [key for key in values if key not in TrainConfig.model_fields]
    if unknown:
        raise UserError(f"{path} holds settings this trainer does not know: {', '.join(map(str, unknown[:5]))}")
    return texts_of(values)


def save_settings(path: Path, config: TrainConfig) -> None:
    """Write settings as `train --config-file` and `load_preset` read them. Raises UserError or OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, config.model_dump(mode="json"))
