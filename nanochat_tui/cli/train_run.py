"""`nanochat-train train`: options come from the configuration's own schema."""

from __future__ import annotations

import inspect
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from nanochat_tui.cli.train_options import CONFIG_OPTION, config_parameters, merged_config
from nanochat_tui.cli.train_plan import resolve_resume, show_plan
from nanochat_tui.errors import UserError
from nanochat_tui.formats.checksums import STATE_FILE
from nanochat_tui.runs.config import TrainConfig
from nanochat_tui.runs.directory import RunDirectory, read_json
from nanochat_tui.runs.ending import record_failure
from nanochat_tui.text import display_safe


def train(
    *,
    checkpoint_dir: Path | None = None,
    resume: str | None = None,
    force: bool = False,
    config: str | None = None,
    dry_run: bool = False,
    as_json: bool = False,
    **options: Any,
) -> None:
    """Train a model. The run directory (--checkpoint-dir) holds its configuration, metrics and checkpoints.

    Exit codes: 0 finished or stopped on request, 1 failed (diverged, disk full, no memory), 2 bad input.
    """
    directory = checkpoint_dir
    try:
        checkpoint = resolve_resume(resume, checkpoint_dir)
        if directory is None and checkpoint is not None:
            directory = checkpoint.parent
        if checkpoint is not None and directory is not None and not dry_run and is_reinforcement(checkpoint):
            from nanochat_tui.cli.train_rl import continue_run

            given = {name: value for name, value in options.items() if value is not None}
            continue_run(checkpoint, directory, config, given, force=force)
            return
        settings = merged_config(config, options, checkpoint)
        if dry_run:
            show_plan(settings, directory, checkpoint, as_json=as_json)
            return
        if directory is None:
            raise UserError("say where the run goes with --checkpoint-dir")
    except UserError as error:
        if directory is not None and os.environ.get("RANK", "0") == "0":  # of several processes one writes
            record_failure(directory, str(error))
        raise
    train_with(settings, directory, checkpoint, force=force)


def is_reinforcement(checkpoint: Path) -> bool:
    """Whether a checkpoint is of `nanochat-train rl`, whose runs are continued as such. Raises UserError."""
    return "reinforce" in read_json(checkpoint / STATE_FILE)


def train_with(config: TrainConfig, directory: Path, checkpoint: Path | None, *, force: bool = False) -> None:
    """Train with these settings; what is wrong with them stands in the run directory, too. Raises UserError."""
    try:
        _train(config, directory, checkpoint, force=force)
    except UserError as error:
        record_failure(directory, str(error))
        raise


def _train(config: TrainConfig, directory: Path, checkpoint: Path | None, *, force: bool) -> None:
    data = config.data_path
    if config.dataset == "tokens" and data is not None and not data.exists():
        raise UserError(f"there is no data at {display_safe(str(data))}; make it with: nanochat-train prepare-data")
    if config.dataset == "tokens" and data is not None and data.is_file() and config.token_dtype is None:
        typer.echo(
            f"note: reading {display_safe(str(data))} as u32 tokens; say --token-dtype u16 if it is not", err=True
        )
    if checkpoint is None and RunDirectory(directory).checkpoints():
        shown = display_safe(str(directory))
        raise UserError(f"{shown} holds a run already; continue it with --resume {shown} or name another directory")
    restart_if_needed()
    from nanochat_tui.train.trainer import Trainer

    Trainer(config, directory, resume=checkpoint, force=force).run()


def restart_if_needed() -> None:
    """Start this command again where the allocator is to keep freed memory: it reads that when a process starts.

    Raises UserError without PyTorch.
    """
    _require_torch()
    from nanochat_tui.train.environment import allocator_environment

    environment = allocator_environment()
    if environment is not None:
        os.execve(sys.executable, [sys.executable, "-m", "nanochat_tui.cli.train_entry", *sys.argv[1:]], environment)  # noqa: S606


def _option(kind: Any, text: str) -> Any:
    return Annotated[kind, typer.Option(help=text, show_default=False, rich_help_panel="Run")]


def _flag(name: str, text: str) -> Any:
    return Annotated[bool, typer.Option(name, help=text, show_default=False, rich_help_panel="Run")]


_RUN_OPTIONS: dict[str, Any] = {
    "checkpoint_dir": _option(Path | None, "Run directory to write."),
    "resume": _option(
        str | None,
        "Continue from a checkpoint folder, from the newest checkpoint of a run directory, from that of "
        "--checkpoint-dir (latest), or from it if there is one and from the beginning otherwise (auto).",
    ),
    "force": _flag("--force", "Resume an older checkpoint; later ones of the directory are set aside."),
    "config": CONFIG_OPTION,
    "dry_run": _flag("--dry-run", "Only say what the run would be: checks, memory, time; code 2 if it cannot start."),
    "as_json": _flag("--json", "Print the dry run as JSON."),
}
train.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
    [
        *(
            p.replace(annotation=_RUN_OPTIONS[p.name])
            for p in inspect.signature(train).parameters.values()
            if p.kind is not inspect.Parameter.VAR_KEYWORD
        ),
        *config_parameters(),
    ]
)
train.__annotations__ |= {p.name: p.annotation for p in config_parameters()} | _RUN_OPTIONS


def _require_torch() -> None:
    try:
        import torch  # noqa: F401
    except ImportError:
        raise UserError("training needs PyTorch; install it with: pip install 'nanochat-tui[train]'") from None
