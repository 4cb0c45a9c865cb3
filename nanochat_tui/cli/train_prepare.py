"""`nanochat-train prepare-data`: folders of source files in, token files out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from nanochat_tui.cli.options import JsonOption
from nanochat_tui.errors import UserError, display_safe


def prepare_data(
    sources: Annotated[list[Path], typer.Argument(help="Folders of source files; of duplicates the first stays.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to write.")],
    tokenizer: Annotated[
        Path | None, typer.Option(help="tokenizer.json; the shipped one by default.", show_default=False)
    ] = None,
    extensions: Annotated[str, typer.Option(help="Comma-separated file name endings.")] = ".rs",
    indentation: Annotated[
        int, typer.Option(min=0, max=16, help="Leading groups of so many spaces become one tab; 0 leaves the text.")
    ] = 4,
    validation_fraction: Annotated[float, typer.Option(min=0.0, max=0.5, help="Share of files held out.")] = 0.02,
    require_licence: Annotated[bool, typer.Option(help="Leave out files of which no licence is known.")] = False,
    any_licence: Annotated[bool, typer.Option(help="Keep files of every licence, for code of your own.")] = False,
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
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
    from rich.table import Table

    from nanochat_tui.model.shipped import shipped_tokenizer
    from nanochat_tui.train import data_preparation as preparation

    chosen = tokenizer or shipped_tokenizer()
    if chosen is None or not chosen.is_file():
        raise UserError(f"there is no tokenizer at {chosen}; give one with --tokenizer")
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        tasks: dict[str, int] = {}

        def show(state: preparation.Progress) -> None:
            if state.stage not in tasks:
                tasks[state.stage] = progress.add_task(state.stage, total=state.total)
            progress.update(tasks[state.stage], completed=state.done, total=state.total)  # type: ignore[arg-type]

        report = preparation.prepare_data(
            preparation.PrepareOptions(
                sources=tuple(sources),
                tokenizer=chosen,
                output=output,
                extensions=tuple(e.strip() for e in extensions.split(",") if e.strip()),
                indentation=indentation,
                validation_fraction=validation_fraction,
                require_licence=require_licence,
                any_licence=any_licence,
                workers=workers,
                overwrite=overwrite,
            ),
            progress=show,
        )
    if as_json:
        typer.echo((output / "dataset.json").read_text(encoding="utf-8").rstrip())
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
