"""`nanochat-train prepare-data`: folders of source files in, token files out."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from nanochat_tui.cli.json_output import json_text
from nanochat_tui.cli.options import JsonOption
from nanochat_tui.errors import UserError
from nanochat_tui.text import display_safe

if TYPE_CHECKING:
    from nanochat_tui.train import data_preparation as preparation
    from nanochat_tui.train.data_preparation.options import ProgressCallback


END_TOKEN = "<|endoftext|>"  # noqa: S105 - a token of text


def prepare_data(
    sources: Annotated[list[Path], typer.Argument(help="Folders of source files; of duplicates the first stays.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to write.")],
    tokenizer: Annotated[
        Path | None, typer.Option(help="tokenizer.json; the shipped one by default.", show_default=False)
    ] = None,
    eot_token: Annotated[
        str, typer.Option(help="The tokenizer's token that separates documents, such as </s>.")
    ] = END_TOKEN,
    extensions: Annotated[str, typer.Option(help="Comma-separated file name endings.")] = ".rs",
    indentation: Annotated[
        int,
        typer.Option(
            min=0,
            max=16,
            help="Leading groups of so many spaces become one tab; 0 leaves the text, for tab-indented languages.",
        ),
    ] = 4,
    validation_fraction: Annotated[float, typer.Option(min=0.0, max=0.5, help="Share of files held out.")] = 0.02,
    require_licence: Annotated[bool, typer.Option(help="Leave out files of which no licence is known.")] = False,
    any_licence: Annotated[bool, typer.Option(help="Keep files of every licence, for code of your own.")] = False,
    hold_out: Annotated[
        Path | None,
        typer.Option(help="File of crates, one a line, that validation is made of in place of a share of the files."),
    ] = None,
    pairs: Annotated[
        Literal["rustdoc"] | None,
        typer.Option(
            help="Write requests and answers for finetune in place of tokens: rustdoc takes Rust functions that "
            "compile alone, with their comments and signatures (needs rustc)."
        ),
    ] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Processes; one per CPU by default.", show_default=False)
    ] = None,
    overwrite: Annotated[bool, typer.Option(help="Replace a data set that is there.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Turn folders of source files into tokens with training and validation parts.

    Files are filtered, de-duplicated and split by file; licences are listed.
    """
    from rich.console import Console
    from rich.table import Table

    from nanochat_tui.model.shipped import shipped_tokenizer
    from nanochat_tui.train import data_preparation as preparation

    chosen = tokenizer or shipped_tokenizer()
    if chosen is None or not chosen.is_file():
        raise UserError(f"there is no tokenizer at {display_safe(str(chosen))}; give one with --tokenizer")
    options = preparation.PrepareOptions(
        sources=tuple(sources),
        tokenizer=chosen,
        output=output,
        eot_token=eot_token,
        extensions=_endings(extensions),
        indentation=indentation,
        validation_fraction=validation_fraction,
        require_licence=require_licence,
        any_licence=any_licence,
        hold_out=() if hold_out is None else _names(hold_out),
        workers=workers,
        overwrite=overwrite,
    )
    if pairs is not None:
        _prepare_pairs(options, as_json=as_json)
        return
    with _progress() as show:
        report = preparation.prepare_data(options, progress=show)
    if as_json:
        typer.echo(json_text(json.loads((output / "dataset.json").read_text(encoding="utf-8"))))
        return
    for title, counts in (("kept", report.splits), ("left out", report.left_out), ("licences", report.licences)):
        table = Table(title=title, title_justify="left")
        for heading in ("", "files", "MB", "tokens"):
            table.add_column(heading, justify="left" if not heading else "right")
        for name, count in counts.items():
            tokens = f"{count.tokens:,}" if count.tokens else ""
            table.add_row(display_safe(name), f"{count.documents:,}", f"{count.bytes / 1e6:.2f}", tokens)
        Console().print(table)
    typer.echo(f"wrote {output}", err=True)


