"""`nanochat-tui eval list`: the evaluations that are kept."""

from __future__ import annotations

from pathlib import Path

from nanochat_tui.cli.json_output import json_text
from nanochat_tui.evaluate.kept import Kept, Shelf
from nanochat_tui.paths import evaluations_directory
from nanochat_tui.text import display_safe


def print_list(folder: Path | None, *, as_json: bool) -> None:
    """Print a line for each evaluation below a folder."""
    root = folder or evaluations_directory()
    found = Shelf(root).look()
    if as_json:
        print(json_text({"folder": str(root), "evaluations": [_to_json(one) for one in found]}))
        return
    if not found:
        print(f"no evaluations below {display_safe(str(root))}")
    for one in found:
        rate = one.rate()
        passed = f", passed {rate[0]:.1%} ({rate[1]:.1%} to {rate[2]:.1%})" if rate else ""
        of = f"{one.done:,} of {one.total:,}" if one.total else f"{one.done:,}"
        print(f"{display_safe(one.name)}: {one.state}, {display_safe(one.title)}, {of}{passed}")


def _to_json(one: Kept) -> dict[str, object]:
    rate = one.rate()
    return {
        "name": one.name,
        "folder": str(one.path),
        "state": one.state,
        "set": one.title,
        "model": one.model,
        "done": one.done,
        "total": one.total,
        "passed": one.passed,
        "rate": None if rate is None else rate[0],
        "interval_95": None if rate is None else list(rate[1:]),
    }
