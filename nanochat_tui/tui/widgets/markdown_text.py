"""Markdown on the screen, the same while it is written and afterwards.

One widget per text, which draws the rows that are seen. While text arrives only the last two blocks are parsed and laid
out again: the last may still become a part of the one before it, as `2` does when it turns out to be an item `2.`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from markdown_it.token import Token
from textual.content import Content
from textual.geometry import Offset, Size
from textual.selection import Selection
from textual.strip import Strip
from textual.style import Style
from textual.visual import Visual

from nanochat_tui.tui.widgets.markdown_content import BLANK, Row, block_rows, blocks, text_between
from nanochat_tui.tui.widgets.selecting import Selecting

OPEN = 2
"""Last blocks of a text that may change when more of it comes."""
CACHED = 200
"""Rows whose drawing is remembered: more than a screen has."""


@dataclass(slots=True)
class _Block:
    tokens: Sequence[Token]
    rows: list[Row] = field(default_factory=list)
    width: int = 0

    def at(self, width: int) -> list[Row]:
        if width != self.width:
            self.rows, self.width = block_rows(self.tokens, width), width
        return self.rows


class MarkdownText(Selecting):
    """Shows Markdown. `ending` is the application's own remark after it, which is no part of the text."""

    DEFAULT_CSS = "MarkdownText { height: auto; width: 1fr; }"

    def __init__(self, text: str = "", *, ending: Content | None = None, classes: str | None = None) -> None:
        super().__init__(classes=classes)
        self._blocks: list[_Block] = []
        self._settled = 0
        """How many of them cannot change any more."""
        self._source = ""
        """The text from the beginning of the last but one block on."""
        self._ending = ending
        self._rows: tuple[int, list[Row]] = (0, [])
        self._drawn: dict[int, Strip] = {}
        if text:
            self._take(text)

    # The text

    def write(self, more: str) -> None:
        """Append to the text (already `printable`)."""
        if more:
            self._take(more)
            self._changed()

    def end(self, text: str, ending: Content | None) -> None:
        """This is the whole text, in which an early link may mean a late definition; say something after it."""
        self._blocks, self._settled, self._source = [], 0, ""
        self._take(text)
        self._ending = ending
        self._changed()

    def _take(self, more: str) -> None:
        self._source += more
        del self._blocks[self._settled :]
        found = blocks(self._source)
        self._blocks += [_Block(tokens) for tokens, _ in found]
        if len(found) > OPEN:
            self._settled += len(found) - OPEN
            begins = found[-OPEN][1]
            self._source = "\n".join(self._source.split("\n")[begins:])

    def _changed(self) -> None:
        self._rows = (0, [])
        self._drawn.clear()
        self.refresh(layout=True)

    def rows(self, width: int) -> list[Row]:
        """Return everything in rows of `width` cells."""
        if self._rows[0] != width:
            rows: list[Row] = []
            for block in self._blocks:
                rows += [BLANK, *block.at(width)] if rows else block.at(width)
            if self._ending is not None:
                rows.append(Row(self._ending, joint=""))
            self._rows = (width, rows)
            self._drawn.clear()
        return self._rows[1]

    # The widget

    def get_content_width(self, container: Size, viewport: Size) -> int:
        """Return the width it is given: text takes all there is."""
        return container.width

    def get_content_height(self, container: Size, viewport: Size, width: int) -> int:
        """Return as many rows as the text needs at this width."""
        return len(self.rows(width)) if width > 0 else 0

    def render(self) -> Content:
        """Return all of it; on the screen it is drawn row by row."""
        return Content("\n").join([row.content for row in self.rows(self.content_size.width or 80)])

    def render_line(self, y: int) -> Strip:
        """Draw one row."""
        width = self.size.width
        rows = self.rows(width)
        selected = self.text_selection
        if y in self._drawn and selected is None:
            return self._drawn[y]
        if y >= len(rows):
            return Strip.blank(width, self.rich_style)
        content = rows[y].content
        span = None if selected is None else selected.get_span(y)
        if span is not None:
            low, high = max(span[0], rows[y].start), rows[y].end if span[1] < 0 else min(span[1], rows[y].end)
            if low < high:
                content = content.stylize(
                    Style.from_styles(self.screen.get_component_styles("screen--selection")), low, high
                )
        strips = Visual.to_strips(self, content, width, 1, self.visual_style, apply_selection=False, pad=True)
        strip = (strips[0] if strips else Strip.blank(width, self.rich_style)).apply_offsets(0, y)
        if selected is None:
            if len(self._drawn) > CACHED:
                self._drawn.clear()
            self._drawn[y] = strip
        return strip

    def notify_style_update(self) -> None:
        """Draw again in other colours."""
        super().notify_style_update()
        self._drawn.clear()

    # Selection

    def get_selection(self, selection: Selection) -> tuple[str, str] | None:
        """Return the selected text as it was written, not as it is wrapped."""
        rows = self.rows(self.size.width)
        start, end = (None if place is None else (place.x, place.y) for place in selection)
        return text_between(rows, start, end), "\n"

    def selection_updated(self, selection: Selection | None) -> None:
        """Show what is selected."""
        self._drawn.clear()
        self.refresh()

    def selection_lines(self) -> list[str]:
        """See `Selecting`."""
        return [row.content.plain for row in self.rows(self.size.width)]

    def selection_line(self, y: int) -> tuple[Offset, Offset]:
        """See `Selecting`: a paragraph goes on over the rows it was wrapped to."""
        rows = self.rows(self.size.width)
        first = last = y
        while first > 0 and "\n" not in rows[first - 1].joint and rows[first - 1].end:
            first -= 1
        while last < len(rows) - 1 and "\n" not in rows[last].joint and rows[last].end:
            last += 1
        return Offset(rows[first].start, first), Offset(rows[last].end, last)
