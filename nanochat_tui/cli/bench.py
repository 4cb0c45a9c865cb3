"""`nanochat-tui bench`: how fast a model reads and writes here, and with --quality how exactly."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from nanochat_tui.cli.json_output import json_text
from nanochat_tui.cli.options import ActivationsOption, JsonOption, KvOption, ModelArgument, check_file, find_model
from nanochat_tui.errors import UserError
from nanochat_tui.text import display_safe

MAX_SIZE = 1 << 20
TEXT_TOKENS = 1024
"""Tokens that --quality reads."""


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
        typer.Option(help="Let ours use draft tokens; how many were accepted is shown, and depends on the text."),
    ] = "off",
    kv: KvOption = None,
    activations: ActivationsOption = None,
    quality: Annotated[
        bool,
        typer.Option("--quality", help="Instead of speed: divergence, top token and loss against float activations."),
    ] = False,
    text: Annotated[
        Path | None,
        typer.Option("--text", help="With --quality: text to compare on, not the built-in one.", show_default=False),
    ] = None,
    text_tokens: Annotated[
        int | None,
        typer.Option("--text-tokens", min=16, help="With --quality: read so many tokens.", show_default="1024"),
    ] = None,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print Markdown.")] = False,
    json: JsonOption = False,
) -> None:
    """Measure prompt and decode speed, memory and load time; with --peer side by side with llama.cpp.

    With --quality measure how near the model is to itself with float activations.
    """
    from nanochat_tui.bench.measure import Engine, Plan, measure
    from nanochat_tui.bench.peer import peer_version
    from nanochat_tui.bench.report import as_markdown, as_text
    from nanochat_tui.bench.worker import OURS
    from nanochat_tui.cli.narration import Narration

    path = find_model(model)
    if quality:
        chosen = thread_count(threads)
        _quality(path, text, text_tokens, json, kernel=kernel, threads=chosen, kv=kv, activations=activations)
        return
    if text is not None or text_tokens is not None:
        raise UserError("--text and --text-tokens have no place without --quality; add it, or leave them out.")
    plan = Plan(
        threads=tuple(sizes(threads, "--threads", 1024)) if threads is not None else _all_threads(),
        prompts=tuple(sizes(prompt, "--prompt")),
        contexts=tuple(sizes(context, "--context")),
        tokens=tokens,
        repeats=repeats,
        seconds=seconds,
        limit=limit,
    )
    engines = [Engine(OURS, path, kernel, speculation, kv or "f16", activations or "int8")]
    if peer is not None:
        peer_version()
        engines.append(Engine(peer, check_file(peer_model, "peer's model") or path))
    elif peer_model is not None:
        raise UserError("--peer-model has no place without --peer; say which engine to compare with.")
    with Narration() as narrate:
        result = measure(engines, plan, narrate)
    if json:
        typer.echo(json_text(result.as_json()))
    else:
        typer.echo(as_markdown(result) if markdown else as_text(result))


def _quality(path: Path, text: Path | None, most: int | None, json: bool, **how: Any) -> None:
    from nanochat_tui.bench.quality import measure_quality, read_text
    from nanochat_tui.cli.narration import Narration

    words = read_text(check_file(text, "text"))
    how["kv"], how["activations"] = how["kv"] or "f16", how["activations"] or "int8"
    with Narration() as narrate:
        found = measure_quality(path, words, most or TEXT_TOKENS, say=narrate, **how)
    typer.echo(json_text(found.as_json()) if json else found.as_text())


def thread_count(text: str | None) -> int | None:
    """Return the only number of --threads, None if it was left out. Raises UserError for several."""
    if text is None:
        return None
    counts = sizes(text, "--threads", 1024)
    if len(counts) > 1:
        raise UserError("with --quality --threads is one number: the figures do not depend on it.")
    return counts[0]


def sizes(text: str, option: str, most: int = MAX_SIZE) -> list[int]:
    """Return the numbers of a list such as 128,512. Raises UserError for anything else."""
    words = [word.strip() for word in text.split(",") if word.strip()]
    numbers = [int(word) for word in words if word.isascii() and word.isdigit()]
    if not numbers or len(numbers) != len(words) or not all(1 <= number <= most for number in numbers):
        raise UserError(f"{option} takes numbers from 1 to {most}, such as 1,2, not “{display_safe(text)}”.")
    return list(dict.fromkeys(numbers))


def _all_threads() -> tuple[int, ...]:
    from nanochat_tui.bench.measure import thread_counts
    from nanochat_tui.system import default_threads

    return tuple(thread_counts(default_threads()))
