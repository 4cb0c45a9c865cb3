"""`nanochat-tui pull`: fetch a model by its name, compare it with its checksum, and say what it is."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nanochat_tui.cli.json_output import json_text
from nanochat_tui.cli.options import JsonOption
from nanochat_tui.errors import UserError
from nanochat_tui.text import display_safe, printable

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

    from nanochat_tui.hub.pull import Pulled
    from nanochat_tui.inspection import Summary


def pull(
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="NAME",
            help="user/repo, user/repo:Q2_0, user/repo:file.gguf, or a name of the catalogue.",
            show_default=False,
        ),
    ] = None,
    revision: Annotated[
        str | None, typer.Option("--revision", help="Branch, tag or commit of the repository.", show_default="main")
    ] = None,
    catalogue: Annotated[bool, typer.Option("--list", help="Show the catalogue of ternary models.")] = False,
    json: JsonOption = False,
) -> None:
    """Fetch a model from Hugging Face (or HF_ENDPOINT) into its cache; an interrupted download continues.

    The path of the file is printed. A file has its name only once its checksum was found right. Exit code 2 if this
    version cannot run what was fetched.
    """
    if catalogue:
        if name is not None:
            raise UserError("--list shows the whole catalogue; leave NAME out.")
        _show_catalogue(json)
        return
    if name is None:
        raise UserError("Name a model, as user/repo or from the catalogue that --list shows.")

    from nanochat_tui.hub.pull import pull as fetch
    from nanochat_tui.hub.reference import parse

    reference = parse(name, revision)
    with Bar() as bar:
        found = fetch(reference, bar)
    summary = _look(found.path)
    if json:
        typer.echo(json_text(_row(str(reference), found, summary)))
    else:
        typer.echo(display_safe(str(found.path), 4096))
        _say(_words(found, summary))
    if summary.reason is not None:
        raise UserError(
            f"{display_safe(found.path.name)} was fetched and is whole, but cannot be run: {summary.reason}"
        )


def _show_catalogue(json: bool) -> None:
    from nanochat_tui.hub.catalogue import CATALOGUE, table
    from nanochat_tui.hub.pull import names_present

    here = names_present([entry.name for entry in CATALOGUE])
    if json:
        rows = [entry.to_json() | {"present": entry.name in here} for entry in CATALOGUE]
        typer.echo(json_text({"models": rows}))
    else:
        typer.echo("\n".join(table(here)))


def _look(path: Path) -> Summary:
    from nanochat_tui.inspection import inspect_file

    return inspect_file(path)


def _words(found: Pulled, summary: Summary) -> str:
    runs = "it can be run" if summary.runs else "it cannot be run"
    parts = f" in {len(found.paths)} files" if len(found.paths) > 1 else ""
    architecture = display_safe(summary.architecture or "unknown architecture")
    return f"{found.model.size / 1e9:.2f} GB{parts}, {architecture}, {summary.parameters:,} parameters; {runs}"


def _row(reference: str, found: Pulled, summary: Summary) -> dict[str, Any]:
    return {
        "reference": reference,
        "commit": found.commit,
        "path": str(found.path),
        "files": [
            {"name": file.name, "path": str(path), "bytes": file.size, "sha256": file.sha256}
            for file, path in zip(found.model.files, found.paths, strict=True)
        ],
        "architecture": summary.architecture,
        "runs": summary.runs,
        "reason": summary.reason,
    }


def fetched(name: str) -> Path:
    """Return the file of a model that is named as `pull` takes it: the one in the cache, or else fetched now."""
    from nanochat_tui.hub.pull import present
    from nanochat_tui.hub.pull import pull as fetch
    from nanochat_tui.hub.reference import parse

    reference = parse(name)
    with Bar() as bar:
        return (present(reference, bar) or fetch(reference, bar)).path


class Bar:
    """Shows a download on stderr: a bar on a terminal, elsewhere a line for every tenth of a file."""

    def __init__(self) -> None:
        self._terminal = sys.stderr.isatty()
        self._progress: Progress | None = None
        self._task: TaskID | None = None
        self._what, self._tenth = "", -1

    def __enter__(self) -> Bar:
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    def _end(self) -> None:
        if self._progress is not None:
            self._progress.stop()
            self._progress = None

    def begin(self, what: str, done: int, size: int) -> None:
        """Begin a step."""
        self._end()
        self._what, self._tenth = display_safe(what), -1
        if not self._terminal:
            return
        from rich.console import Console
        from rich.markup import escape
        from rich.progress import (
            BarColumn,
            DownloadColumn,
            Progress,
            TextColumn,
            TimeRemainingColumn,
            TransferSpeedColumn,
        )

        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            DownloadColumn(),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            transient=True,
        )
        self._task = self._progress.add_task(escape(self._what), completed=done, total=size)
        self._progress.start()

    def moved(self, done: int, size: int) -> None:
        """Show how far it is."""
        if self._progress is not None and self._task is not None:
            self._progress.update(self._task, completed=done)
            return
        tenth = 10 * done // size if size else 10
        if not self._terminal and self._what.startswith("fetching") and tenth > self._tenth:
            self._tenth = tenth
            _say(f"{self._what}: {done / 1e9:.2f} of {size / 1e9:.2f} GB")

    def note(self, text: str) -> None:
        """Say something that stays."""
        self._end()
        _say(text)


def _say(text: str) -> None:
    print(printable(text), file=sys.stderr, flush=True)