def tokenizer(
    sources: Annotated[list[Path], typer.Argument(help="Folders of source files, chosen as prepare-data does.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="tokenizer.json to write.")],
    vocab_size: Annotated[int, typer.Option(min=257, help="Number of token ids, the end of text included.")] = 4096,
    extensions: Annotated[str, typer.Option(help="Comma-separated file name endings.")] = ".rs",
    indentation: Annotated[
        int, typer.Option(min=0, max=16, help="As prepare-data will be given: spaces per leading tab; 0 = as it is.")
    ] = 4,
    eot_token: Annotated[str, typer.Option(help="Token that separates documents.")] = END_TOKEN,
    require_licence: Annotated[bool, typer.Option(help="Leave out files of which no licence is known.")] = False,
    any_licence: Annotated[bool, typer.Option(help="Keep files of every licence, for code of your own.")] = False,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Processes; one per CPU by default.", show_default=False)
    ] = None,
    overwrite: Annotated[bool, typer.Option(help="Replace a file that is there.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Train a byte-level BPE tokenizer on source files, for prepare-data --tokenizer."""
    import dataclasses

    from nanochat_tui.train import data_preparation as preparation

    with _progress() as show:
        found = preparation.train_tokenizer(
            preparation.PrepareOptions(
                sources=tuple(sources),
                tokenizer=output,
                output=output,
                extensions=_endings(extensions),
                indentation=indentation,
                eot_token=eot_token,
                require_licence=require_licence,
                any_licence=any_licence,
                workers=workers,
                overwrite=overwrite,
            ),
            vocab_size,
            progress=show,
        )
    if as_json:
        typer.echo(json_text(dataclasses.asdict(found), default=str))
        return
    shown = display_safe(str(output))
    typer.echo(
        f"{shown}: {found.vocab_size:,} tokens from {found.documents:,} files of {found.bytes / 1e6:.2f} MB, "
        f"{found.bytes_per_token:.2f} bytes per token"
    )
    if found.vocab_size < vocab_size:
        typer.echo(f"note: the files hold no more pairs worth a token; {vocab_size:,} were asked for", err=True)


def _names(path: Path) -> tuple[str, ...]:
    """The entries of a file, one a line; `#` begins a comment. Raises UserError."""
    try:
        lines = (line.split("#", 1)[0].strip() for line in path.read_text(encoding="utf-8").splitlines())
    except (OSError, UnicodeDecodeError):
        raise UserError(f"the list {display_safe(str(path))} cannot be read; check the path") from None
    found = tuple(line for line in lines if line)
    if not found:
        raise UserError(f"{display_safe(str(path))} names no crate; write one a line")
    return found


def _prepare_pairs(options: preparation.PrepareOptions, *, as_json: bool) -> None:
    from nanochat_tui.train.data_preparation.pairs import DESCRIPTION, prepare_pairs

    with _progress() as show:
        report = prepare_pairs(options, show)
    if as_json:
        typer.echo(json_text(json.loads((options.output / DESCRIPTION).read_text(encoding="utf-8"))))
        return
    typer.echo(
        f"{report.functions:,} functions in {report.files:,} files; {report.asked:,} given to {report.rustc}, "
        f"{report.compiled:,} compile alone: {report.train:,} for training, {report.val:,} held out"
    )
    typer.echo(f"wrote {display_safe(str(options.output))}", err=True)


def _endings(text: str) -> tuple[str, ...]:
    return tuple(e.strip() for e in text.split(",") if e.strip())


@contextlib.contextmanager
def _progress() -> Iterator[ProgressCallback]:
    """Bars on stderr, one per stage."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        tasks: dict[str, Any] = {}

        def show(state: preparation.Progress) -> None:
            if state.stage not in tasks:
                tasks[state.stage] = progress.add_task(state.stage, total=state.total)
            progress.update(tasks[state.stage], completed=state.done, total=state.total)

        yield show
