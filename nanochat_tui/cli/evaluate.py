"""`nanochat-tui eval`: what a model is worth on text it was not trained on."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from nanochat_tui.cli.options import AttachOption, JsonOption, ModelArgument, ThreadsOption, TokenizerOption

evaluate = typer.Typer(help="Measure a model on held-out text.", no_args_is_help=True, rich_markup_mode=None)

ModelOption = Annotated[str, typer.Argument(metavar="MODEL", help="A GGUF file, or a checkpoint of the trainer.")]
DataArgument = Annotated[Path, typer.Argument(metavar="DATA", help="Folder made by nanochat-train prepare-data.")]
HeldOutArgument = Annotated[
    Path | None,
    typer.Argument(
        metavar="DATA",
        help="Held-out Rust: a file, a folder, or one made by nanochat-train prepare-data; left out, files that come "
        "along.",
        show_default=False,
    ),
]
TokensOption = Annotated[
    int | None, typer.Option("--tokens", min=1, help="Measure about so many tokens, whole documents spread evenly.")
]
WindowOption = Annotated[
    int | None, typer.Option("--window", min=2, help="Tokens of a window; the model's context by default.")
]
StrideOption = Annotated[
    int | None, typer.Option("--stride", min=1, help="Tokens between windows; the window's length by default.")
]
UnsafeOption = Annotated[
    bool, typer.Option("--unsafe", help="Compile and run what the model writes where no isolation works, without one.")
]
ChatOption = Annotated[
    bool | None,
    typer.Option("--chat/--raw", help="Ask a chat model, or continue the text; by the model if left out."),
]
OutOption = Annotated[
    Path | None,
    typer.Option(help="Folder for samples and verdicts, one that is there is completed; else among the user's data."),
]
LinesOption = Annotated[bool, typer.Option("--json-lines", help="Print a JSON object for each completion as it comes.")]


def _summary(
    model: str,
    data: Path | None,
    tokens: int | None,
    window: int | None,
    stride: int | None,
    tokenizer: Path | None,
    threads: int | None,
    *,
    apart: bool = False,
) -> tuple[Any, Any]:
    """The summary, and with `apart` the figure without copies of training text."""
    from nanochat_tui.cli.evaluation import documents_to_measure, open_model, progress, whitespace_ids
    from nanochat_tui.errors import UserError
    from nanochat_tui.evaluate.copies import mark_copies, token_sizes, without_copies
    from nanochat_tui.evaluate.held_out import choose
    from nanochat_tui.evaluate.scoring import Windows, score_documents
    from nanochat_tui.evaluate.summary import summarise

    measured = open_model(model, tokenizer, threads)
    everything, held_out = documents_to_measure(measured, data)
    if apart and held_out is None:
        raise UserError("--without-copies needs the training text; name a folder made by nanochat-train prepare-data")
    length = min(window or measured.context, measured.context)
    windows = Windows(length, stride or length)
    documents = choose(everything, tokens)
    copies = mark_copies(held_out, documents) if apart and held_out is not None else []
    with progress("scoring", sum(len(document.ids) - 1 for document in documents)) as tick:
        scored = score_documents(measured.model, documents, windows, tick)
    found = summarise(scored, windows.name, whitespace_ids(measured.tokenizer, measured.vocab_size))
    if not apart or held_out is None:
        return found, None
    sizes = token_sizes(measured.tokenizer, measured.vocab_size, held_out.indentation)
    return found, without_copies(scored, copies, sizes)


@evaluate.command("perplexity")
def perplexity(
    model: ModelOption,
    data: HeldOutArgument = None,
    tokens: TokensOption = None,
    window: WindowOption = None,
    stride: StrideOption = None,
    by_crate: Annotated[bool, typer.Option("--by-crate", help="Show each crate's figures too.")] = False,
    apart: Annotated[
        bool,
        typer.Option("--without-copies", help="Also on the tokens outside runs of 32 that the training text holds."),
    ] = False,
    tokenizer: TokenizerOption = None,
    threads: ThreadsOption = None,
    json: JsonOption = False,
) -> None:
    """Nats, perplexity and bits per byte of held-out documents; errors are over crates."""
    from dataclasses import asdict

    from rich.console import Console
    from rich.table import Table

    from nanochat_tui.cli.evaluation import figure, print_json
    from nanochat_tui.text import display_safe

    found, new = _summary(model, data, tokens, window, stride, tokenizer, threads, apart=apart)
    if json:
        print_json(found.to_json() | ({"without_copies": asdict(new)} if new else {}))
        return
    console = Console()
    table = Table(show_header=False)
    table.add_row("windows", found.windows)
    table.add_row("documents, crates", f"{found.documents:,}, {len(found.crates):,}")
    table.add_row("tokens, bytes", f"{found.tokens:,}, {found.bytes:,}")
    table.add_row("nats per token", figure(found.nats.value, found.nats.error))
    table.add_row("perplexity", f"{found.perplexity:.3f}")
    table.add_row("bits per byte", figure(found.bits_per_byte.value, found.bits_per_byte.error))
    if new:
        table.add_row(
            f"without copies ({new.copied:.1%} of tokens)", figure(new.bits_per_byte.value, new.bits_per_byte.error)
        )
    console.print(table)
    if by_crate:
        rows = Table("crate", "documents", "tokens", "nats", "bits per byte", "accuracy")
        for row in found.crates:
            rows.add_row(
                display_safe(row.crate),
                f"{row.documents:,}",
                f"{row.tokens:,}",
                f"{row.nats:.4f}",
                f"{row.bits_per_byte:.4f}",
                f"{row.accuracy:.4f}",
            )
        console.print(rows)


@evaluate.command("accuracy")
def accuracy(
    model: ModelOption,
    data: HeldOutArgument = None,
    tokens: TokensOption = None,
    window: WindowOption = None,
    stride: StrideOption = None,
    tokenizer: TokenizerOption = None,
    threads: ThreadsOption = None,
    json: JsonOption = False,
) -> None:
    """How often the most probable token is the right one; errors are over crates."""
    from rich.console import Console
    from rich.table import Table

    from nanochat_tui.cli.evaluation import figure, print_json

    found, _ = _summary(model, data, tokens, window, stride, tokenizer, threads)
    if json:
        print_json({key: value for key, value in found.to_json().items() if key not in ("nats", "perplexity")})
        return
    table = Table(show_header=False)
    table.add_row("windows", found.windows)
    table.add_row("tokens", f"{found.tokens:,}")
    table.add_row("next token right", figure(found.accuracy.value, found.accuracy.error))
    table.add_row("without white space", figure(found.accuracy_no_whitespace.value, found.accuracy_no_whitespace.error))
    Console().print(table)


@evaluate.command("overlap")
def overlap(data: DataArgument, json: JsonOption = False) -> None:
    """How much of the held-out crates the training text holds: common phrases, and copies."""
    from dataclasses import asdict

    from rich.console import Console
    from rich.table import Table

    from nanochat_tui.cli.evaluation import print_json
    from nanochat_tui.evaluate.copies import overlaps
    from nanochat_tui.evaluate.held_out import open_held_out
    from nanochat_tui.text import display_safe

    rows = overlaps(data, open_held_out(data))
    if json:
        print_json({"all": asdict(rows[0]), "crates": [asdict(row) for row in rows[1:]]})
        return
    table = Table("crate", "tokens", "in 13-grams", "of ≤ 2 crates", "of ≥ 5 crates", "in 32-grams")
    for row in rows:
        shares = (row.covered, row.few, row.common, row.copied)
        name = display_safe(row.crate) or "all"
        table.add_row(name, f"{row.tokens:,}", *(f"{share:.1%}" for share in shares))
    Console().print(table)


@evaluate.command("rust")
def rust(
    model: ModelArgument = None,
    data: HeldOutArgument = None,
    attach: AttachOption = None,
    parts: Annotated[
        str, typer.Option(help="What to measure, with commas between.")
    ] = "bodies,compile,tests,infill,lines",
    items: Annotated[int, typer.Option(min=1, help="Most items of each part.")] = 100,
    samples: Annotated[
        int, typer.Option("--samples", "-n", min=1, max=1000, help="Completions at each temperature.")
    ] = 1,
    temperatures: Annotated[str, typer.Option(help="With commas between, as in 0,0.2,0.8.")] = "0",
    seed: Annotated[int, typer.Option(min=0, help="Of the first sample; the next ones count up.")] = 1,
    max_tokens: Annotated[int, typer.Option(min=1, help="Longest completion.")] = 128,
    chat: ChatOption = None,
    out: OutOption = None,
    unsafe: UnsafeOption = False,
    threads: ThreadsOption = None,
    json: JsonOption = False,
    json_lines: LinesOption = False,
) -> None:
    """Complete held-out Rust: bodies that parse, functions that compile or pass tests, gaps and lines as they were."""
    from nanochat_tui.cli.evaluate_rust import RustAsked, measure, read_parts, read_temperatures

    asked = RustAsked(
        model,
        attach,
        data,
        read_parts(parts),
        items,
        samples,
        read_temperatures(temperatures),
        seed,
        max_tokens,
        chat,
        out,
        unsafe,
        threads,
    )
    measure(asked, as_json=json, lines=json_lines)


@evaluate.command("humaneval")
def humaneval(
    model: ModelArgument = None,
    attach: AttachOption = None,
    chosen: Annotated[
        Literal["python", "rust", "rust-small"], typer.Option("--set", help="The set of problems that comes along.")
    ] = "python",
    problems: Annotated[
        Path | None,
        typer.Option(help="JSON lines with problems of your own, in the form of HumanEval or MultiPL-E (Rust)."),
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first problems.")] = None,
    samples: Annotated[int, typer.Option("--samples", "-n", min=1, max=1000, help="Completions of each problem.")] = 1,
    temperature: Annotated[
        float | None, typer.Option(min=0, help="0 for one sample, 0.8 for several, if left out.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the first sample; the next ones count up.")] = 1,
    max_tokens: Annotated[int, typer.Option(min=1, help="Longest completion.")] = 512,
    seconds: Annotated[float, typer.Option("--timeout", min=0.1, help="Seconds that a program may take.")] = 10.0,
    chat: ChatOption = None,
    out: OutOption = None,
    unsafe: UnsafeOption = False,
    threads: ThreadsOption = None,
    json: JsonOption = False,
    json_lines: LinesOption = False,
) -> None:
    """Let a model solve programming problems and run its programs in a sandbox: pass@k with its interval."""
    from nanochat_tui.cli.evaluate_problems import Asked, measure

    asked = Asked(
        model,
        attach,
        chosen,
        problems,
        limit,
        samples,
        temperature,
        seed,
        max_tokens,
        seconds,
        chat,
        out,
        unsafe,
        threads,
    )
    measure(asked, as_json=json, lines=json_lines)


@evaluate.command("compare")
def compare(
    first: Annotated[str, typer.Argument(metavar="A", help="Folder or name of an evaluation.")],
    second: Annotated[str, typer.Argument(metavar="B", help="Folder or name of another one, of the same problems.")],
    json: JsonOption = False,
) -> None:
    """Compare two models on the problems that both were given, with the interval of the difference. Markdown."""
    from nanochat_tui.cli.evaluate_problems import print_comparison

    print_comparison(first, second, as_json=json)


@evaluate.command("list")
def list_kept(
    folder: Annotated[
        Path | None, typer.Argument(help="Where to look; left out, among the user's data.", show_default=False)
    ] = None,
    json: JsonOption = False,
) -> None:
    """List the evaluations that are kept, the newest first."""
    from nanochat_tui.cli.evaluate_list import print_list

    print_list(folder, as_json=json)


@evaluate.command("requests")
def requests(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A GGUF file.")],
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="JSON lines of prompt and completion, as prepare-data --pairs.")
    ],
    count: Annotated[int, typer.Option(min=1, help="Requests to answer, the first of the file.")] = 100,
    max_tokens: Annotated[int, typer.Option(min=1, help="Longest answer.")] = 256,
    temperature: Annotated[float, typer.Option(min=0, help="0: the most probable token each time.")] = 0.0,
    seed: Annotated[int, typer.Option(help="Of the sampling, with a temperature.")] = 0,
    samples: Annotated[Path | None, typer.Option(help="Write all answers to this file, JSON lines.")] = None,
    unsafe: UnsafeOption = False,
    threads: ThreadsOption = None,
    json: JsonOption = False,
) -> None:
    """Ask for Rust functions: do the answers parse, declare what was asked for, and compile alone (needs rustc)?"""
    from nanochat_tui.cli.evaluate_requests import measure

    measure(
        model,
        file,
        count=count,
        max_tokens=max_tokens,
        temperature=temperature,
        seed=seed,
        samples=samples,
        threads=threads,
        unsafe=unsafe,
        as_json=json,
    )


@evaluate.command("baselines")
def baselines(
    data: DataArgument,
    tokens: TokensOption = None,
    training_tokens: Annotated[
        int, typer.Option(min=0, help="Training tokens that compressors and the 5-gram read before.")
    ] = 20_000_000,
    tokenizer: TokenizerOption = None,
    json: JsonOption = False,
) -> None:
    """Bits per byte of the same documents by xz, zstd, PPMd and a Kneser-Ney 5-gram."""
    from dataclasses import asdict

    from rich.console import Console
    from rich.table import Table

    from nanochat_tui.cli.evaluation import print_json
    from nanochat_tui.cli.evaluation_text import load_tokenizer, measure_baselines
    from nanochat_tui.evaluate.held_out import choose, open_held_out

    held_out = open_held_out(data)
    documents = choose(held_out.documents, tokens)
    named = load_tokenizer(tokenizer, held_out)
    found, size = measure_baselines(held_out, documents, named, training_tokens)
    if json:
        print_json({"bytes": size, "baselines": [asdict(baseline) for baseline in found]})
        return
    table = Table("method", "bits per byte", "has read")
    for baseline in sorted(found, key=lambda b: b.bits_per_byte):
        table.add_row(baseline.name, f"{baseline.bits_per_byte:.4f}", baseline.primed)
    Console().print(table)


@evaluate.command("card")
def card(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A GGUF file.")],
    data: Annotated[
        Path | None,
        typer.Argument(
            metavar="DATA",
            help="Folder made by nanochat-train prepare-data; left out, only what needs no corpus is measured.",
            show_default=False,
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            help="Markdown file to write; of one that has the command's marks only what is between them.",
        ),
    ] = None,
    tokens: Annotated[
        int, typer.Option("--tokens", min=0, help="Held-out tokens to measure, whole documents spread evenly; 0: all.")
    ] = 300_000,
    by_file: Annotated[
        Path | None, typer.Option("--by-file", help="Data held out by file, reported next to the crates.")
    ] = None,
    compare: Annotated[
        list[str] | None,
        typer.Option(help="Another model on the same text and problems; may be repeated."),
    ] = None,
    run: Annotated[
        Path | None, typer.Option(help="Run directory of the model, for what it says of the training.")
    ] = None,
    items: Annotated[int, typer.Option(min=1, help="Most items of each part of eval rust.")] = 60,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first problems of each HumanEval set.")] = None,
    temperatures: Annotated[str, typer.Option(help="Of eval rust, with commas between.")] = "0,0.8",
    max_tokens: Annotated[int, typer.Option(min=1, help="Longest completion.")] = 128,
    training_tokens: Annotated[int, typer.Option(min=0, help="Training tokens that the baselines read before.")] = (
        5_000_000
    ),
    out: OutOption = None,
    unsafe: UnsafeOption = False,
    threads: ThreadsOption = None,
    json: JsonOption = False,
) -> None:
    """Make the card of a model: held-out text, Rust, HumanEval, comparisons; with DATA the corpus too. Minutes."""
    from nanochat_tui.cli.evaluate_card import CardAsked, make_card, write_card
    from nanochat_tui.cli.evaluate_rust import read_temperatures
    from nanochat_tui.cli.evaluation import print_json

    asked = CardAsked(
        model,
        data,
        tokens or None,
        by_file,
        tuple(compare or ()),
        run,
        items,
        limit,
        read_temperatures(temperatures),
        max_tokens,
        training_tokens,
        out,
        unsafe,
        threads,
    )
    made = make_card(asked)
    if json:
        print_json(made.figures)
    if output is not None or not json:
        write_card(output, made)
