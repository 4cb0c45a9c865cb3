"""`nanochat-train export` of a checkpoint that trained an adapter (--lora-rank)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import typer

from nanochat_tui.cli.json_output import json_text
from nanochat_tui.text import display_safe

if TYPE_CHECKING:
    from nanochat_tui.export import LogitsAgreement


def export_lora(checkpoint: Path, gguf: Path, text: str | None, *, as_json: bool) -> None:
    """Write the adapter of a checkpoint; with `text` run its model with it on that, and compare with the checkpoint.

    Raises UserError as `export.adapter.export_adapter` does, and if the logits are others.
    """
    from nanochat_tui.export import ExportError
    from nanochat_tui.export.adapter import export_adapter
    from nanochat_tui.export.verify import MAX_DIFFERENCE

    agreement: list[LogitsAgreement] = []

    def check(place: Path, model: Path) -> None:
        if text is None:
            return
        agreement.append(_compare(checkpoint, place, model, text))
        if agreement[0].max_difference > MAX_DIFFERENCE:
            raise ExportError(
                f"{display_safe(model.name)} with the adapter does not compute what the checkpoint computes: logits "
                f"differ by up to {agreement[0].max_difference:.2g} ({MAX_DIFFERENCE:.0e} is allowed); is it the file "
                "that the run started from?"
            )

    found = export_adapter(checkpoint, gguf, check)
    if agreement:
        found |= {"logits_max_difference": agreement[0].max_difference, "logits_tokens": agreement[0].tokens}
    if as_json:
        typer.echo(json_text(found))
        return
    shown = display_safe(str(gguf))
    typer.echo(f"{shown}  {found['gguf_bytes']:,} bytes, {found['parameters']:,} parameters, rank {found['rank']}")
    if agreement:
        typer.echo(
            f"logits of {agreement[0].tokens} tokens against the checkpoint: largest difference "
            f"{agreement[0].max_difference:.1e} with float activations"
        )
    typer.echo(f"use it: nanochat-tui chat {display_safe(str(found['model']))} --lora {shown}")


def _compare(checkpoint: Path, adapter: Path, model: Path, text: str) -> LogitsAgreement:
    """Run a model with an adapter on the engine, and the adapter's checkpoint in NumPy, with float activations."""
    from nanochat_tui.engine.generate.model import load
    from nanochat_tui.engine.weights.adapters import LoraFile
    from nanochat_tui.export import compare_logits, reference_logits
    from nanochat_tui.export.checkpoint import load_adapter

    found, config, weights = load_adapter(checkpoint)
    with load(model, kv="f32", activations="float", lora=[LoraFile(adapter)]) as exact:
        ids = exact.encode(text)[: config.context_length]
        added = {name: np.float32(found.scale(name)) * (up @ down) for name, (down, up) in found.pairs.items()}
        wanted = reference_logits(config, weights, ids, int8=False, added=added)
        return compare_logits(wanted, exact.logits(ids))
