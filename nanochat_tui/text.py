"""Text made fit to show: untrusted text safe for a terminal, numbers with their nouns.

A model, a file or a server may hold any character. An escape sequence could retitle the window, move the cursor or
write to the clipboard, a bidirectional override can make text read as something else, and invisible characters hide
what a name really is. One rule says which characters are written as escapes: controls (category Cc), line and paragraph
separators (Zl, Zp), halves of surrogate pairs (Cs) and format characters (Cf), except those that writing needs.
"""

from __future__ import annotations

from collections.abc import Iterator

_LINES = "\n\t"
"""Controls that running text keeps."""
_FORMATS = (
    (0xAD, 0xAD),
    (0x61C, 0x61C),
    (0x180E, 0x180E),
    (0x200B, 0x200B),
    (0x200E, 0x200F),
    (0x2028, 0x202E),
    (0x2060, 0x2064),
    (0x2066, 0x206F),
    (0xFEFF, 0xFEFF),
    (0xFFF9, 0xFFFB),
    (0x1BCA0, 0x1BCA3),
    (0x1D173, 0x1D17A),
    (0xE0001, 0xE0001),
    (0xE0020, 0xE007F),
)
"""First and last of the format characters and separators that are escaped. Not among them: the joiners U+200C and
U+200D, which emoji and several scripts are written with, and the signs that enclose digits (U+0600 and others)."""


def _escaped() -> Iterator[int]:
    yield from range(0x20)
    yield from range(0x7F, 0xA0)
    yield from range(0xD800, 0xE000)
    for first, last in _FORMATS:
        yield from range(first, last + 1)


def _escape(code: int) -> str:
    return chr(code).encode("unicode_escape").decode()


_ONE_LINE = {code: _escape(code) for code in _escaped()}
_TABLE = {code: text for code, text in _ONE_LINE.items() if chr(code) not in _LINES}


def counted(number: int, thing: str) -> str:
    """Return "1 turn", "2,048 turns": a number and what is counted, whose plural ends in s."""
    return f"{number:,} {thing}" if number == 1 else f"{number:,} {thing}s"


def printable(text: str) -> str:
    """Return running text, such as a model's, with every unsafe character written as an escape; newline and tab stay.

    Works on pieces of a stream: the result of the whole is the results of its pieces joined.
    """
    if text.isascii() and text.isprintable():
        return text
    return text.translate(_TABLE)


def display_safe(text: str, limit: int = 200) -> str:
    """Return an untrusted name or value as part of one line: newline and tab are escaped too, and the text is cut to
    `limit` characters.
    """
    shown = text[:limit]
    if not (shown.isascii() and shown.isprintable()):
        shown = shown.translate(_ONE_LINE)
    return shown + "…" if len(text) > limit else shown
