"""`nanochat-train init-config` and `plan`: a configuration file to edit, and what a configuration needs."""

from __future__ import annotations

import inspect
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from nanochat_tui.cli.json_output import json_text
from nanochat_tui.cli.options import JsonOption
from nanochat_tui.cli.train_options import config_parameters, merged_config
from nanochat_tui.errors import UserError
from nanochat_tui.files import atomic_write_text
from nanochat_tui.runs.config_file import settings_text
from nanochat_tui.runs.dataset_check import check_dataset
from nanochat_tui.runs.identity import fitted
from nanochat_tui.runs.memory import Memory
from nanochat_tui.runs.plan import Plan, make_plan
from nanochat_tui.runs.presets import PRESETS
from nanochat_tui.text import display_safe

_NO_DATA = Path("no data yet")
"""Stands in for the data of a plan, which is made before there are any."""


def init_config(
    name: Annotated[str, typer.Argument(help=f"Named configuration: {', '.join(PRESETS)}.")] = "d20",
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="File to write; NAME.toml by default, - for stdout.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a file that is there.")] = False,
) -> None:
    """Write a named configuration as a commented TOML file, to edit and give to train --config."""
    preset = PRESETS.get(name)
    if preset is None:
        raise UserError(
            f"there is no configuration {display_safe(name)}; name one of {', '.join(PRESETS)}; "
            "the file to write comes after --output"
        )
    text = settings_text(preset.values, f"{preset.name}: {preset.purpose}.")
    if str(output) == "-":
        sys.stdout.write(text)
        return
    path = output if output is not None else Path(f"{name}.toml")
    shown = display_safe(str(path))
    if path.exists() and not force:
        raise UserError(f"{shown} exists already; name another file, or pass --force to replace it")
    atomic_write_text(path, text)
    typer.echo(f"wrote {shown}", err=True)


def plan(
    config: Annotated[str, typer.Argument(metavar="CONFIG", help="Named configuration, TOML file or run directory.")],
    *,
    tok_per_s: Annotated[
        float | None, typer.Option(min=1e-9, help="Tokens per second of one device.", show_default=False)
    ] = None,
    devices: Annotated[int, typer.Option(min=1, help="Devices that share the work.")] = 1,
    hours: Annotated[
        float | None, typer.Option(min=1e-9, help="Ask how many devices finish in this time.", show_default=False)
    ] = None,
    as_json: JsonOption = False,
    **options: Any,
) -> None:
    """Say what a configuration needs: parameters, arithmetic, memory per device, tokens, hours and devices.

    Every option of train changes the configuration first; --tokens sets the length.
    """
    settings = merged_config(config, options, data_path=_NO_DATA)
    tokens = None
    if settings.dataset == "tokens" and settings.data_path != _NO_DATA:
        settings = fitted(settings)
        tokens = check_dataset(settings).train_tokens
    found = make_plan(settings, train_tokens=tokens, tokens_per_second=tok_per_s, devices=devices, hours=hours)
    if as_json:
        typer.echo(json_text({**asdict(found), "memory_bytes": found.memory.total}))
        return
    for name, text in plan_lines(found):
        typer.echo(f"{name:<14} {text}")


plan.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
    [
        *(p for p in inspect.signature(plan, eval_str=True).parameters.values() if p.kind is not p.VAR_KEYWORD),
        *config_parameters(),
    ]
)
plan.__annotations__ |= {p.name: p.annotation for p in config_parameters()}


def plan_lines(found: Plan) -> list[tuple[str, str]]:
    """A plan in words: name and text of each line."""
    active = f", {found.active_parameters:,} active" if found.active_parameters != found.parameters else ""
    many = f" on {found.devices} devices" if found.devices > 1 else ""
    lines = [
        ("parameters", f"{found.parameters:,}{active}, {found.ternary_parameters:,} of them ternary"),
        ("arithmetic", f"{found.flops_per_token / 1e9:,.3f} GFLOP per token, {found.flops:.3g} FLOP in all"),
        (
            "tokens",
            f"{found.tokens:,} ({found.tokens_basis}), {found.steps:,} steps of {found.tokens_per_step:,}{many}",
        ),
        ("memory", _memory(found.memory)),
    ]
    if found.sharded_memory is not None:
        lines.append(("sharded", f"{_memory(found.sharded_memory)}; per device, of {found.devices}"))
    lines.append(("checkpoint", _size(found.checkpoint_bytes)))
    if found.hours is None or found.device_hours is None:
        lines.append(("time", "follows from a speed; give it with --tok-per-s"))
    else:
        speed = f"{found.tokens_per_second:,.0f} tokens/s"
        lines.append(("time", f"{found.hours:,.1f} hours{many} at {speed}, {found.device_hours:,.1f} device hours"))
    if found.devices_for_hours is not None:
        lines.append(("devices", f"{found.devices_for_hours:,} for the time asked for, if their speeds add up"))
    return lines


def _memory(memory: Memory) -> str:
    parts = {
        "weights": memory.weights,
        "gradients": memory.gradients,
        "optimizer": memory.optimizer,
        "activations": memory.activations,
        "PyTorch": memory.process,
    }
    return f"{_size(memory.total)}: " + ", ".join(f"{name} {_size(count)}" for name, count in parts.items())


def _size(count: float) -> str:
    return f"{count / 1e9:,.2f} GB" if count >= 1e9 else f"{count / 1e6:,.1f} MB"
