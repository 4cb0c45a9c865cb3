"""`nanochat-train export`: a checkpoint becomes a GGUF, an .mhc and a tokenizer, verified."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from nanochat_tui.cli.options import JsonOption
from nanochat_tui.errors import UserError

if TYPE_CHECKING:
    from nanochat_tui.export import ExportReport, LogitsAgreement

_KINDS: tuple[Literal["float", "int8"], ...] = ("float", "int8")

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
    compare: Annotated[
        bool, typer.Option(help="Also run the file and the checkpoint on a text and compare their logits.")
    ] = True,
    arch: Annotated[
        Literal["nanochat", "llama"],
        typer.Option(help="llama: for llama.cpp, of a model trained with a plain residual."),
    ] = "nanochat",
    as_json: JsonOption = False,
) -> None:
    """Export a checkpoint, read the files back and compare: weights bit for bit, logits within activation rounding."""
    from nanochat_tui.export import export_model
    from nanochat_tui.model.shipped import shipped_tokenizer

    vocabulary = tokenizer or shipped_tokenizer()
    if vocabulary is None or not vocabulary.is_file():
        raise UserError(f"there is no tokenizer at {vocabulary}; give one with --tokenizer")
    gguf.parent.mkdir(parents=True, exist_ok=True)
    if arch == "llama":
        if mhc is not None:
            raise UserError("the architecture llama has no mHC, so --mhc has no place here; leave it out")
        if ternary != "Q2_0":
            raise UserError(f"llama.cpp does not know {ternary}; leave --ternary out")
        _export_llama(checkpoint, gguf, vocabulary, embedding, compare=compare, as_json=as_json)
        return
    report = export_model(checkpoint, gguf, mhc or gguf.with_suffix(".mhc"), vocabulary, embedding, ternary)
    if compare:
        report = report.with_logits(*_compare(checkpoint, gguf, embedding))
    if as_json:
        typer.echo(json.dumps(report.to_json(), indent=1))
    else:
        _print(report)


def _export_llama(
    checkpoint: Path, gguf: Path, vocabulary: Path, embedding: Literal["Q8_0", "F16"], *, compare: bool, as_json: bool
) -> None:
    from nanochat_tui.export import ExportError, export_llama
    from nanochat_tui.export.verify import MAX_DIFFERENCE

    found = export_llama(checkpoint, gguf, vocabulary, embedding)
    if compare:
        exact, _ = _compare(checkpoint, gguf, embedding)
        if exact.max_difference > MAX_DIFFERENCE:
            raise ExportError(
                f"{gguf.name} does not compute what the checkpoint computes: logits differ by up to "
                f"{exact.max_difference:.2g} ({MAX_DIFFERENCE:.0e} is allowed)"
            )
        found |= {"logits_max_difference": exact.max_difference, "logits_tokens": exact.tokens}
    if as_json:
        typer.echo(json.dumps(found, indent=1))
        return
    typer.echo(f"{gguf}  {found['gguf_bytes']:,} bytes, {found['parameters']:,} parameters, architecture llama")
    typer.echo(f"{found['ternary_weights']:,} ternary weights equal bit for bit, rows of queries and keys in its order")
    if compare:
        typer.echo(
            f"logits of {found['logits_tokens']} tokens against the checkpoint: largest difference "
            f"{found['logits_max_difference']:.1e} with float activations"
        )


def _compare(checkpoint: Path, gguf: Path, embedding: str) -> tuple[LogitsAgreement, LogitsAgreement]:
    """Run the file on the engine and the checkpoint in NumPy, with float and with int8 activations."""
    from nanochat_tui.engine.model import load
    from nanochat_tui.export import compare_logits, load_checkpoint, reference_logits

    config, weights = load_checkpoint(checkpoint)
    exact, rounded = (load(gguf, kv="f32", activations=kind) for kind in _KINDS)
    ids = rounded.encode(VERIFICATION_TEXT)[: config.context_length]
    return (
        compare_logits(reference_logits(config, weights, ids, embedding, int8=False), exact.logits(ids)),
        compare_logits(reference_logits(config, weights, ids, embedding), rounded.logits(ids)),
    )


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
    if report.logits and report.logits_int8:
        typer.echo(
            f"logits of {report.logits.tokens} tokens against the checkpoint: largest difference "
            f"{report.logits.max_difference:.1e} with float activations; with int8 ones rms "
            f"{report.logits_int8.relative_rms:.2%} of their deviation, same top {report.logits_int8.same_top:.1%}"
        )
