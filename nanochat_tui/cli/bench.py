"""`nanochat-tui bench`: how fast a model reads and writes here."""

from __future__ import annotations

import json as json_module
from pathlib import Path
from typing import Annotated, Literal

import typer

from nanochat_tui.cli.options import JsonOption, KvOption, ModelArgument, check_file, find_model
from nanochat_tui.errors import UserError, display_safe

MAX_SIZE = 1 << 20


def bench(
    model: ModelArgument = None,
    threads: Annotated[
        str | None,
        typer.Option("--threads", "-t", help="Counts, as in 1,2; left out, 1, 2, 4 … up to all.", show_default=False),
    ] = None,
    tokens: Annotated[int, typer.Option("--tokens", "-n", min=1, help="Tokens of a decoding run, at most.")] = 128,
    context: Annotated[str, typer.Option(help="Decode behind so many tokens, as in 128,1024.")] = "128",
    prompt: Annotated[str, typer.Option(help="Read prompts of so many tokens, as in 128,512.")] = "128",
    repeats: Annotated[int, typer.Option(min=1, max=100, help="Runs of each kind; the median counts.")] = 5,
    seconds: Annotated[float, typer.Option(min=0.01, help="A decoding run is this long, or has --tokens.")] = 2.0,
    limit: Annotated[float, typer.Option(min=1, help="Leave out what would take longer, in seconds.")] = 20.0,
    kernel: Annotated[
        str | None, typer.Option(help="Use this kernel instead of the fastest; doctor lists them.")
    ] = None,
    peer: Annotated[
        Literal["llama-cpp-python"] | None, typer.Option(help="Measure this engine too, in turns with ours.")
    ] = None,
    peer_model: Annotated[
        Path | None, typer.Option(help="File for the peer, where it cannot load the same one.", show_default=False)
    ] = None,
    speculation: Annotated[
        Literal["auto", "on", "off"],
        typer.Option(help="Let ours guess tokens ahead; how many were right is shown, and depends on the text."),
    ] = "off",
    kv: KvOption = None,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print Markdown.")] = False,
    json: JsonOption = False,
) -> None:
    """Measure prompt and decode speed, memory and load time; with --peer side by side with llama.cpp."""
    from nanochat_tui.cli.measurement import Engine, Plan, measure
    from nanochat_tui.cli.measurement_peer import peer_version
    from nanochat_tui.cli.measurement_report import as_markdown, as_text
    from nanochat_tui.cli.measurement_worker import OURS
    from nanochat_tui.cli.narration import Narration

    path = find_model(model)
    plan = Plan(
        threads=tuple(sizes(threads, "--threads", 1024)) if threads is not None else _all_threads(),
        prompts=tuple(sizes(prompt, "--prompt")),
        contexts=tuple(sizes(context, "--context")),
        tokens=tokens,
        repeats=repeats,
        seconds=seconds,
        limit=limit,
    )
    engines = [Engine(OURS, path, kernel, speculation, kv or "f16")]
    if peer is not None:
        peer_version()
        engines.append(Engine(peer, check_file(peer_model, "peer's model") or path))
    elif peer_model is not None:
        raise UserError("--peer-model has no place without --peer; say which engine to compare with.")
    with Narration() as narrate:
        result = measure(engines, plan, narrate)
    if json:
        typer.echo(json_module.dumps(result.as_json(), indent=2))
    else:
        typer.echo(as_markdown(result) if markdown else as_text(result))


def sizes(text: str, option: str, most: int = MAX_SIZE) -> list[int]:
    """Return the numbers of a list such as 128,512. Raises UserError for anything else."""
    words = [word.strip() for word in text.split(",") if word.strip()]
    numbers = [int(word) for word in words if word.isascii() and word.isdigit()]
    if not numbers or len(numbers) != len(words) or not all(1 <= number <= most for number in numbers):
        raise UserError(f"{option} takes numbers from 1 to {most}, such as 1,2, not {display_safe(text)!r}.")
    return list(dict.fromkeys(numbers))


def _all_threads() -> tuple[int, ...]:
    from nanochat_tui.cli.measurement import thread_counts
    from nanochat_tui.engine.processors import default_threads

    return tuple(thread_counts(default_threads()))
