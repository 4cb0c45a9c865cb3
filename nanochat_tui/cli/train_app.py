"""Commands of `nanochat-train`."""

from __future__ import annotations

import typer

from nanochat_tui.cli.train_export import export
from nanochat_tui.cli.train_prepare import prepare_data
from nanochat_tui.cli.train_run import init_config, train

app = typer.Typer(
    name="nanochat-train",
    help="Train ternary language models, prepare their data and export them.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
app.command()(train)
app.command("init-config")(init_config)
app.command("prepare-data")(prepare_data)
app.command()(export)
