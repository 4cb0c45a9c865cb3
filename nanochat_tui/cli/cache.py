"""`nanochat-tui cache`: what this program keeps on disk to start faster, and how to be rid of it."""

from __future__ import annotations

import contextlib
import json as json_module
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import typer

from nanochat_tui.cli.options import JsonOption
from nanochat_tui.errors import display_safe

PATTERNS = {"kernels": ("*.o", "*.tmp"), "weights": ("*.npk", "*.tmp")}
"""Files that are ours, by kind of folder: a folder that somebody named may hold others too."""


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
    """Show, or delete, compiled kernels and repacked weights kept between starts."""
    found = held()
    if clear:
        for path in files():
            with contextlib.suppress(FileNotFoundError):  # another process was faster
                path.unlink()
    if json:
        typer.echo(json_module.dumps({"cleared": clear, "held": [asdict(one) for one in found]}, indent=2))
        return
    for one in found:
        typer.echo(f"{one.kind:<8} {one.files:>4} files {one.bytes / 2**20:>9.1f} MiB  {display_safe(one.folder)}")
    if not found:
        typer.echo("nothing is kept: no folder is both private and writable")
    elif clear:
        typer.echo("deleted")


def folders() -> dict[str, Path]:
    """Return the folders by kind."""
    from nanochat_tui.engine.compile_cache import cache_directory

    kernels = cache_directory()
    return {} if kernels is None else {"kernels": kernels, "weights": kernels.parent / "weights"}


def files(kind: str | None = None) -> Iterator[Path]:
    """Yield the files, of one kind or of all."""
    for name, folder in folders().items():
        if kind in (None, name) and folder.is_dir():
            for pattern in PATTERNS[name]:
                yield from (path for path in sorted(folder.glob(pattern)) if path.is_file())


def held() -> list[Held]:
    """Return what is kept, by kind; folders that do not exist are left out."""
    out = []
    for name, folder in folders().items():
        if folder.is_dir():
            sizes = [path.stat().st_size for path in files(name)]
            out.append(Held(name, str(folder), len(sizes), sum(sizes)))
    return out
