"""Markdown laid out in rows of a given width, block by block. Pure: no widgets.

It covers what models write: headings, paragraphs, emphasis, code, lists, quotes, rules, tables. No text is ever read as
markup, and links show where they lead. Rows know which of their characters are text, so that a selection gives back
what was written: without marks, indents and padding, and with the line ends of the text instead of those of the screen.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from markdown_it import MarkdownIt
from markdown_it.token import Token
from rich.cells import cell_len
from textual.content import Content

from nanochat_tui.tui.widgets.highlighting import highlight_code

_STYLES = {"strong_open": "bold", "em_open": "italic", "s_open": "strike"}
_CODE = "$text-accent on $surface-lighten-1"
_DIM = "$text 60%"
_GROUND = "on $surface"
QUOTE = "▌ "
LEAST = 8
"""Cells a text is given however deep it is nested."""
_parser = MarkdownIt("commonmark").enable(["strikethrough", "table"])
_WORD = re.compile(r"\s*\S+|\s+")


@dataclass(frozen=True, slots=True)
class Row:
    """One row of the screen. `start` and `end` bound the characters that are text. `joint` stands between this row's
    text and the next one's: the blanks at which a line was wrapped, nothing in the middle of a word, or a line end.
    A row of the application's own has no text and no joint.
    """

    content: Content
    start: int = 0
    end: int = 0
    joint: str = "\n"


def blocks(text: str) -> list[tuple[list[Token], int]]:
    """Return the top-level blocks of `text` (already `printable`): their tokens, and the line each begins in."""
    found: list[tuple[list[Token], int]] = []
    for token in _parser.parse(text):
        if token.level == 0 and token.nesting >= 0:
            found.append(([], token.map[0] if token.map else 0))
        if found:
            found[-1][0].append(token)
    return found


def markdown_rows(text: str, width: int) -> list[Row]:
    """Return the whole `text` (already `printable`) in rows of at most `width` cells."""
    rows: list[Row] = []
    for tokens, _ in blocks(text):
        rows += ([BLANK] if rows else []) + block_rows(tokens, width)
    return rows


BLANK = Row(Content(""))


def text_between(rows: Sequence[Row], start: tuple[int, int] | None, end: tuple[int, int] | None) -> str:
    """Return the text from `start` to `end`, each a character and a row or None for everything up to there."""
    first_x, first_y = start or (0, 0)
    last_x, last_y = end or (1 << 30, len(rows) - 1)
    pieces: list[str] = []
    for y in range(max(0, first_y), min(last_y, len(rows) - 1) + 1):
        row = rows[y]
        low = max(row.start, first_x if y == first_y else 0)
        high = min(row.end, last_x if y == last_y else 1 << 30)
        pieces.append(row.content.plain[low : max(low, high)])
        if y < last_y:
            pieces.append(row.joint)
    return "".join(pieces).strip("\n")


def wrapped(content: Content, width: int) -> list[tuple[Content, str]]:
    """Wrap one line at blanks, and words that are too long anywhere: pieces of at most `width` cells, each with the
    blanks that were left out after it.
    """
    text = content.plain
    if cell_len(text) <= width:
        return [(content, "")]
    cuts: list[tuple[int, int]] = []  # where a piece ends, where the next one begins
    begin = used = 0
    for match in _WORD.finditer(text):
        word = match[0]
        size = cell_len(word)
        if used + size <= width:
            used += size
            continue
        at = match.start()
        after = at + len(word) - len(word.lstrip())
        if at > begin and text[begin:at].strip():
            cuts.append((at, after))
            begin, word = after, text[after : match.end()]
            used, at = 0, after
        for offset, character in enumerate(word, at):
            size = cell_len(character)
            if used + size > width and offset > begin:
                cuts.append((offset, offset))
                begin, used = offset, 0
            used += size
    pieces = []
    start = 0
    for end, following in [*cuts, (len(text), len(text))]:
        pieces.append((content[start:end], text[end:following]))
        start = following
    return pieces


class _Layout:
    """Turns the tokens of a block into rows."""

    def __init__(self, width: int) -> None:
        self.rows: list[Row] = []
        self._width = width
        self._marks: list[tuple[str, str]] = []  # per open list item or quote: the first row's mark, that of the others
        self._fresh: list[bool] = []  # whether the first one was not drawn yet

    def _room(self) -> int:
        return max(LEAST, self._width - sum(cell_len(mark) for mark, _ in self._marks))

    def _lead(self) -> tuple[str, int]:
        """Return what the next row begins with, and how much of it is no text: all of it where a row goes on, only the
        marks of quotes where an item begins.
        """
        marks = [first if fresh else others for (first, others), fresh in zip(self._marks, self._fresh, strict=True)]
        lead = "".join(marks)
        begins = any(self._fresh)
        self._fresh = [False] * len(self._fresh)
        return lead, lead.rfind(QUOTE) + len(QUOTE) if begins and QUOTE in lead else 0 if begins else len(lead)

    def put(self, content: Content, joint: str = "\n") -> None:
        """Add one row behind the marks of what is open."""
        lead, start = self._lead()
        whole = Content.styled(lead, _DIM) + content
        self.rows.append(Row(whole, start, len(whole.plain), joint))

    def paragraph(self, content: Content, style: str = "") -> None:
        """Add lines of text, wrapped."""
        for line in content.split("\n", allow_blank=True):
            pieces = wrapped(line.stylize(style) if style else line, self._room())
            for at, (piece, blanks) in enumerate(pieces):
                self.put(piece, blanks if at < len(pieces) - 1 else "\n")

    def gap(self) -> None:
        """Add an empty row, unless a mark waits for its text."""
        if self.rows and not any(self._fresh):
            lead = "".join(others for _, others in self._marks).rstrip()
            self.rows.append(Row(Content.styled(lead, _DIM), len(lead), len(lead)))

    def code(self, code: str, language: str) -> None:
        """Add a block of code on a ground of its own, with its language above."""
        room = self._room()
        name = language or "text"
        label = Content.styled(f" {name}".ljust(room)[:room], f"{_DIM} italic")
        lead, _ = self._lead()
        self.rows.append(Row(Content.styled(lead, _DIM) + label.stylize(_GROUND), joint=""))
        for line in highlight_code(code, name).split("\n", allow_blank=True):
            pieces = wrapped(line, max(LEAST, room - 2))
            for at, (piece, blanks) in enumerate(pieces):
                lead, _ = self._lead()
                filled = Content(" ") + piece
                filled = filled.pad_right(max(0, room - filled.cell_length)).stylize(_GROUND)
                start = len(lead) + 1
                last = at == len(pieces) - 1
                self.rows.append(
                    Row(Content.styled(lead, _DIM) + filled, start, start + len(piece.plain), "\n" if last else blanks)
                )

    def table(self, rows: list[list[Content]], aligned: list[str]) -> None:
        """Add a table: its columns aligned by cells, as narrow as the room demands."""
        columns = max(map(len, rows), default=0)
        if not columns:
            return
        rows = [[*row, *[Content("")] * (columns - len(row))] for row in rows]
        widths = [max(1, *(row[at].cell_length for row in rows)) for at in range(columns)]
        room = max(columns, self._room() - 3 * (columns - 1))
        while sum(widths) > room:
            widths[widths.index(max(widths))] -= 1
        for number, row in enumerate(rows):
            cells = [
                [piece for line in cell.split("\n", allow_blank=True) for piece, _ in wrapped(line, widths[at])]
                for at, cell in enumerate(row)
            ]
            for y in range(max(map(len, cells))):
                line = Content("")
                for at, pieces in enumerate(cells):
                    piece = pieces[y] if y < len(pieces) else Content("")
                    line += (Content.styled(" │ ", _DIM) if at else Content("")) + _placed(
                        piece, widths[at], aligned[at]
                    )
                self.put(line.stylize("bold $text-primary") if number == 0 else line)
            if number == 0:
                self.put(Content.styled("─┼─".join("─" * width for width in widths), _DIM))

    def open(self, first: str, others: str) -> None:
        """Let every row begin with a mark until `close`: the first one with `first`."""
        self._marks.append((first, others))
        self._fresh.append(first != others)

    def close(self) -> None:
        """End the innermost mark; an item without any text shows it alone."""
        if self._fresh[-1]:
            self.put(Content(""))
        self._marks.pop()
        self._fresh.pop()


def _placed(piece: Content, width: int, aligned: str) -> Content:
    space = max(0, width - piece.cell_length)
    left = space if aligned == "right" else space // 2 if aligned == "center" else 0
    return Content(" " * left) + piece + Content(" " * (space - left))


def block_rows(tokens: Sequence[Token], width: int) -> list[Row]:
    """Return one block's rows, for `width` cells."""
    layout = _Layout(width)
    counters: list[int | None] = []
    tight = False
    heading = ""
    table: list[list[Content]] = []
    aligned: list[str] = []
    in_table = False
    for token in tokens:
        match token.type:
            case "heading_open":
                heading = "bold underline $text-primary" if token.tag == "h1" else "bold $text-primary"
                layout.gap()
            case "heading_close":
                heading = ""
            case "paragraph_open":
                tight = token.hidden
                if not tight:
                    layout.gap()
            case "inline" if in_table:
                table[-1].append(_inline(token.children or []))
            case "inline":
                layout.paragraph(_inline(token.children or []), heading)
            case "fence" | "code_block":
                layout.gap()
                layout.code(token.content.rstrip("\n"), (token.info.split() or [""])[0])
            case "bullet_list_open" | "ordered_list_open":
                if not counters or not tight:
                    layout.gap()
                counters.append(int(token.attrGet("start") or 1) if token.type == "ordered_list_open" else None)
            case "bullet_list_close" | "ordered_list_close":
                counters.pop()
            case "list_item_open":
                number = counters[-1]
                mark = "• " if number is None else f"{number}. "
                if number is not None:
                    counters[-1] = number + 1
                layout.open(mark, " " * len(mark))
            case "list_item_close" | "blockquote_close":
                layout.close()
            case "blockquote_open":
                layout.gap()
                layout.open(QUOTE, QUOTE)
            case "hr":
                layout.gap()
                layout.put(Content.styled("─" * min(24, width), _DIM))
            case "html_block":
                layout.gap()
                layout.paragraph(Content(token.content.rstrip("\n")))
            case "table_open":
                layout.gap()
                table, aligned, in_table = [], [], True
            case "tr_open":
                table.append([])
            case "th_open":
                aligned.append(str(token.attrGet("style") or "").removeprefix("text-align:"))
            case "table_close":
                in_table = False
                layout.table(table, aligned)
            case _:
                pass
    rows = layout.rows
    return [*rows[:-1], replace(rows[-1], joint="\n")] if rows else rows


def _inline(children: list[Token]) -> Content:
    return Content("").join(_pieces(children))


def _pieces(children: list[Token]) -> Iterator[Content]:
    styles: list[str] = []
    targets: list[str] = []
    for child in children:
        match child.type:
            case "text" | "html_inline":
                yield Content.styled(child.content, " ".join(styles))
            case "code_inline":
                yield Content.styled(child.content, " ".join([*styles, _CODE]))
            case "softbreak" | "hardbreak":
                yield Content("\n")
            case "link_open" | "image":
                if child.type == "image":
                    yield Content(f"[{child.content}]")
                else:
                    styles.append("underline")
                    targets.append(str(child.attrGet("href") or ""))
            case "link_close":
                styles.pop()
                yield Content.styled(f" ({targets.pop()})", "$text 60%")
            case kind if kind in _STYLES:
                styles.append(_STYLES[kind])
            case kind if kind.endswith("_close") and styles:
                styles.pop()
            case _:
                pass
