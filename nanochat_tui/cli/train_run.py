"""`nanochat-train train` and `init-config`: options come from the configuration's own schema."""

from __future__ import annotations

import inspect
import json
import os
import sys
import types
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import typer

from nanochat_tui.errors import UserError
from nanochat_tui.runs.config import TrainConfig, parse_config
from nanochat_tui.runs.directory import RunDirectory, read_json


def _option_type(annotation: Any) -> Any:
    """What typer should parse for a field: optional fields by their inner type, choices of numbers as text."""
    if get_origin(annotation) in (Union, types.UnionType):
        inner = [a for a in get_args(annotation) if a is not type(None)]
        return _option_type(inner[0])
    if get_origin(annotation) is Literal:
        return type(get_args(annotation)[0])
    return annotation


def _config_parameters() -> list[inspect.Parameter]:
    return [
        inspect.Parameter(
            name,
            inspect.Parameter.KEYWORD_ONLY,
            default=None,
            annotation=Annotated[
                _option_type(field.annotation) | None,
                typer.Option(help=f"{field.description or ''} [default: {field.default}]", show_default=False),
            ],
        )
        for name, field in TrainConfig.model_fields.items()
    ]


def train(
    *,
    checkpoint_dir: Path | None = None,
    resume: Path | None = None,
    config_file: Path | None = None,
    **options: Any,
) -> None:
    """Train a model. The run directory (--checkpoint-dir) holds its configuration, metrics and checkpoints."""
    values = _merge(config_file, resume, options)
    config = parse_config(values)
    if config.dataset == "tokens" and config.data_path and not config.data_path.exists():
        raise UserError(f"there is no data at {config.data_path}; make it with: nanochat-train prepare-data")
    if config.dataset == "tokens" and config.data_path and config.data_path.is_file() and config.token_dtype is None:
        typer.echo(f"note: reading {config.data_path} as u32 tokens; say --token-dtype u16 if it is not", err=True)
    directory = checkpoint_dir or (resume.parent if resume else None)
    if directory is None:
        raise UserError("say where the run goes with --checkpoint-dir")
    if resume is None and RunDirectory(directory).checkpoints():
        raise UserError(
            f"{directory} holds a run already; continue it with --resume {directory}/step_N or name another"
        )
    _require_torch()
    from nanochat_tui.train.environment import allocator_environment
    from nanochat_tui.train.trainer import Trainer

    environment = allocator_environment()
    if environment is not None:
        # the allocator reads its settings only when a process starts
        os.execve(sys.executable, [sys.executable, "-m", "nanochat_tui.cli.train_entry", *sys.argv[1:]], environment)  # noqa: S606
    Trainer(config, directory, resume=resume, tokenizer=_tokenizer(config)).run()


train.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
    [
        *(p for p in inspect.signature(train).parameters.values() if p.kind is not inspect.Parameter.VAR_KEYWORD),
        *_config_parameters(),
    ]
)
train.__annotations__ |= {p.name: p.annotation for p in _config_parameters()}
train.__annotations__ |= {
    "checkpoint_dir": Annotated[Path | None, typer.Option(help="Run directory to write.", show_default=False)],
    "resume": Annotated[Path | None, typer.Option(help="Checkpoint folder to continue from.", show_default=False)],
    "config_file": Annotated[Path | None, typer.Option(help="JSON made by init-config.", show_default=False)],
}


def _merge(config_file: Path | None, resume: Path | None, options: dict[str, Any]) -> dict[str, Any]:
    """Configuration file or the resumed run's own configuration, overridden by what the command line says."""
    values: dict[str, Any] = {}
    if resume is not None:
        if not (resume / "state.json").exists():
            raise UserError(f"{resume} is not a checkpoint (it has no state.json)")
        values |= {k: v for k, v in read_json(resume / "state.json").get("config", {}).items() if v is not None}
    if config_file is not None:
        values |= read_json(config_file)
    given = {k: v for k, v in options.items() if v is not None}
    if resume is not None and {"steps", "tokens", "minutes", "epochs"} & given.keys():
        # a new length replaces the old one instead of the shorter of both ending the run
        for key in ("steps", "tokens", "minutes", "epochs"):
            values.pop(key, None)
    if "n_streams" in given:
        given["n_streams"] = int(given["n_streams"])
    return values | given


def _require_torch() -> None:
    try:
        import torch  # noqa: F401
    except ImportError:
        raise UserError("training needs PyTorch; install it with: pip install 'nanochat-tui[train]'") from None


def _tokenizer(config: TrainConfig) -> Path | None:
    if config.dataset == "synthetic":
        return None
    if config.tokenizer is not None:
        if not config.tokenizer.is_file():
            raise UserError(f"there is no tokenizer at {config.tokenizer}")
        return config.tokenizer
    from nanochat_tui.model.shipped import shipped_tokenizer

    return shipped_tokenizer()


def init_config(
    path: Annotated[Path, typer.Argument(help="JSON file to write.")] = Path("train.json"),
) -> None:
    """Write a configuration file with every option at its default, to edit and give to train --config-file."""
    if path.exists():
        raise UserError(f"{path} exists already; name another file")
    defaults = {name: field.default for name, field in TrainConfig.model_fields.items()}
    path.write_text(json.dumps(defaults, indent=2) + "\n", encoding="utf-8")
    typer.echo(f"wrote {path}", err=True)
