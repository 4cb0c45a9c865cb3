"""`nanochat-train export`: a checkpoint becomes a GGUF, an .mhc and a tokenizer, verified."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from nanochat_tui.cli.options import JsonOption
from nanochat_tui.errors import UserError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from nanochat_tui.export import ExportReport

VERIFICATION_TEXT = """use std::collections::HashMap;

/// Counts how often each word occurs.
pub fn count_words(text: &str) -> HashMap<String, usize> {
    let mut counts = HashMap::new();
    for word in text.split_whitespace() {
        *counts.entry(word.to_string()).or_insert(0) += 1;
    }
    counts
}
"""
"""What the exported file and the checkpoint are both run on."""


def export(
    checkpoint: Annotated[Path, typer.Option(help="Checkpoint folder, such as RUN/final.")],
    gguf: Annotated[Path, typer.Option(help="GGUF file to write.")],
    mhc: Annotated[
        Path | None, typer.Option(help=".mhc sidecar to write; beside the GGUF by default.", show_default=False)
    ] = None,
    tokenizer: Annotated[
        Path | None, typer.Option(help="tokenizer.json; the shipped one by default.", show_default=False)
    ] = None,
    embedding: Annotated[Literal["Q8_0", "F16"], typer.Option(help="Type of embedding and head.")] = "Q8_0",
    ternary: Annotated[Literal["Q2_0", "PQ2_0"], typer.Option(help="Type of the ternary matrices.")] = "Q2_0",
    as_json: JsonOption = False,
) -> None:
    """Export a checkpoint, read the files back and compare: weights bit for bit, logits within activation rounding."""
    from nanochat_tui.export import export_model
    from nanochat_tui.model.shipped import shipped_tokenizer

    vocabulary = tokenizer or shipped_tokenizer()
    if vocabulary is None or not vocabulary.is_file():
        raise UserError(f"there is no tokenizer at {vocabulary}; give one with --tokenizer")
    gguf.parent.mkdir(parents=True, exist_ok=True)
    report = export_model(checkpoint, gguf, mhc or gguf.with_suffix(".mhc"), vocabulary, embedding, ternary)
    reference = _checkpoint_logits(checkpoint, gguf, embedding)
    if reference is not None:
        report = report.with_logits(reference, _engine_logits(gguf))
    if as_json:
        typer.echo(json.dumps(report.to_json(), indent=1))
    else:
        _print(report)


def _engine_logits(gguf: Path) -> NDArray[np.float32]:
    from nanochat_tui.engine.model import load

    model = load(gguf, kv="f32")
    return model.logits(model.encode(VERIFICATION_TEXT)[: model.config.context_length])


def _checkpoint_logits(checkpoint: Path, gguf: Path, embedding: str) -> NDArray[np.float32] | None:
    """Logits of the trainer's own forward pass; None, with a note, without PyTorch or where it rounds otherwise."""
    try:
        import torch
    except ImportError:
        typer.echo("note: without PyTorch the logits were not compared; weights were, bit for bit", err=True)
        return None
    if embedding != "Q8_0":
        typer.echo(
            "note: the trainer rounds its table to Q8_0, so logits were not compared with an F16 table", err=True
        )
        return None
    from nanochat_tui.engine.model import load
    from nanochat_tui.export import load_checkpoint
    from nanochat_tui.train.model import NanochatModel

    config, weights = load_checkpoint(checkpoint)
    model = NanochatModel(config)
    model.load_state_dict({name: torch.from_numpy(values) for name, values in weights.items()})
    ids = load(gguf).encode(VERIFICATION_TEXT)[: config.context_length]
    with torch.no_grad():
        logits: NDArray[np.float32] = model.logits(torch.tensor([ids]))[0].numpy()
    return logits


def _print(report: ExportReport) -> None:
    typer.echo(f"{report.gguf_path}  {report.gguf_bytes:,} bytes, {report.parameters:,} parameters")
    if report.mhc_path and report.mhc:
        gain = "verified" if report.mhc.ok else "NOT VERIFIED"
        typer.echo(f"{report.mhc_path}  {report.mhc_bytes:,} bytes, {gain}")
    typer.echo(f"{report.tokenizer_path}")
    typer.echo(
        f"{report.ternary_tensors} ternary tensors, {report.ternary_weights:,} weights equal bit for bit, "
        f"{report.zero_share:.1%} zeros; table rounded to {report.table_type} at {report.table_relative_rms:.2%} rms"
    )
    if report.logits:
        found = report.logits
        typer.echo(
            f"logits of {found.tokens} tokens: rms difference {found.relative_rms:.3%} of their deviation, "
            f"largest {found.max_difference:.4f}, same top token {found.same_top:.1%}"
        )
