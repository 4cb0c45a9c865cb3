"""The table of evaluations, over what is known of the one under the cursor."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.content import Content
from textual.message import Message
from textual.widget import Widget
from textual.widgets import DataTable, Static

from nanochat_tui.evaluate.kept import Kept
from nanochat_tui.text import counted, display_safe
from nanochat_tui.tui import numbers
from nanochat_tui.tui.evaluate.words import COLOURS, done_text, progress_content, rate_text
from nanochat_tui.tui.keys import key_names

COLUMNS = (("", 1), ("evaluation", 30), ("state", 8), ("done", 11), ("passed", 22), ("changed", 9))
"""Headings and widths; in 80 columns the first four and most of the fifth are on show."""


class KeptList(Widget):
    """Evaluations with their states; Enter reads one's samples, Space marks it for the comparison."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("space", "mark", "Compare", id="evaluate.mark"),
        Binding("j", "cursor(1)", "Down", show=False, id="evaluate.down"),
        Binding("k", "cursor(-1)", "Up", show=False, id="evaluate.up"),
    ]

    HELP = """\
## Evaluations
What is kept, the newest first. **Enter** reads the samples of one, **{evaluate.mark|Space}** marks two for the Compare
tab, **{evaluate.stop|s}** stops one that runs, **{evaluate.resume|R}** continues one that was stopped,
**{evaluate.new|n}** starts one. *passed* is the share of completions so far with its 95 % interval; of none, how large
the share may be at most.
"""

    class Opened(Message):
        """Enter on an evaluation."""

        def __init__(self, path: Path) -> None:
            super().__init__()
            self.path = path

    class MarksChanged(Message):
        """Others are marked; two at most, the older first."""

        def __init__(self, marked: list[Path]) -> None:
            super().__init__()
            self.marked = marked

    def __init__(self, root: Path, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self.root = root
        self.kept: list[Kept] = []
        self.marked: list[Path] = []

    def compose(self) -> ComposeResult:
        """The table over a few lines on the chosen one."""
        table: DataTable[Content] = DataTable(cursor_type="row")
        for heading, width in COLUMNS:
            table.add_column(heading, width=width)
        yield table
        yield Static("", id="kept-progress", markup=False)
        yield Static("", id="kept-note", markup=False)

    @property
    def table(self) -> DataTable[Content]:
        """The table."""
        return self.query_one(DataTable)

    @property
    def selected(self) -> Kept | None:
        """The evaluation under the cursor."""
        table = self.table
        if not table.row_count:
            return None
        key = table.coordinate_to_cell_key(table.cursor_coordinate).row_key.value
        return next((one for one in self.kept if str(one.path) == key), None)

    def show(self, kept: Sequence[Kept]) -> None:
        """Show what there is, the cursor staying on its evaluation."""
        selected = self.selected
        self.kept = list(kept)
        paths = {one.path for one in kept}
        self.marked = [path for path in self.marked if path in paths]
        table = self.table
        with self.prevent(DataTable.RowHighlighted):
            table.clear()
            for one in kept:
                table.add_row(*self._cells(one), key=str(one.path))
            if selected is not None and str(selected.path) in table.rows:
                table.move_cursor(row=table.get_row_index(str(selected.path)))
        self.show_progress()

    def choose(self, path: Path) -> None:
        """Put the cursor on an evaluation, if it is listed."""
        if str(path) in self.table.rows:
            self.table.move_cursor(row=self.table.get_row_index(str(path)))

    @on(DataTable.RowHighlighted)
    def show_progress(self) -> None:
        """Say how far the chosen one is."""
        width = max(20, self.size.width - 2)
        self.query_one("#kept-progress", Static).update(progress_content(self.selected, width))
        count = counted(len(self.kept), "evaluation") if self.kept else "no evaluations"
        note = f"{count} below {self.root}"
        if not self.kept:
            note += key_names(self)("; {evaluate.new|n} starts one")
        self.query_one("#kept-note", Static).update(Content(display_safe(note, width)))

    def on_resize(self) -> None:
        """Lay the lines out for the new width."""
        self.show_progress()

    def _cells(self, one: Kept) -> tuple[Content, ...]:
        age = numbers.duration(max(0.0, time.time() - one.changed))
        return (
            Content("●" if one.path in self.marked else " "),
            Content(display_safe(one.name, 60)),
            Content.styled(one.state, f"${COLOURS[one.state]}"),
            Content(f"{done_text(one):>11}"),
            Content(rate_text(one)),
            Content(f"{age:>5} ago"),
        )

    def on_data_table_row_selected(self, event: DataTable.RowSelected) -> None:
        """Read the samples of the evaluation under the cursor."""
        event.stop()
        if (one := self.selected) is not None:
            self.post_message(self.Opened(one.path))

    def action_cursor(self, by: int) -> None:
        """Move the cursor."""
        self.table.move_cursor(row=self.table.cursor_row + by)

    def action_mark(self) -> None:
        """Mark the evaluation for the comparison, or unmark it; a third mark takes the place of the first."""
        one = self.selected
        if one is None:
            return
        if one.path in self.marked:
            self.marked.remove(one.path)
        else:
            self.marked = [*self.marked, one.path][-2:]
        self.show(self.kept)
        self.post_message(self.MarksChanged(list(self.marked)))
