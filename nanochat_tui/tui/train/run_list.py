"""The table of runs that were found."""

from __future__ import annotations

import time
from pathlib import Path
from typing import ClassVar

from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.content import Content
from textual.coordinate import Coordinate
from textual.message import Message
from textual.widget import Widget
from textual.widgets import DataTable, Static

from nanochat_tui.runs.discovery import FoundRun
from nanochat_tui.text import counted, display_safe
from nanochat_tui.tui import numbers
from nanochat_tui.tui.keys import key_names
from nanochat_tui.tui.train.overview import COLOURS

COLUMNS = (("", 1), ("run", 20), ("state", 8), ("step", 9), ("of", 9), ("trained", 7), ("written", 11))
"""Headings and widths: fixed, because the table would measure every cell again at each search."""
AGE_SECONDS = 5.0


class RunList(Widget):
    """Runs with their states; Enter opens one, Space marks it for the comparison."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("space", "mark", "Compare", id="train.mark"),
        Binding("j", "cursor(1)", "Down", show=False, id="train.down"),
        Binding("k", "cursor(-1)", "Up", show=False, id="train.up"),
    ]

    HELP = """\
## Runs
Every run directory below the folder, and logs of the original trainer. **Enter** opens one, **{train.mark|Space}**
marks it for the Compare tab, **{train.attach|a}** opens a run somewhere else, **{train.refresh|r}** searches again. A
run is *crashed* when its process is gone without a word, or, on another machine, when its heartbeat has stopped;
*killed* when K ended it; *stalled* when the process lives but beats no more.
"""

    class Opened(Message):
        """Enter on a run."""

        def __init__(self, path: Path, name: str) -> None:
            super().__init__()
            self.path, self.name = path, name

    class MarksChanged(Message):
        """Other runs are marked."""

        def __init__(self, marked: list[tuple[Path, str]]) -> None:
            super().__init__()
            self.marked = marked

    def __init__(self, root: Path, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self.root = root
        self.runs: list[FoundRun] = []
        self.marked: dict[Path, str] = {}

    def compose(self) -> ComposeResult:
        """A table over a line that says where it was looked."""
        table: DataTable[Content] = DataTable(cursor_type="row", zebra_stripes=False)
        for heading, width in COLUMNS:
            table.add_column(heading, width=width)
        yield table
        yield Static("searching …", id="runs-note", markup=False)

    @property
    def table(self) -> DataTable[Content]:
        """The table."""
        return self.query_one(DataTable)

    def show(self, runs: list[FoundRun]) -> None:
        """Show what a search found, keeping the cursor on its run."""
        self.runs = runs
        self._fill()

    def add(self, run: FoundRun) -> None:
        """Show a run that may lie outside the folder at once, before the next search."""
        if run.path.resolve() not in {known.path.resolve() for known in self.runs}:
            self.show([*self.runs, run])

    def on_mount(self) -> None:
        """Let the ages grow while nothing else changes."""
        self.set_interval(AGE_SECONDS, self._age)

    def _age(self) -> None:
        table = self.table
        for run in self.runs if self.is_on_screen else ():
            key = str(run.path)
            age = self._written(run)
            if key in table.rows and table.get_row(key)[-1] != age:
                table.update_cell_at(Coordinate(table.get_row_index(key), len(COLUMNS) - 1), age)

    @staticmethod
    def _written(run: FoundRun) -> Content:
        age = f"{numbers.duration(max(0.0, time.time() - run.changed))} ago"
        return Content(f"{age:>11}")

    def _fill(self) -> None:
        table, runs = self.table, self.runs
        selected = self.selected
        table.clear()
        for run in runs:
            table.add_row(*self._cells(run), key=str(run.path))
        if selected is not None and str(selected.path) in table.rows:
            table.move_cursor(row=table.get_row_index(str(selected.path)))
        self._note()

    @on(DataTable.RowHighlighted)
    def _note(self) -> None:
        """Say where the runs lie; of one that was opened elsewhere, where it does."""
        run, inside = self.selected, sum(1 for run in self.runs if self._is_inside(run))
        note = f"{counted(inside, 'run')} below {self.root}" if inside else f"no runs below {self.root}"
        if run is not None and not self._is_inside(run):
            note = f"{run.name} lies in {run.path.absolute().parent}"
        elif not self.runs:
            note += key_names(self)("; {train.attach|a} opens one elsewhere")
        self.query_one("#runs-note", Static).update(display_safe(note))

    def _is_inside(self, run: FoundRun) -> bool:
        return run.path == self.root or run.path.is_relative_to(self.root)

    def _cells(self, run: FoundRun) -> tuple[Content, ...]:
        state = run.state
        word = "log" if run.is_log else state.life
        done = f"{state.step:,}" if state.step else "–"
        total = f"{state.total:,}" if 0 < state.total < 10**9 else "–"
        return (
            Content("●" if run.path in self.marked else " "),
            Content(display_safe(run.name if self._is_inside(run) else f"…/{run.path.parent.name}/{run.name}", 48)),
            Content.styled(word, f"${COLOURS[state.life]}"),
            Content(f"{done:>9}"),
            Content(f"{total:>9}"),
            Content(f"{numbers.duration(state.seconds) if state.seconds else '–':>7}"),
            self._written(run),
        )

    @property
    def selected(self) -> FoundRun | None:
        """The run under the cursor."""
        table = self.table
        if not table.row_count:
            return None
        key = table.coordinate_to_cell_key(table.cursor_coordinate).row_key.value
        return next((run for run in self.runs if str(run.path) == key), None)

    def on_data_table_row_selected(self, event: DataTable.RowSelected) -> None:
        """Open the run under the cursor."""
        event.stop()
        run = self.selected
        if run is not None:
            self.post_message(self.Opened(run.path, run.name))

    def action_cursor(self, by: int) -> None:
        """Move the cursor."""
        self.table.move_cursor(row=self.table.cursor_row + by)

    def action_mark(self) -> None:
        """Mark the run for the comparison, or unmark it."""
        run = self.selected
        if run is None:
            return
        if self.marked.pop(run.path, None) is None:
            self.marked[run.path] = run.name
        self._fill()
        self.post_message(self.MarksChanged(list(self.marked.items())))
