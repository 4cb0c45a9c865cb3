"""What the live panel says of a model's inside, as rows of text: pure, no widgets."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich.cells import set_cell_size
from textual.content import Content

from nanochat_tui.tui.chat.lens import spelled

if TYPE_CHECKING:
    from nanochat_tui.chat.trace import Trace
    from nanochat_tui.model.mhc import StreamMatrices

HEAT = 8


@dataclass(frozen=True, slots=True)
class Inside:
    """The mixing matrices of a model (None: a plain residual) and its way to the last token, with the tokens' texts."""

    matrices: StreamMatrices | None
    trace: Trace
    texts: tuple[str, ...]


def sublayer(index: int) -> str:
    """Return the short name of a sub-layer: 1a, 1f, 2a …"""
    return f"{index // 2 + 1}{'f' if index % 2 else 'a'}"


def heat(value: float) -> str:
    """Return the style of a number from 0 to 1."""
    step = max(0, min(HEAT, round(value * HEAT)))
    return f"$text on $accent {step * 8}%"


def _number(value: float) -> str:
    return f"{value:.2f}".removeprefix("0") if 0 <= value < 0.995 else f"{value:.1f}"


def matrix_rows(inside: Inside) -> list[Content]:
    """Return mixing matrices with numbers and heat, read and write weights, and the streams after each sub-layer."""
    trace, matrices = inside.trace, inside.matrices
    streams = trace.norms.shape[1]
    rows = []
    if matrices is not None and streams == 2:
        rows.append(Content.styled("    mixing H         read    write", "$text 60%"))
        for index, matrix in enumerate(matrices.residual):
            row = Content.styled(f"{sublayer(index):<4}", "$text 60%")
            for value in matrix.reshape(-1):
                row += Content.styled(f"{_number(float(value)):>3}", heat(float(value))) + Content(" ")
            read = " ".join(f"{_number(float(v)):>3}" for v in matrices.pre[index])
            write = " ".join(f"{_number(float(v)):>3}" for v in matrices.post[index])
            rows.append(row + Content(f" {read} {write}"))
        rows += _alpha_rows(matrices)
    elif matrices is not None:
        rows.append(Content.styled(f"mixing H, {streams} streams    read  write", "$text 60%"))
        for index, matrix in enumerate(matrices.residual):
            for line, values in enumerate(matrix):
                row = Content.styled(f"{sublayer(index) if line == 0 else '':<4}", "$text 60%")
                for value in values:
                    row += Content.styled(f"{_number(float(value)):>3}", heat(float(value))) + Content(" ")
                p, q = float(matrices.pre[index][line]), float(matrices.post[index][line])
                rows.append(row + Content(f"   {_number(p):>4}  {_number(q):>4}"))
        rows += _alpha_rows(matrices)
    return rows


def _alpha_rows(matrices: StreamMatrices) -> list[Content]:
    """How much of each stream stays in its place, by record: the mean diagonal of H, which is alpha for two streams."""
    found = " ".join(f"{_number(float(matrix.diagonal().mean())):>3}" for matrix in matrices.residual)
    return [Content.assemble(("alpha per record\n", "$text 60%"), found)]


def stream_rows(inside: Inside) -> list[Content]:
    """Return norms and cosine of the streams and what would be said, after each sub-layer."""
    trace = inside.trace
    names = "".join(f"{f'|x{i}|':>7}" for i in range(trace.norms.shape[1]))
    rows = [Content.styled(f"    {names}   cos  would say", "$text 60%")]
    for index, norms in enumerate(trace.norms):
        mark = "◆" if index == trace.depth else "◇" if trace.tops[index] == trace.tops[-1] else " "
        numbers = "".join(f"{float(norm):>7.1f}" for norm in norms)
        said = f"{set_cell_size(spelled(inside.texts[index]), 7)} {float(trace.shares[index]) * 100:>3.0f}%"
        row = Content.assemble(
            (f"{sublayer(index):<3}", "$text 60%"),
            (mark, "$text-primary"),
            f"{numbers} {float(trace.cosines[index]):>5.2f}  ",
            (said, "bold" if mark == "◆" else "$text 60%" if mark == " " else ""),
        )
        rows.append(row)
    rows.append(
        Content.assemble(
            ("decided ", "$text 60%"),
            (f"first at {sublayer(trace.depth)}, final at {sublayer(trace.settled)}", "$text-primary"),
        )
    )
    return rows
