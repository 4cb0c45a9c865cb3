"""`nanochat-tui doctor`: what this machine and this installation are, for people and for bug reports."""

from __future__ import annotations

import typer

from nanochat_tui.cli.json_output import json_text
from nanochat_tui.cli.options import JsonOption


def doctor(json: JsonOption = False) -> None:
    """Show versions, processor features, the kernel chosen, GPU, paths and caches."""
    from nanochat_tui.bench.doctor import diagnose
    from nanochat_tui.text import printable

    findings = diagnose()
    if json:
        typer.echo(json_text(findings))
        return
    for section, rows in findings.items():
        typer.echo(section)
        width = max(map(len, rows), default=0)
        for key, value in rows.items():
            shown = "none" if value is None else ", ".join(map(str, value)) if isinstance(value, list) else str(value)
            typer.echo(f"  {key.replace('_', ' '):<{width}}  {printable(shown)}")
