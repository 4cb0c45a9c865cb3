"""`nanochat-train track`: a run's numbers in an experiment tracker."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from nanochat_tui.runs.tracking import follow, open_tracker


def track(
    run: Annotated[Path, typer.Argument(help="Run directory, of a live or an ended run.")],
    to: Annotated[Literal["tensorboard", "wandb", "trackio"], typer.Option(help="Tracker to send to.")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder of TensorBoard's files; RUN/tensorboard by default.")
    ] = None,
    project: Annotated[str, typer.Option(help="Project's name at wandb or trackio.")] = "nanochat-tui",
    once: Annotated[bool, typer.Option("--once", help="Send what is there and end, also of a live run.")] = False,
) -> None:
    """Follow a run's metrics.jsonl and send its numbers to a tracker, until the run ends."""
    sent = follow(run, open_tracker(to, run, output, project), once=once)
    typer.echo(f"sent {sent:,} rows to {to}", err=True)
