"""The token lens without a screen: how tokens are written, laid out in rows, and described."""

from __future__ import annotations

import codecs
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rich.cells import cell_len, set_cell_size

from nanochat_tui.chat.backend import Token
from nanochat_tui.text import printable

LEVELS = 16
WIDEST = 40
"""Cells after which one token is cut: a vocabulary may hold a hundred blanks as one token."""


@dataclass(frozen=True, slots=True)
class Cell:
    """Where one token stands: row and column of its first cell, what is written and how wide that is."""

    index: int
    row: int
    column: int
    text: str
    width: int


def _as_hexadecimal(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeDecodeError):
        raise error
    return "".join(f"<{byte:02X}>" for byte in error.object[error.start : error.end]), error.end


codecs.register_error("nanochat.hexadecimal", _as_hexadecimal)


def spelled(text: str, data: bytes = b"") -> str:
    """Return a token's text as the lens writes it: control characters visible, nothing empty, no line breaks.

    A part of a character has no text of its own; where the bytes of the token are known, `data`, they are shown, as
    in "<F0>".
    """
    if data and (not text or "\ufffd" in text):
        text = data.decode("utf-8", "nanochat.hexadecimal")
    if not text:
        return "∅"
    shown = printable(text).replace("\n", "⏎").replace("\t", "⇥   ")
    return set_cell_size(shown, WIDEST - 1) + "…" if cell_len(shown) > WIDEST else shown


def layout(
    tokens: Sequence[Token], width: int, after: Sequence[Cell] = (), spell: Callable[[Token], str] | None = None
) -> list[Cell]:
    """Return the places of tokens in rows of `width` cells; a token with a line break ends its row.

    `after` are the cells of the first tokens, laid out before at the same width; only the others are computed.
    """
    cells = list(after)
    row = column = 0
    if cells:
        last = cells[-1]
        row, column = (last.row, last.column + last.width)
        if "\n" in tokens[last.index].text:
            row, column = row + 1, 0
    for index in range(len(cells), len(tokens)):
        text = spell(tokens[index]) if spell is not None else spelled(tokens[index].text)
        size = cell_len(text)
        if column and column + size > width:
            row, column = row + 1, 0
        cells.append(Cell(index, row, column, text, size))
        column += size
        if "\n" in tokens[index].text:
            row, column = row + 1, 0
    return cells


def level(logprob: float | None) -> int:
    """Return the colour's number, 0 (hardly likely) to LEVELS - 1 (certain); the middle if nothing is known."""
    known = probability(logprob)
    return LEVELS // 2 if known is None else min(LEVELS - 1, int(known * LEVELS))


def probability(logprob: float | None) -> float | None:
    """Return a probability from its natural logarithm; None if nothing is known."""
    return None if logprob is None or math.isnan(logprob) else math.exp(min(0.0, logprob))


def choices(token: Token) -> list[Token]:
    """Return what could have stood in a token's place, likeliest first, the token itself among them."""
    found = [Token(text, identity if identity >= 0 else None, logprob) for identity, text, logprob in token.top]
    same = [choice for choice in found if is_same(choice, token)]
    return found if same else [*found, Token(token.text, token.id, token.logprob)]


def is_same(choice: Token, token: Token) -> bool:
    """Whether a choice is the token that was taken."""
    return choice.id == token.id if choice.id is not None and token.id is not None else choice.text == token.text
