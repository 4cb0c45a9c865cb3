"""`nanochat-tui inspect`: what a file is, without running it."""

from __future__ import annotations

import json as json_module
from typing import Annotated

import typer

from nanochat_tui.cli.options import JsonOption, MhcOption, ModelArgument, TokenizerOption, check_file, find_model
from nanochat_tui.errors import UserError


def inspect(
    model: ModelArgument = None,
    mhc: MhcOption = None,
    tokenizer: TokenizerOption = None,
    metadata: Annotated[bool, typer.Option("--metadata", help="Show every key of the file too.")] = False,
    ternary: Annotated[bool, typer.Option("--ternary", help="Count the trits of every ternary tensor too.")] = False,
    json: JsonOption = False,
) -> None:
    """Say what a file is, verify its mHC records, and whether it can be run; exit code 2 if something is wrong."""
    from nanochat_tui.formats.gguf import read_gguf
    from nanochat_tui.inspection import summarise, ternary_statistics
    from nanochat_tui.inspection.text import summary_lines, ternary_lines

    path = find_model(model)
    check_file(mhc, "mHC sidecar")
    check_file(tokenizer, "tokenizer")
    with read_gguf(path) as file:
        summary = summarise(file, mhc, tokenizer)
        statistics = ternary_statistics(file) if ternary else []
    if json:
        found = summary.to_json()
        if ternary:
            found["ternary"] = [part.to_json() for part in statistics]
        typer.echo(json_module.dumps(found, indent=2))
    else:
        lines = summary_lines(summary, metadata=metadata)
        if ternary:
            lines += ["", *ternary_lines(statistics)]
        typer.echo("\n".join(lines))
    if summary.problem is not None:
        raise UserError(summary.problem)
