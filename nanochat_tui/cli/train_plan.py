"""Before a run: which checkpoint it continues, and what `--dry-run` says of it."""

from __future__ import annotations

import contextlib
from dataclasses import asdict
from pathlib import Path

import typer

from nanochat_tui.cli.json_output import json_text
from nanochat_tui.errors import UserError
from nanochat_tui.formats.checksums import STATE_FILE, verify_sealed
from nanochat_tui.paths import expanded
from nanochat_tui.runs.config import TrainConfig
from nanochat_tui.runs.dataset_check import check_dataset
from nanochat_tui.runs.directory import RunDirectory, read_json
from nanochat_tui.runs.discovery import find_runs
from nanochat_tui.runs.estimate import Estimate, estimate, measured_speeds
from nanochat_tui.runs.identity import fitted
from nanochat_tui.runs.lock import wait_for_silence
from nanochat_tui.runs.preflight import Check, preflight, ready
from nanochat_tui.text import display_safe

AUTO, LATEST = "auto", "latest"


def resolve_resume(given: str | None, directory: Path | None) -> Path | None:
    """Return the checkpoint a run continues from; None for a new run.

    Parameters: a checkpoint folder, a run directory, `latest` or `auto`; the run directory to write. Where the newest
    checkpoint is to be found, one that is damaged is passed over with a note. Raises UserError when there is none.
    """
    if given is None:
        return None
    if given in (AUTO, LATEST) and not (Path(given) / STATE_FILE).exists():
        if directory is None:
            raise UserError(f"--resume {given} needs the run directory; name it with --checkpoint-dir")
        if given == AUTO:
            wait_for_silence(directory)
        found = newest_checkpoint(directory)
        if found is None and given == LATEST:
            raise UserError(f"{display_safe(str(directory))} holds no checkpoint to resume; leave --resume out")
        return found
    path = expanded(Path(given))
    if (path / STATE_FILE).exists():
        return path
    found = newest_checkpoint(path) if path.is_dir() else None
    if found is None:
        raise UserError(f"{display_safe(given)} is not a checkpoint (it has no state.json), nor a run with checkpoints")
    return found


def newest_checkpoint(directory: Path) -> Path | None:
    """The newest checkpoint of a run that is whole; None without one. Says which it is, and what was passed over."""
    for path in sorted(RunDirectory(directory).checkpoints(), key=_step, reverse=True):
        try:
            verify_sealed(path, read_json(path / STATE_FILE))
        except UserError as error:
            typer.echo(f"note: {error}", err=True)
            continue
        typer.echo(f"note: resuming {display_safe(str(path))}", err=True)
        return path
    return None


def _step(checkpoint: Path) -> tuple[int, bool]:
    step: object = None
    with contextlib.suppress(UserError):
        step = read_json(checkpoint / STATE_FILE).get("step")
    return (step if isinstance(step, int) else -1), checkpoint.name == "final"


def show_plan(config: TrainConfig, directory: Path | None, checkpoint: Path | None, *, as_json: bool) -> None:
    """Print checks and estimate of a run; exits with 2 when it could not start."""
    checks = preflight(config, directory, continues=checkpoint is not None)
    with contextlib.suppress(UserError, OSError):  # a check says it
        config = fitted(config)
    tokens = check_dataset(config).train_tokens
    near = directory.parent if directory is not None else Path("runs")
    runs = [run.path for run in find_runs(near, depth=1) if not run.is_log] if near.is_dir() else []
    outcome = estimate(config, tokens, measured_speeds(runs))
    if as_json:
        typer.echo(
            json_text(
                {
                    "ready": ready(checks),
                    "checks": [asdict(check) for check in checks],
                    "estimate": asdict(outcome),
                    "config": config.model_dump(mode="json"),
                }
            )
        )
    else:
        _print(checks, outcome, checkpoint)
    if not ready(checks):
        raise typer.Exit(2)


def _print(checks: list[Check], outcome: Estimate, checkpoint: Path | None) -> None:
    for check in checks:
        typer.echo(f"{check.state:<8} {check.name:<10} {check.text}")
    if checkpoint is not None:
        typer.echo(f"{'':<8} resumes    {display_safe(str(checkpoint))}")
    facts = [
        ("parameters", f"{outcome.parameters:,}, of them {outcome.ternary_parameters:,} ternary"),
        ("length", _length(outcome)),
        ("time", _time(outcome)),
    ]
    for name, text in facts:
        typer.echo(f"{'':<8} {name:<10} {text}")


def _length(outcome: Estimate) -> str:
    if outcome.total_steps is None:
        return f"{outcome.tokens_per_step:,} tokens a step; how many steps follows from the speed"
    return f"{outcome.total_steps:,} steps of {outcome.tokens_per_step:,} tokens, {outcome.total_tokens:,} in all"


def _time(outcome: Estimate) -> str:
    speed = f"{outcome.tokens_per_second:,.0f} tokens/s, " if outcome.tokens_per_second else ""
    if outcome.seconds is None:
        return f"unknown: {outcome.basis}"
    return f"about {outcome.seconds / 60:,.1f} minutes ({speed}{outcome.basis})"
