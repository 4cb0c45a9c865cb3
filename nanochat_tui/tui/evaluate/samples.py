"""The samples of an evaluation: a list with verdicts, and the one under the cursor to read."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal, get_args

from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, VerticalScroll
from textual.content import Content
from textual.widget import Widget
from textual.widgets import DataTable, Static

from nanochat_tui.evaluate.kept import Kept
from nanochat_tui.evaluate.solving import Row
from nanochat_tui.text import display_safe
from nanochat_tui.tui.evaluate.words import done_text, sample_content, sample_name, verdict

Filter = Literal["all", "failed", "passed"]
FILTERS: tuple[Filter, ...] = get_args(Filter)
LIST_CELLS = 80
"""Width of a sample in the list, which shows the beginning of it."""
Key = tuple[str, float | None, int]


class SampleText(VerticalScroll, can_focus=True):
    """The sample that is read; scrolls when it has the focus."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("j", "scroll_down", "Down", show=False, id="sample.down"),
        Binding("k", "scroll_up", "Up", show=False, id="sample.up"),
    ]


class SamplesView(Widget):
    """Lists samples with their verdicts and shows the one under the cursor, while others still come."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("f", "filter", "Filter", id="sample.filter"),
        Binding("p", "whole", "Whole prompt", id="sample.whole"),
        Binding("right_square_bracket", "step(1)", "Next", key_display="]", id="sample.next"),
        Binding("left_square_bracket", "step(-1)", "Previous", key_display="[", show=False, id="sample.previous"),
    ]

    HELP = """\
## Samples
Each completion with its verdict; those of an evaluation that runs come as they are judged. ↑ ↓, or
**{sample.previous|[}** and **{sample.next|]}** from anywhere in the tab, go from sample to sample.
**{sample.filter|f}** shows the failed ones, the passed ones, or all; **{sample.whole|p}** shows all of a prompt. Tab
goes to the text, which scrolls. *output* is what compiler, tests or program said.
"""

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self.kept: Kept | None = None
        self.filter: Filter = "all"
        self.whole = False
        self._problems: Mapping[str, Mapping[str, Any]] = {}
        self._shown: list[Row] = []
        self._read: Key | None = None

    def compose(self) -> ComposeResult:
        """The list next to the text, under a line of what is read."""
        yield Static("", id="samples-note", markup=False)
        with Horizontal():
            table: DataTable[Content] = DataTable(cursor_type="row", show_header=False, id="samples-table")
            table.add_column("verdict", width=1)
            table.add_column("sample", width=LIST_CELLS)
            yield table
            with SampleText(id="sample-text"):
                yield Static("", markup=False)

    @property
    def table(self) -> DataTable[Content]:
        """The list."""
        return self.query_one(DataTable)

    @property
    def count(self) -> int:
        """Samples of the evaluation as it was seen last."""
        return 0 if self.kept is None else self.kept.done

    @property
    def knows_problems(self) -> bool:
        """Whether what was asked is known."""
        return bool(self._problems)

    @property
    def path(self) -> Path | None:
        """The folder whose samples are on show."""
        return None if self.kept is None else self.kept.path

    def open(self, kept: Kept, problems: Mapping[str, Mapping[str, Any]]) -> None:
        """Show the samples of an evaluation from the first one on."""
        self._problems = problems
        self.kept = kept
        self._read = None
        self._fill([])

    def update(self, kept: Kept, problems: Mapping[str, Mapping[str, Any]] | None = None) -> None:
        """Show what came since; the sample that is read stays."""
        self.kept = kept
        if problems:
            self._problems = problems
        self._fill(self._shown)
        if problems:
            self._show_sample(again=True)

    def _wanted(self) -> list[Row]:
        rows = self.kept.rows if self.kept is not None else ()
        return [row for row in rows if self.filter == "all" or (row.verdict == "passed") == (self.filter == "passed")]

    def _fill(self, before: list[Row]) -> None:
        rows, table = self._wanted(), self.table
        grown = bool(before) and rows[: len(before)] == before
        with self.prevent(DataTable.RowHighlighted):
            if not grown:
                table.clear()
            for row in rows[len(before) if grown else 0 :]:
                mark = ("✓", "$text-success") if row.verdict == "passed" else ("✗", "$text-error")
                table.add_row(Content.styled(*mark), sample_name(row, short=True) + Content("  ") + verdict(row))
            self._shown = rows
            if not grown:
                at = next((n for n, row in enumerate(rows) if row.key == self._read), 0)
                table.move_cursor(row=at)
        self._show_sample(again=not grown)

    @on(DataTable.RowHighlighted)
    def _moved(self) -> None:
        self._show_sample()

    @property
    def sample(self) -> Row | None:
        """The sample under the cursor."""
        at = self.table.cursor_row
        return self._shown[at] if 0 <= at < len(self._shown) else None

    def _show_sample(self, *, again: bool = False) -> None:
        row = self.sample
        at = f"{self.table.cursor_row + 1}/{len(self._shown)}" if row is not None else "0/0"
        of = "" if self.kept is None else f"   {display_safe(self.kept.name)}, {done_text(self.kept)} done"
        note = f"{at} {self.filter}{of}" if self.kept is not None else "open an evaluation first: Enter in the list"
        self.query_one("#samples-note", Static).update(Content(note))
        key = None if row is None else row.key
        if key == self._read and not again:
            return
        self._read = key
        text = self.query_one("#sample-text", SampleText)
        problem = self._problems.get(row.problem) if row is not None else None
        text.query_one(Static).update(sample_content(row, problem, whole=self.whole))
        text.scroll_home(animate=False)

    def action_filter(self) -> None:
        """Show the failed samples, the passed ones, or all, one after the other."""
        self.filter = FILTERS[(FILTERS.index(self.filter) + 1) % len(FILTERS)]
        self._fill([])

    def action_whole(self) -> None:
        """Show all of the prompt, or its end."""
        self.whole = not self.whole
        self._show_sample(again=True)

    def action_step(self, by: int) -> None:
        """Go to the next sample, or the one before."""
        self.table.move_cursor(row=self.table.cursor_row + by)
