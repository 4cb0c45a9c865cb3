"""Text made fit to show: that of models and files safe for a terminal, numbers with their nouns.

A model may emit any byte. An escape sequence could retitle the window, move the cursor or write to the clipboard, and a
bidirectional override can make text read as something else, so neither reaches the terminal as it is.
"""

from __future__ import annotations

_KEPT = {"\n", "\t"}
_ESCAPED = [
    *map(chr, range(0x20)),
    *map(chr, range(0x7F, 0xA0)),
    "\u061c",
    "\u200b",
    "\u200e",
    "\u200f",
    "\u2028",
    "\u2029",
    *map(chr, range(0x202A, 0x202F)),
    *map(chr, range(0x2066, 0x206A)),
    "\ufeff",
]
_TABLE = {ord(c): c.encode("unicode_escape").decode() for c in _ESCAPED if c not in _KEPT}
_TABLE |= dict.fromkeys(range(0xD800, 0xE000), "\ufffd")


def counted(number: int, thing: str) -> str:
    """Return "1 turn", "2,048 turns": a number and what is counted, whose plural ends in s."""
    return f"{number:,} {thing}" if number == 1 else f"{number:,} {thing}s"


def printable(text: str) -> str:
    """Return `text` with every control and reordering character written as an escape; newline and tab stay.

    Works on pieces of a stream: the result of the whole is the results of its pieces joined. Lone surrogates, which no
    terminal can encode, become U+FFFD.
    """
    if text.isascii() and text.isprintable():
        return text
    return text.translate(_TABLE)
