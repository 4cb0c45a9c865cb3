"""`nanochat-train finetune`: a model is taught to answer, on conversations in JSON lines."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Annotated, Any

import typer

from nanochat_tui.cli.train_options import config_parameters, merged_config
from nanochat_tui.cli.train_run import restart_if_needed, train_with
from nanochat_tui.errors import UserError
from nanochat_tui.runs.config import TrainConfig
from nanochat_tui.runs.directory import RunDirectory
from nanochat_tui.text import display_safe

DATA = "data"
"""Folder of a run for the tokens of its conversations."""
RATES = ("muon_lr", "embed_lr", "scalar_lr")
SHARE_OF_RATE = 0.1
"""Of the learning rates of pre-training: the weights are good already, and are only to move a little."""
OWN = ("init_from", "data_path", "dataset", "val_path", "token_dtype", "config")
"""Settings that the command decides itself."""


def defaults() -> dict[str, object]:
    """The settings of a fine-tuning where it differs from a pre-training."""
    fields = TrainConfig.model_fields
    rates = {name: float(f"{SHARE_OF_RATE * fields[name].default:g}") for name in RATES}
    return {**rates, "warmup_steps": 20, "decay_fraction": 0.5, "eval_interval": 200, "checkpoint_interval": 200}


def finetune(
    files: Annotated[
        list[Path],
        typer.Argument(
            metavar="DATA...",
            help='JSON lines: {"messages": [{"role", "content"}, ...]}, or {"prompt", "completion"}.',
        ),
    ],
    *,
    start: Annotated[
        Path, typer.Option("--from", metavar="CHECKPOINT|GGUF", help="Model to start from.", show_default=False)
    ],
    checkpoint_dir: Annotated[Path, typer.Option(help="Run directory to write.", show_default=False)],
    val: Annotated[
        Path | None, typer.Option(help="Conversations for validation; by default 2 % of those given.")
    ] = None,
    template: Annotated[
        str | None,
        typer.Option(
            help="Chat template: a Jinja file, or chatml, llama3, bitnet, falcon3, alpaca, instruct, plain; by default "
            "the model's own, else instruct."
        ),
    ] = None,
    **options: Any,
) -> None:
    """Fine-tune a model on conversations. The loss is that of the answers; --held-out measures what is forgotten.

    The run is one like any other: watch it, and continue it with nanochat-train train --resume. An export holds the
    chat template. Rates are a tenth of pre-training's. Exit codes as of train.
    """
    from nanochat_tui.cli.options import find_template
    from nanochat_tui.export.start import starting_text
    from nanochat_tui.model.chat.families import INSTRUCT
    from nanochat_tui.train.chat_data import ChatOptions, prepare_chat

    if RunDirectory(checkpoint_dir).checkpoints():
        shown = display_safe(str(checkpoint_dir))
        raise UserError(
            f"{shown} holds a run already; continue it with nanochat-train train --resume {shown}, or name another"
        )
    for path in (*files, *([] if val is None else [val])):
        if not path.is_file():
            raise UserError(f"there is no file {display_safe(str(path))}; check the path")
    place = checkpoint_dir / DATA
    fixed = {"init_from": start, "data_path": place, "dataset": "tokens"}
    config = merged_config(None, {**defaults(), **{k: v for k, v in options.items() if v is not None}, **fixed})
    restart_if_needed()  # before the work, which would be done twice
    text = starting_text(start)
    report = prepare_chat(
        ChatOptions(
            files=tuple(files),
            start=text,
            template=find_template(template, "--template") or text.template or INSTRUCT,
            longest=config.sequence_length,
            output=place,
            val=val,
        )
    )
    learned = report.learned["train"]
    typer.echo(
        f"{report.conversations['train']:,} conversations to learn from, {report.tokens['train']:,} tokens, "
        f"{learned:,} of them answers; {report.conversations['val']:,} for validation"
        + (f"; {report.too_long:,} too long for {config.sequence_length} tokens" if report.too_long else ""),
        err=True,
    )
    train_with(config, checkpoint_dir, None)


def _parameters() -> list[inspect.Parameter]:
    own = inspect.signature(finetune, eval_str=True).parameters.values()
    settings = [p for p in config_parameters() if p.name not in OWN]
    return [*(p for p in own if p.kind is not p.VAR_KEYWORD), *settings]


finetune.__signature__ = inspect.Signature(_parameters())  # type: ignore[attr-defined]
finetune.__annotations__ |= {p.name: p.annotation for p in _parameters()}
