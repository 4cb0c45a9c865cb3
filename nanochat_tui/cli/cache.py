"""`nanochat-tui cache`: what this program keeps on disk to start faster, and how to be rid of it."""

from __future__ import annotations

import contextlib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import typer

from nanochat_tui.cli.json_output import json_text
from nanochat_tui.cli.options import JsonOption
from nanochat_tui.text import display_safe


@dataclass(frozen=True, slots=True)
class Held:
    """Files of one kind."""

    kind: str
    folder: str
    files: int
    bytes: int


def cache(
    clear: Annotated[bool, typer.Option("--clear", help="Delete them; the next start takes a few seconds.")] = False,
    json: JsonOption = False,
) -> None:
    """Show, or delete, the compiled kernels kept between starts."""
    found = held()
    if clear:
        for one in found:
            for path in files(Path(one.folder)):
                with contextlib.suppress(FileNotFoundError):  # another process was faster
                    path.unlink()
    if json:
        typer.echo(json_text({"cleared": clear, "held": [asdict(one) for one in found]}))
        return
    for one in found:
        typer.echo(f"{one.kind:<8} {one.files:>4} files {one.bytes / 2**20:>9.1f} MiB  {display_safe(one.folder)}")
    if not found:
        typer.echo("nothing is kept: no folder is both private and writable")
    elif clear:
        typer.echo("deleted")


def files(folder: Path) -> list[Path]:
    """Return this program's own files in a folder."""
    from nanochat_tui.engine.compile.cache import own_files

    kept, unfinished = own_files(folder)
    return kept + unfinished


def held() -> list[Held]:
    """Return what is kept, by kind; nothing if there is no folder for it."""
    from nanochat_tui.engine.compile.cache import cache_directory

    folder = cache_directory()
    if folder is None:
        return []
    sizes = [path.stat().st_size for path in files(folder)]
    return [Held("kernels", str(folder), len(sizes), sum(sizes))]
