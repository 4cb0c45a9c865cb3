"""The commands of `nanochat-tui`, put together. A known command wins over a model of that name (`./chat` is a file)."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from importlib import import_module
from pathlib import Path

import typer

COMMANDS = {
    "tui": ("tui", "open_tui"),
    "chat": ("chat", "chat"),
    "pull": ("pull", "pull"),
    "inspect": ("inspect_file", "inspect"),
    "bench": ("bench", "bench"),
    "convert": ("convert", "convert"),
    "eval": ("evaluate", "evaluate"),
    "grpo": ("grpo", "grpo"),
    "cache": ("cache", "cache"),
    "tools": ("tools", "tools"),
    "doctor": ("doctor", "doctor"),
    "web": ("web", "web"),
}
"""Of every command, the module next to this one and the function, or group of commands, in it."""
COMPLETION_VARIABLE = "_NANOCHAT_TUI_COMPLETE"
"""Set by a shell that asks how a line may go on."""
_GROUP_OPTIONS = {"--help", "-h", "--version", "-V", "--install-completion", "--show-completion"}


def _root(
    version: bool = typer.Option(False, "--version", "-V", help="Print the version and exit.", is_eager=True),
) -> None:
    if version:
        from nanochat_tui import __version__

        typer.echo(f"nanochat-tui {__version__}")
        raise typer.Exit


def application(commands: Iterable[str] = COMMANDS) -> typer.Typer:
    """Return the command line with some commands: typer takes milliseconds for every option of each."""
    app = typer.Typer(
        name="nanochat-tui",
        help="A terminal workbench for ternary (1.58-bit) language models. Without a command it opens the TUI: "
        "nanochat-tui [MODEL].",
        no_args_is_help=False,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(_root)
    for name in commands:
        module, member = COMMANDS[name]
        command = getattr(import_module(f"nanochat_tui.cli.{module}"), member)
        if isinstance(command, typer.Typer):
            app.add_typer(command, name=name)
        else:
            app.command(name)(command)
    return app


def dispatch(arguments: Sequence[str]) -> int:
    """Run one command line and return its exit code. Raises what the command raises."""
    words = ["--help", *arguments[1:]] if arguments[:1] == ["help"] and not Path("help").exists() else list(arguments)
    if not words or (words[0] not in COMMANDS and words[0] not in _GROUP_OPTIONS):
        words.insert(0, "tui")
    everything = words[0] in _GROUP_OPTIONS or COMPLETION_VARIABLE in os.environ
    app = application(COMMANDS if everything else (words[0],))
    result = app(words, prog_name="nanochat-tui", standalone_mode=False)
    return result if isinstance(result, int) else 0
