"""`nanochat-tui bench`: how fast a model reads and writes here."""

from __future__ import annotations

import json as json_module
from typing import Annotated

import typer

from nanochat_tui.cli.options import JsonOption, ModelArgument, ThreadsOption, check_threads, find_model


def bench(
    model: ModelArgument = None,
    threads: ThreadsOption = None,
    tokens: Annotated[int, typer.Option("--tokens", "-n", min=1, help="Tokens to read, and to write.")] = 128,
    json: JsonOption = False,
) -> None:
    """Measure prompt and decode speed, with one thread up to all (or --threads)."""
    from nanochat_tui.cli.measurement import measure
    from nanochat_tui.cli.narration import Narration

    path = find_model(model)
    with Narration() as narrate:
        result = measure(path, check_threads(threads), tokens, narrate)
    if json:
        typer.echo(json_module.dumps(result.as_json(), indent=2))
        return
    typer.echo(f"{result.model} on {result.kernel}: loaded in {result.load_seconds:.2f} s, ", nl=False)
    typer.echo(f"{result.peak_rss_bytes / 2**20:.0f} MiB at most; memory copies at {result.bandwidth_gbps:.1f} GB/s")
    typer.echo(f"{'kind':<8}{'threads':>8}{'tokens':>8}{'context':>9}{'tok/s':>10}{'GB/s':>8}")
    for row in result.rows:
        moved = f"{row.tps * row.bytes_per_token / 1e9:.1f}" if row.bytes_per_token else "–"
        typer.echo(f"{row.kind:<8}{row.threads:>8}{row.tokens:>8}{row.context:>9}{row.tps:>10.1f}{moved:>8}")
