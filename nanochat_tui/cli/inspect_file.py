"""`nanochat-tui inspect`: what a file is, without running it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from nanochat_tui.cli.json_output import json_text
from nanochat_tui.cli.options import JsonOption, MhcOption, ModelArgument, TokenizerOption, check_file, find_model
from nanochat_tui.errors import UserError

if TYPE_CHECKING:
    from nanochat_tui.engine.generate.memory_forecast import Forecast
    from nanochat_tui.inspection import Summary


def inspect(
    model: ModelArgument = None,
    mhc: MhcOption = None,
    tokenizer: TokenizerOption = None,
    metadata: Annotated[bool, typer.Option("--metadata", help="Show every key of the file too.")] = False,
    ternary: Annotated[bool, typer.Option("--ternary", help="Count the trits of every ternary tensor too.")] = False,
    compare: Annotated[
        Path | None, typer.Option("--compare", help="Another file: say what changed from MODEL to it instead.")
    ] = None,
    json: JsonOption = False,
) -> None:
    """Say what a file is, verify its mHC records, and whether it can be run; exit code 2 if it cannot.

    --compare ends with 0 if both files hold the same and with 1 if they differ, as diff does.
    """
    path = find_model(model)
    check_file(mhc, "mHC sidecar")
    check_file(tokenizer, "tokenizer")
    if compare is not None:
        if mhc is not None or tokenizer is not None or metadata or ternary:
            raise UserError("--compare shows all that changed and takes no other options than --json.")
        _compare(path, find_model(str(compare)), json)
        return

    from nanochat_tui.inspection import inspect_file, open_whole, ternary_statistics, ternary_tensors
    from nanochat_tui.inspection.ternary_stats import sample
    from nanochat_tui.inspection.text import summary_lines, ternary_lines

    summary = inspect_file(path, mhc, tokenizer)
    memory = _memory(path, summary)
    statistics, some = None, None
    if summary.is_gguf and (ternary or not json):
        with open_whole(path) as file:
            if ternary:
                statistics = ternary_statistics(file)
            else:
                some = ternary_statistics(file, sample(file)), len(ternary_tensors(file))
    if json:
        found = summary.to_json()
        if statistics is not None:
            found["ternary"] = [part.to_json() for part in statistics]
        found["memory"] = None if memory is None else memory.to_json()
        typer.echo(json_text(found))
    else:
        lines = summary_lines(summary, metadata=metadata, trits=some, memory=_said(memory))
        if statistics is not None:
            lines += ["", *ternary_lines(statistics)]
        typer.echo("\n".join(lines))
    if summary.problem is not None:
        raise UserError(summary.problem)


def _memory(path: Path, summary: Summary) -> Forecast | None:
    """Return what a file that can be run would take, with its whole context."""
    from nanochat_tui.engine.generate.memory_forecast import forecast
    from nanochat_tui.model.shards import open_model

    if summary.shape is None or not summary.runs:
        return None
    with open_model(path) as file:
        return forecast(file, summary.shape)


def _said(memory: Forecast | None) -> str | None:
    if memory is None:
        return None
    said = str(memory).removeprefix("memory: ")
    if memory.fits:
        return said
    if memory.largest_context < 1:
        return f"{said}: it does not fit"
    return f"{said}: the largest context that fits is {memory.largest_context} tokens"


def _compare(before: Path, after: Path, json: bool) -> None:
    from nanochat_tui.inspection import compare, open_whole
    from nanochat_tui.inspection.text import comparison_lines

    with open_whole(before) as old, open_whole(after) as new:
        found = compare(old, new)
    typer.echo(json_text(found.to_json()) if json else "\n".join(comparison_lines(found)))
    if not found.same:
        raise typer.Exit(1)
