"""`nanochat-tui convert`: the same weights in another file."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from nanochat_tui.cli.json_output import json_text
from nanochat_tui.cli.options import (
    I2sLayoutOption,
    JsonOption,
    MhcOption,
    TokenizerOption,
    check_file,
    find_model,
)
from nanochat_tui.errors import UserError
from nanochat_tui.text import display_safe

if TYPE_CHECKING:
    from nanochat_tui.formats.i2_s_layouts import Layout

Target = Literal["Q2_0", "PQ2_0", "PTQ1_0", "TQ1_0", "TQ2_0", "Q1_0", "I2_S", "STQ1_0"]


def convert(
    source: Annotated[str, typer.Argument(metavar="IN", help="A GGUF file, or one of the original (GUGF).")],
    target: Annotated[Path, typer.Argument(metavar="OUT", help="GGUF file to write.")],
    kind: Annotated[Target, typer.Option("--type", help="Type of the ternary tensors.")] = "Q2_0",
    round_scales: Annotated[
        bool, typer.Option("--round-scales", help="Let float32 scales of I2_S be rounded to float16.")
    ] = False,
    i2s_layout: I2sLayoutOption = None,
    mhc: MhcOption = None,
    tokenizer: TokenizerOption = None,
    force: Annotated[bool, typer.Option("--force", "-f", help="Replace OUT if it is there already.")] = False,
    json: JsonOption = False,
) -> None:
    """Repack ternary weights into another type, exactly or not at all; Q2_0 is what llama.cpp loads."""
    from nanochat_tui.formats.gguf.header import ORIGINAL_MAGIC

    path = find_model(source)
    with path.open("rb") as handle:
        original = handle.read(4) == ORIGINAL_MAGIC
    check_file(mhc, "mHC sidecar")
    check_file(tokenizer, "tokenizer")
    _require_place(path, target, force)
    if original:
        found, lines, notes = _original(path, target, kind, mhc, tokenizer)
    elif mhc is not None or tokenizer is not None:
        raise UserError("--mhc and --tokenizer are for files of the original (GUGF), which lack them; leave them out.")
    else:
        found, lines, notes = _repack(path, target, kind, round_scales, i2s_layout or "x86")
    for note in notes:
        typer.echo(f"note: {note}", err=True)
    if json:
        typer.echo(json_text(found))
    else:
        typer.echo("\n".join(lines))


def _require_place(source: Path, target: Path, force: bool) -> None:
    name = display_safe(str(target))
    if target.is_dir():
        raise UserError(f"{name} is a folder; give the name of a file to write.")
    if target.exists() and target.samefile(source):
        raise UserError("A model cannot be converted onto itself; give another name.")
    if target.exists() and not force:
        raise UserError(f"There is a file {name} already; give another name, or replace it with --force.")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        folder, reason = display_safe(str(target.parent)), error.strerror or str(error)
        raise UserError(f"The folder {folder} cannot be made ({reason}); choose another place.") from error


def _repack(
    path: Path, target: Path, kind: Target, round_scales: bool, i2s_layout: Layout
) -> tuple[dict[str, object], list[str], tuple[str, ...]]:
    from nanochat_tui.export.repack import convert as repack

    done = repack(path, target, kind, round_scales=round_scales, i2_s=i2s_layout)
    types = ", ".join(f"{count} {name}" for name, count in done.types.items())
    compared = "every weight compared and equal" if not done.scale_error else "scales rounded, trits equal"
    lines = [
        f"{display_safe(str(target))}: {types} tensors to {kind}, {done.kept} others kept",
        f"{done.source_bytes:,} bytes became {done.target_bytes:,}; {done.weights:,} weights, {compared}",
    ]
    return asdict(done), lines, done.notes


def _original(
    path: Path, target: Path, kind: Target, mhc: Path | None, tokenizer: Path | None
) -> tuple[dict[str, object], list[str], tuple[str, ...]]:
    from nanochat_tui.export.original import convert_gugf
    from nanochat_tui.model.tokenizer import END_OF_TEXT, load_tokenizer, to_gguf_metadata

    if kind not in ("Q2_0", "PQ2_0"):
        raise UserError("A file of the original becomes Q2_0 or PQ2_0; convert that once more for another type.")
    extra = {}
    notes: tuple[str, ...] = ()
    if tokenizer is None:
        notes = ("the original has no tokenizer inside; give one with --tokenizer here, or whenever the model is run",)
    else:
        made = load_tokenizer(tokenizer)
        end = made.token_to_id(END_OF_TEXT)
        if end is None:
            raise UserError(
                f"{display_safe(str(tokenizer))} has no token {END_OF_TEXT}; give the model's own tokenizer."
            )
        extra = to_gguf_metadata(made, bos=end, eos=end, add_bos=False)
    done = convert_gugf(path, target, mhc, ternary=kind, extra=extra)
    notes += done.notes
    found: dict[str, object] = {"tensors": len(done.tensors), "scale_error": done.scale_error, "notes": notes}
    size = target.stat().st_size
    lines = [
        f"{display_safe(str(target))}: {len(done.tensors)} tensors, {size:,} bytes, valid GGUF",
        f"trits are exact; scales became float16, which changes them by up to {done.scale_error:.2e}",
    ]
    return found, lines, notes
