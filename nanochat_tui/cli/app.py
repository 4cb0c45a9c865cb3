"""The commands of `nanochat-tui`, put together. A known command wins over a model of that name (`./chat` is a file)."""

from __future__ import annotations

from collections.abc import Sequence

import typer

from nanochat_tui.cli import bench, cache, chat, convert, doctor, inspect_file, tui, web

COMMANDS = ("chat", "inspect", "bench", "convert", "cache", "doctor", "web", "tui")
_GROUP_OPTIONS = {"--help", "-h", "--version", "-V", "--install-completion", "--show-completion"}

app = typer.Typer(
    name="nanochat-tui",
    help="A terminal workbench for ternary (1.58-bit) language models. Without a command it opens the TUI: "
    "nanochat-tui [MODEL].",
    no_args_is_help=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("tui")(tui.open_tui)
app.command("chat")(chat.chat)
app.command("inspect")(inspect_file.inspect)
app.command("bench")(bench.bench)
app.command("convert")(convert.convert)
app.command("cache")(cache.cache)
app.command("doctor")(doctor.doctor)
app.command("web")(web.web)


@app.callback()
def _root(
    version: bool = typer.Option(False, "--version", "-V", help="Print the version and exit.", is_eager=True),
) -> None:
    if version:
        from nanochat_tui import __version__

        typer.echo(f"nanochat-tui {__version__}")
        raise typer.Exit


def dispatch(arguments: Sequence[str]) -> int:
    """Run one command line and return its exit code. Raises what the command raises."""
    words = list(arguments)
    if not words or (words[0] not in COMMANDS and words[0] not in _GROUP_OPTIONS):
        words.insert(0, "tui")
    result = app(words, prog_name="nanochat-tui", standalone_mode=False)
    return result if isinstance(result, int) else 0
