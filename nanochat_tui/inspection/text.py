"""An inspection as lines of plain text, safe to print on a terminal."""

from __future__ import annotations

from collections.abc import Sequence

from nanochat_tui.inspection.comparison import Comparison, Status, TensorChange
from nanochat_tui.inspection.mhc_report import MhcInspection
from nanochat_tui.inspection.summary import Summary
from nanochat_tui.inspection.ternary_stats import TernaryStatistics, total
from nanochat_tui.model.architectures.description import Architecture
from nanochat_tui.text import display_safe

_MIB = 1 << 20


def summary_lines(
    summary: Summary,
    metadata: bool = False,
    trits: tuple[Sequence[TernaryStatistics], int] | None = None,
    memory: str | None = None,
) -> list[str]:
    """Return what a file is, for people.

    metadata: whether every key of the file is added. trits: statistics of some ternary tensors, and how many there are.
    memory: what running it takes.
    """
    lines = [
        _row("file", display_safe(str(summary.path)) if summary.path else "(bytes)"),
        _row("size", f"{summary.bytes:,} bytes ({summary.bytes / _MIB:.1f} MiB), GGUF version {summary.version}"),
        _row("name", display_safe(summary.name or "none")),
        _row("architecture", display_safe(summary.architecture or "none")),
        _row("parameters", f"{summary.parameters:,} at {summary.bits_per_weight:.2f} bits"),
        _row(
            "as F16",
            f"{summary.f16_bytes:,} bytes ({summary.f16_bytes / max(1, summary.data_bytes):.1f} times as many)",
        ),
    ]
    data = max(1, summary.data_bytes)
    for index, (name, use) in enumerate(summary.types.items()):
        held = f"{use.tensors} tensors, {use.parameters:,} weights, {use.bytes:,} bytes ({use.bytes / data:.0%})"
        lines.append(_row("" if index else "types", f"{display_safe(name)}: {held}"))
    if trits is not None and trits[0]:
        lines.append(_row("trits", trits_line(*trits)))
    if summary.shape is not None:
        lines.append(_row("shape", shape_line(summary.shape)))
    if summary.context_length is not None:
        lines.append(_row("context", f"{summary.context_length:,} tokens"))
    tokenizer = summary.tokenizer
    if tokenizer is not None:
        kind = display_safe(tokenizer.kind) + (f" ({display_safe(tokenizer.pre)})" if tokenizer.pre else "")
        lines.append(_row("tokenizer", f"{kind}, {tokenizer.tokens:,} tokens, {tokenizer.template_line()}"))
    if summary.mhc is not None:
        lines += mhc_lines(summary.mhc)
    if summary.rotation is not None:
        lines.append(_row("rotation", summary.rotation.sentence()))
    for index, text in enumerate(remarks(summary)):
        lines.append(_row("" if index else "notes", text))
    if memory is not None:
        lines.append(_row("memory", memory))
    lines.append(_row("runs", "yes" if summary.reason is None else f"no: {summary.reason}"))
    if metadata:
        lines += ["", "metadata"]
        lines += [f"  {display_safe(key)} = {_shown(value)}" for key, value in summary.metadata.items()]
    return lines


def remarks(summary: Summary) -> list[str]:
    """Return the sentences that a person should read before using a file: its traps, and what was corrected."""
    told = any(trap.kind == "bitnet_activation" for trap in summary.traps)
    notes = () if summary.shape is None or told else summary.shape.notes
    if any(trap.kind == "mtp" for trap in summary.traps):
        notes = tuple(note for note in notes if "(nextn)" not in note)  # said by the trap
    return [*(trap.text for trap in summary.traps), *(display_safe(note, 500) for note in notes)]


def shape_line(shape: Architecture) -> str:
    """Return what a model is made of, in a line."""
    parts = [f"{shape.n_layers} blocks of width {shape.dim}"]
    if shape.recurrences:
        parts[0] += f" ({len(shape.recurrences)} of them recurrent)"
    if shape.attentions:
        heads = shape.attentions[0]
        parts.append(f"{heads.heads} heads of {heads.head_dim} ({heads.kv_heads} for keys and values)")
    if shape.layers:
        ffn = shape.layers[0].ffn
        parts.append(f"feed-forward {ffn.hidden}" + (f" ({ffn.used} of {ffn.experts} experts)" if ffn.experts else ""))
    parts.append("tied head" if shape.tied else "own head")
    return ", ".join(parts)


def trits_line(parts: Sequence[TernaryStatistics], of: int) -> str:
    """Return how the trits of some tensors are distributed, in a line; `of`: how many ternary tensors there are."""
    found = total(parts)
    minus, zero, plus, two = found.shares
    values = f"-1 {minus:.1%}, 0 {zero:.1%}, +1 {plus:.1%}" + (f", +2 {two:.1%}" if two else "")
    of_what = f"all {of}" if len(parts) == of else f"{len(parts)} of {of}"
    return (
        f"{values}; {found.entropy:.3f} bits of information each, {found.dead_rows} dead rows, in {of_what} ternary "
        "tensors (more with --ternary)"
    )


