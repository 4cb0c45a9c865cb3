"""Selecting text with the mouse as everywhere else: a double click takes a word, a triple click a line."""

from __future__ import annotations

import re

from textual.events import Click
from textual.geometry import Offset
from textual.selection import Selection
from textual.widget import Widget
from textual.widgets import Static

_WORD = re.compile(r"\w+(?:['’]\w+)*|[^\w\s]|\s+")


def word_at(line: str, x: int) -> tuple[int, int]:
    """Return where the word at character `x` of a line begins and ends; a sign or blanks are one of their own."""
    return next((match.span() for match in _WORD.finditer(line) if match.start() <= x < match.end()), (x, x))


class Selecting(Widget):
    """A widget whose text is selected by words and lines. `lines` are its rows in the coordinates of a selection."""

    def selection_lines(self) -> list[str]:
        """Return the text by lines."""
        return str(self._render()).splitlines()

    def selection_line(self, y: int) -> tuple[Offset, Offset]:
        """Return where the line, or paragraph, that holds row `y` begins and ends."""
        return Offset(0, y), Offset(len(self.selection_lines()[y]), y)

    async def _on_click(self, event: Click) -> None:
        if event.widget is self and event.chain in (2, 3) and self.app.ALLOW_SELECT and self.screen.allow_select:
            event.prevent_default()  # Textual would take the whole widget, or everything
            self._select(event)

    def _select(self, event: Click) -> None:
        _, place = self.screen.get_widget_and_offset_at(event.screen_x, event.screen_y)
        lines = self.selection_lines()
        if place is None or not 0 <= place.y < len(lines):
            return
        if event.chain == 2:
            start, end = word_at(lines[place.y], place.x)
            chosen = Selection(Offset(start, place.y), Offset(end, place.y))
        else:
            chosen = Selection(*self.selection_line(place.y))
        self.screen.selections = {self: chosen}


class SelectingStatic(Static, Selecting):
    """A `Static` whose text is selected by words and lines."""
