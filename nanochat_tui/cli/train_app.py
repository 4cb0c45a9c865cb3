"""Commands of `nanochat-train`."""

from __future__ import annotations

import typer

from nanochat_tui.cli.train_config import init_config, plan
from nanochat_tui.cli.train_export import export
from nanochat_tui.cli.train_finetune import finetune
from nanochat_tui.cli.train_prepare import prepare_data, tokenizer
from nanochat_tui.cli.train_rl import rl
from nanochat_tui.cli.train_run import train
from nanochat_tui.cli.train_submit import job, submit
from nanochat_tui.cli.train_track import track

app = typer.Typer(
    name="nanochat-train",
    help="Train ternary language models, prepare their data and export them.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
app.command()(train)
app.command()(finetune)
app.command()(rl)
app.command("init-config")(init_config)
app.command()(plan)
app.command("prepare-data")(prepare_data)
app.command()(tokenizer)
app.command()(export)
app.command()(track)
app.command()(submit)
app.command()(job)