def mhc_lines(found: MhcInspection) -> list[str]:
    """Return the verification of mHC records, for people."""
    if found.error is not None:
        return [_row("mHC", f"NOT VERIFIED: {found.error}")]
    lines = [_row("mHC", f"verified: {found.records} records over {found.streams} streams (version {found.version})")]
    report = found.report
    if report is None:
        return lines
    rows, columns = report.max_row_error, report.max_column_error
    lines += [
        _row("", f"rows and columns of the mixing sum to 1 within {max(rows, columns):.1e}"),
        _row(
            "",
            "composed over depth within "
            f"{max(report.composed_row_error, report.composed_column_error):.1e}; "
            f"{report.stream_memory:.1%} of a difference between streams survives",
        ),
        _row(
            "",
            f"real gain {report.gain_per_sublayer:.2f} per sub-layer with reading and writing "
            f"(a plain residual has 2), largest {float(report.gains.max(initial=0.0)):.2f}",
        ),
    ]
    if not report.alive:
        lines.append(_row("", "the streams stay equal for ever, so the mixing has no effect (written alike to all)"))
    return lines


def ternary_lines(parts: list[TernaryStatistics]) -> list[str]:
    """Return a table of trit statistics, a line per tensor and one for all."""
    if not parts:
        return ["no ternary tensors"]
    width = min(40, max(len(part.name) for part in parts))
    lines = [f"{'tensor':<{width}}      -1       0      +1   bits  dead rows  scale 5% .. median .. 95%"]
    for part in [*parts, total(parts)]:
        minus, zero, plus, two = part.shares
        q = part.scale_quantiles
        scales = f"{q[1]:.3g} .. {q[3]:.3g} .. {q[5]:.3g}" if q else ""
        extra = f"  +2: {two:.1%}" if two else ""
        extra += f"  {part.bad_scales} bad scales" if part.bad_scales else ""
        lines.append(
            f"{display_safe(part.name)[:width]:<{width}}  {minus:6.1%}  {zero:6.1%}  {plus:6.1%}  {part.entropy:5.3f}"
            f"  {part.dead_rows:>9}  {scales}{extra}".rstrip()
        )
    return lines


def comparison_lines(found: Comparison) -> list[str]:
    """Return what changed from one file to another, for people."""
    a, b = (display_safe(str(path)) if path else "(bytes)" for path in (found.before, found.after))
    lines = [_row("before", a), _row("after", b)]
    if found.same:
        return [*lines, "", "keys and tensors are all equal"]
    lines.append(
        _row(
            "keys",
            f"{len(found.metadata_added)} added, {len(found.metadata_removed)} removed, "
            f"{len(found.metadata_changed)} changed",
        )
    )
    statuses: tuple[Status, ...] = ("equal", "changed", "added", "removed", "reshaped", "unknown")
    counts = [f"{found.count(status)} {status}" for status in statuses if found.count(status)]
    lines.append(_row("tensors", ", ".join(counts) or "none"))
    if found.trits:
        share = found.flipped / found.trits
        lines.append(_row("trits", f"{found.flipped:,} of {found.trits:,} flipped ({share:.2%})"))
    lines += ["", *(f"+ {display_safe(key)} = {_shown(value)}" for key, value in found.metadata_added.items())]
    lines += [f"- {display_safe(key)} = {_shown(value)}" for key, value in found.metadata_removed.items()]
    for key, (old, new) in found.metadata_changed.items():
        lines.append(f"~ {display_safe(key)} = {_shown(old)} -> {_shown(new)}")
    for layer, (flipped, trits) in found.layers.items():
        name = "no layer" if layer is None else f"layer {layer}"
        lines.append(f"  {name:<10} {flipped / trits:8.2%} of {trits:,} trits flipped")
    lines += [change_line(tensor) for tensor in found.tensors if tensor.status != "equal"]
    return lines


def change_line(change: TensorChange) -> str:
    """Return what happened to one tensor, in a line."""
    name = display_safe(change.name)
    if change.before is None or change.after is None:
        info = change.after or change.before
        what = "" if info is None else f"{info.type.name} {list(info.shape)}"
        return f"{'+' if change.before is None else '-'} {name} {what}"
    old, new = change.before, change.after
    if change.status == "reshaped":
        return f"~ {name} {list(old.shape)} -> {list(new.shape)}"
    types = old.type.name if old.type.name == new.type.name else f"{old.type.name} -> {new.type.name}"
    if change.flips is not None:
        f = change.flips
        return (
            f"~ {name} {types}: {f.share:.2%} of trits flipped ({f.to_zero:,} to zero, {f.from_zero:,} from zero, "
            f"{f.sign_flips:,} sign), scales {f.scale_change:.2%}"
        )
    if change.relative is None:
        return f"~ {name} {types}: bytes differ and cannot be decoded"
    return f"~ {name} {types}: values differ by {change.relative:.2%} (rms {change.rms:.3g})"


def _row(label: str, text: str) -> str:
    return f"{label:<13} {text}"


def _shown(value: object) -> str:
    if isinstance(value, dict):
        first = ", ".join(display_safe(repr(item), 40) for item in value["first"])
        more = ", …" if value["length"] > len(value["first"]) else ""
        return f"{value['type']} of {value['length']:,}: {first}{more}"
    return display_safe(str(value), 120)
