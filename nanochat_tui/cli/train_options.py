"""The trainer's settings as options of `nanochat-train train` and `plan`, made from the configuration's own schema."""

from __future__ import annotations

import inspect
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import typer
from pydantic import BaseModel
from rich.markup import escape

from nanochat_tui.errors import UserError
from nanochat_tui.formats.checksums import STATE_FILE
from nanochat_tui.model.config import PRESETS as SHAPES
from nanochat_tui.model.config import ModelConfig
from nanochat_tui.runs.config import FIELD_GROUPS, SHAPE_FIELDS, TrainConfig, parse_config
from nanochat_tui.runs.config_file import combined, find_settings
from nanochat_tui.runs.directory import read_json
from nanochat_tui.runs.presets import PRESETS
from nanochat_tui.text import display_safe

NAMES = "; ".join(f"{preset.name}, {preset.purpose}" for preset in PRESETS.values())
CONFIG_OPTION = Annotated[
    str | None,
    typer.Option(
        metavar="NAME|FILE",
        help=escape(
            f"Where the settings begin: a TOML file of init-config, a run directory, or a name [default: d20]. {NAMES}."
        ),
        show_default=False,
        rich_help_panel="Model",
    ),
]


def _option_type(name: str, annotation: Any, extra: Any) -> Any:
    """What typer should parse for a field: optional fields by their inner type, all choices as words."""
    if get_origin(annotation) in (Union, types.UnionType):
        inner = [a for a in get_args(annotation) if a is not type(None)]
        return _option_type(name, inner[0], extra)
    choices = get_args(annotation) if get_origin(annotation) is Literal else ()
    if isinstance(extra, dict) and isinstance(extra.get("enum"), list):
        choices = tuple(extra["enum"])
    return Literal[tuple(map(str, choices))] if choices else annotation


def config_parameters(
    model: type[BaseModel] = TrainConfig, groups: Mapping[str, str] = FIELD_GROUPS
) -> list[inspect.Parameter]:
    """One optional parameter for every setting but `config`, which names where to begin."""
    group, found = "General", []
    for name, field in model.model_fields.items():
        group = groups.get(name, group)
        if name == "config":
            continue
        default = field.default
        shown = ("yes" if default else "no") if isinstance(default, bool) else str(default)
        # not typer's own default: the option's is "not given", so that a file or a resumed run may decide
        text = f"{field.description} [default: {shown}]" if default is not None else str(field.description)
        option = typer.Option(help=escape(text.replace("\n", "\\n")), show_default=False, rich_help_panel=group)
        kind = _option_type(name, field.annotation, field.json_schema_extra)
        found.append(
            inspect.Parameter(
                name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[kind | None, option]
            )
        )
    return found


def shape_settings(path: Path, shape: ModelConfig) -> dict[str, object]:
    """The settings that give a model this shape, which is that of `path`. Raises UserError if none do."""
    changes = {
        name: getattr(shape, name) for name in SHAPE_FIELDS if getattr(shape, name) or name != "n_active_experts"
    }
    for name, preset in SHAPES.items():
        same = preset.with_(**changes, indentation=shape.indentation)
        if same == shape:
            return {"config": name, **changes}
    raise UserError(
        f"{display_safe(str(path))} has a shape that no configuration can give (its group size, RoPE or norm are "
        "others); it cannot be trained here"
    )


def merged_config(
    config: str | None, options: dict[str, Any], checkpoint: Path | None = None, **defaults: object
) -> TrainConfig:
    """The resumed run's own settings, those of `config`, and over all the given options; `defaults` below them all.

    Raises UserError.
    """
    values: dict[str, Any] = dict(defaults)
    origins: dict[str, str] = {}
    if checkpoint is not None:
        saved = read_json(checkpoint / STATE_FILE).get("config", {})
        values |= {k: v for k, v in saved.items() if v is not None and k in TrainConfig.model_fields}
    if config is not None:
        found = find_settings(config)
        values, origins = combined(values, found.values), found.origins
    given = {k: v for k, v in options.items() if v is not None}
    start = given.get("init_from", values.get("init_from"))
    if start is not None and checkpoint is None:
        from nanochat_tui.export.start import starting_shape

        values |= shape_settings(Path(start).expanduser(), starting_shape(Path(start).expanduser()))
    if "n_streams" in given:
        given["n_streams"] = int(given["n_streams"])
    return parse_config(combined(values, given), {k: v for k, v in origins.items() if k not in given})
