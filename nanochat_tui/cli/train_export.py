"""`nanochat-train export`: a checkpoint becomes a GGUF, an .mhc and a tokenizer, verified."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from nanochat_tui.cli.json_output import json_text
from nanochat_tui.cli.options import JsonOption
from nanochat_tui.cli.train_export_lora import export_lora
from nanochat_tui.errors import UserError
from nanochat_tui.text import display_safe

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
        Path | None, typer.Option(help=".mhc sidecar to write; next to the GGUF by default.", show_default=False)
    ] = None,
    tokenizer: Annotated[
        Path | None,
        typer.Option(help="tokenizer.json; by default the one the data was made with.", show_default=False),
    ] = None,
    embedding: Annotated[Literal["Q8_0", "F16"], typer.Option(help="Type of embedding and head.")] = "Q8_0",
    ternary: Annotated[Literal["Q2_0", "PQ2_0"], typer.Option(help="Type of the ternary matrices.")] = "Q2_0",
    nextn: Annotated[
        bool,
        typer.Option(
            "--nextn",
            help="Also write the blocks for further tokens of a model trained with --mtp-depth, for drafting.",
        ),
    ] = False,
    compare: Annotated[
        bool, typer.Option(help="Also run the file and the checkpoint on a text and compare their logits.")
    ] = True,
    arch: Annotated[
        Literal["nanochat", "llama"],
        typer.Option(help="llama: for llama.cpp, of a model trained with a plain residual."),
    ] = "nanochat",
    force: Annotated[bool, typer.Option("--force", "-f", help="Replace files that are there already.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Export a checkpoint, read the files back and compare: weights bit for bit, logits within activation rounding."""
    from nanochat_tui.export import export_model, tokenizer_for
    from nanochat_tui.export.checkpoint import lora_settings

    if lora_settings(checkpoint) is not None:
        if mhc is not None or tokenizer is not None or nextn or arch == "llama":
            raise UserError("an adapter has no --mhc, --tokenizer, --nextn or --arch llama; leave them out")
        _require_new(gguf, force=force)
        export_lora(checkpoint, gguf, VERIFICATION_TEXT if compare else None, as_json=as_json)
        return
    vocabulary, known = tokenizer_for(checkpoint, tokenizer)
    sidecar = None if arch == "llama" else mhc or gguf.with_suffix(".mhc")
    _require_new(gguf, sidecar, force=force)
    if arch == "llama":
        if mhc is not None:
            raise UserError("the architecture llama has no mHC, so --mhc has no place here; leave it out")
        if ternary != "Q2_0":
            raise UserError(f"llama.cpp does not know {ternary}; leave --ternary out")
        if nextn:
            raise UserError("--nextn has no place in the architecture llama; leave it out, or use --arch nanochat")
        _export_llama(checkpoint, gguf, vocabulary, embedding, compare=compare, as_json=as_json)
        _say_of_tokenizer(vocabulary, known)
        return

    def check(place: Path, found: ExportReport) -> ExportReport:
        return found.with_logits(*_compare(checkpoint, place, embedding))

    report = export_model(
        checkpoint, gguf, sidecar, vocabulary, embedding, ternary, nextn=nextn, check=check if compare else None
    )
    _say_of_tokenizer(vocabulary, known)
    if as_json:
        typer.echo(json_text(report.to_json()))
    else:
        _print(report)


def _require_new(*paths: Path | None, force: bool) -> None:
    for path in paths:
        if path is not None and path.exists() and not force:
            raise UserError(
                f"there is a file {display_safe(str(path))} already; give another name, or replace it with --force"
            )


def _say_of_tokenizer(path: Path, known: bool) -> None:
    name = display_safe(str(path))
    words = (
        "the one the data was made with" if known else "the checkpoint does not say whether its data was made with it"
    )
    typer.echo(f"tokenizer {name}: {words}", err=True)


def _export_llama(
    checkpoint: Path, gguf: Path, vocabulary: Path, embedding: Literal["Q8_0", "F16"], *, compare: bool, as_json: bool
) -> None:
    from nanochat_tui.export import ExportError, export_llama
    from nanochat_tui.export.verify import MAX_DIFFERENCE

    agreement: list[LogitsAgreement] = []

    def check(place: Path) -> None:
        exact, _ = _compare(checkpoint, place, embedding)
        agreement.append(exact)
        if exact.max_difference > MAX_DIFFERENCE:
            raise ExportError(
                f"{gguf.name} does not compute what the checkpoint computes: logits differ by up to "
                f"{exact.max_difference:.2g} ({MAX_DIFFERENCE:.0e} is allowed)"
            )

    found = export_llama(checkpoint, gguf, vocabulary, embedding, check=check if compare else None)
    if agreement:
        found |= {"logits_max_difference": agreement[0].max_difference, "logits_tokens": agreement[0].tokens}
    if as_json:
        typer.echo(json_text(found))
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
    from nanochat_tui.engine.generate.model import load
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
