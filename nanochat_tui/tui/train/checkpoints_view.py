"""The checkpoints of the open run: talk to one, export one, or let all write from one prompt and leaf through."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical, VerticalScroll
from textual.content import Content
from textual.coordinate import Coordinate
from textual.widget import Widget
from textual.widgets import DataTable, Input, Label, Static

from nanochat_tui.chat.backend import Request
from nanochat_tui.errors import UserError
from nanochat_tui.request import SamplingParams, with_settings
from nanochat_tui.runs.watch import Checkpoint, Snapshot
from nanochat_tui.text import counted, display_safe, printable
from nanochat_tui.tui import numbers
from nanochat_tui.tui.keys import key_names
from nanochat_tui.tui.train import messages
from nanochat_tui.tui.train.jobs import Exports, Scrubber, run_tokenizer, talk_problem

COLUMNS = (("step", 9), ("val", 7), ("age", 7), ("", 2))
PROPOSED = Request(prompt="fn main() {\n", sampling=SamplingParams(repeat_penalty=1.1, seed=0), max_tokens=64)
"""Not greedy: at temperature 0 small models repeat themselves at every checkpoint, and the seed would mean nothing."""


class CheckpointsView(Widget):
    """Checkpoints at the left, what the one under the cursor wrote at the right, the prompt below."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("t", "talk", "Talk", id="checkpoints.talk"),
        Binding("e", "export", "Export", id="checkpoints.export"),
        Binding("g", "scrub", "Scrub all", id="checkpoints.scrub"),
        Binding("escape", "stop_scrub", "Stop", show=False, id="checkpoints.stop"),
        Binding("j", "cursor(1)", "Down", show=False, id="checkpoints.down"),
        Binding("k", "cursor(-1)", "Up", show=False, id="checkpoints.up"),
    ]

    HELP = """\
## Checkpoints
**Enter** or **{checkpoints.talk|t}** talks to the checkpoint under the cursor while training continues: it is exported
to a temporary file and loaded in the chat. **{checkpoints.export|e}** writes a GGUF that stays, with verification.
**{checkpoints.scrub|g}** (or Enter in the prompt) lets every checkpoint continue the prompt with the same seed and
sampling; then **↑/↓** leaf through what they wrote: bright is where a text leaves that of the checkpoint before.
**{checkpoints.stop|Esc}** stops it.
"""

    def __init__(self, exports: Exports, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self.exports = exports
        self.checkpoints: list[Checkpoint] = []
        self.tokenizer: Path | None = None
        self.problem: str | None = None
        self.threads: Callable[[], int | None] = lambda: None
        """How many threads a checkpoint may write with now."""
        self.texts: dict[Path, str] = {}
        self.errors: dict[Path, str] = {}
        self.done: set[Path] = set()
        self.scrubber: Scrubber | None = None
        self._run: Path | None = None
        self._shown: tuple[tuple[Path, float], ...] = ()
        self._numbers = 0

    def compose(self) -> ComposeResult:
        """Table and text over the prompt."""
        with Horizontal(id="scrub-top"):
            table: DataTable[Content] = DataTable(cursor_type="row", id="scrub-table")
            for heading, width in COLUMNS:
                table.add_column(heading, width=width)
            yield table
            with VerticalScroll(id="scrub-text", can_focus=False):
                yield Static("", markup=False)
        with Vertical(id="scrub-bottom"):
            with Horizontal(classes="row"):
                yield Label("prompt")
                yield Input((PROPOSED.prompt or "").replace("\n", "\\n"), id="scrub-prompt", compact=True)
            with Horizontal(classes="row"):
                yield Label("tokens")
                yield Input(str(PROPOSED.max_tokens), id="scrub-tokens", type="integer", compact=True)
                yield Label("seed")
                yield Input(str(PROPOSED.sampling.seed), id="scrub-seed", type="integer", compact=True)
                yield Label("temperature")
                yield Input(str(PROPOSED.sampling.temperature), id="scrub-temperature", type="number", compact=True)
                yield Label("penalty")
                yield Input(str(PROPOSED.sampling.repeat_penalty), id="scrub-penalty", type="number", compact=True)
            yield Static("", id="scrub-note", markup=False)

    @property
    def table(self) -> DataTable[Content]:
        """The table of checkpoints."""
        return self.query_one("#scrub-table", DataTable)

    def show(self, snapshot: Snapshot) -> None:
        """Show the checkpoints of a run, keeping the texts of those already asked."""
        if snapshot.path != self._run:
            self.action_stop_scrub()
            self._run, self._shown = snapshot.path, ()
            self.texts, self.errors, self.done = {}, {}, set()
        self.tokenizer, self.problem = run_tokenizer(snapshot.config), talk_problem(snapshot.config)
        found = tuple((c.path, c.modified) for c in snapshot.checkpoints)
        self.checkpoints = sorted(snapshot.checkpoints, key=lambda c: (c.step, c.modified))
        if found != self._shown or not self._shown:
            changed = dict(found)
            for path, modified in self._shown:
                if changed.get(path) != modified:  # written again, or pruned: its text is of another model
                    self.texts.pop(path, None)
                    self.done.discard(path)
            self._shown = found
            self._fill()

    def _fill(self) -> None:
        table, selected = self.table, self.selected
        at_end = selected is None or (table.row_count > 0 and table.cursor_row == table.row_count - 1)
        table.clear()
        for checkpoint in self.checkpoints:
            name = f"{checkpoint.step:,}" + ("*" if checkpoint.path.name == "final" else "")
            value = "–" if checkpoint.val_loss is None else f"{checkpoint.val_loss:.4f}"
            age = numbers.duration(max(0.0, time.time() - checkpoint.modified))
            cells = (Content(f"{name:>9}"), Content(f"{value:>7}"), Content(f"{age:>7}"), self._mark(checkpoint.path))
            table.add_row(*cells, key=str(checkpoint.path))
        if self.checkpoints:
            row = len(self.checkpoints) - 1
            if not at_end and selected is not None and str(selected.path) in table.rows:
                row = table.get_row_index(str(selected.path))
            table.move_cursor(row=row)
        self._note()
        self._show_text()

    def _mark(self, path: Path) -> Content:
        if path in self.errors:
            return Content.styled("✗", "$text-error")
        if path in self.done:
            return Content.styled("✓", "$text-success")
        return Content("…" if path in self.texts else " ")

    def _note(self, text: str = "") -> None:
        if not text and not self.checkpoints:
            text = "this run has no checkpoints yet" if self._run else "no run is open"
        self.query_one("#scrub-note", Static).update(display_safe(text, 300))

    @property
    def selected(self) -> Checkpoint | None:
        """The checkpoint under the cursor."""
        table = self.table
        if not table.row_count:
            return None
        key = table.coordinate_to_cell_key(table.cursor_coordinate).row_key.value
        return next((c for c in self.checkpoints if str(c.path) == key), None)

    # texts

    @on(DataTable.RowHighlighted)
    def _highlighted(self, event: DataTable.RowHighlighted) -> None:
        event.stop()
        self._show_text()

    def _show_text(self) -> None:
        chosen = self.selected
        static = self.query_one("#scrub-text Static", Static)
        if chosen is None:
            static.update("")
            return
        path = chosen.path
        if path in self.errors:
            static.update(Content.styled(display_safe(self.errors[path], 600), "$text-error"))
            return
        if path not in self.texts:
            static.update(Content.styled("g lets every checkpoint write from the prompt below", "$text 60%"))
            return
        text = self.texts[path]
        common = self._common(path, text)
        static.update(
            Content.assemble(
                (printable(self._prompt()), "$text 60%"),
                (printable(text[:common]), "$text 80%"),
                (printable(text[common:]), "bold $text-primary"),
            )
        )

    def _common(self, path: Path, text: str) -> int:
        """Characters a text shares with that of the checkpoint before."""
        paths = [c.path for c in self.checkpoints]
        at = paths.index(path)
        before = self.texts.get(paths[at - 1]) if at else None
        if before is None:
            return len(text)
        pairs = zip(text, before, strict=False)
        return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(text), len(before)))

    def _prompt(self) -> str:
        return self.query_one("#scrub-prompt", Input).value.replace("\\n", "\n").replace("\\t", "\t")

    # actions

    def action_cursor(self, by: int) -> None:
        """Move the cursor."""
        self.table.move_cursor(row=self.table.cursor_row + by)

    @on(DataTable.RowSelected)
    def _chosen(self, event: DataTable.RowSelected) -> None:
        event.stop()
        self.action_talk()

    def action_talk(self) -> None:
        """Talk to the checkpoint under the cursor."""
        if self.selected is not None:
            self.post_message(messages.CheckpointChosen(self.selected.path, "talk"))

    def action_export(self) -> None:
        """Export the checkpoint under the cursor."""
        if self.selected is not None:
            self.post_message(messages.CheckpointChosen(self.selected.path, "export"))

    @on(Input.Submitted)
    def _submitted(self, event: Input.Submitted) -> None:
        event.stop()
        self.action_scrub()

    def action_scrub(self) -> None:
        """Let every checkpoint write, the newest first: it is the most interesting."""
        if not self.checkpoints or (self.scrubber is not None and self.scrubber.is_working):
            self._note(
                key_names(self)("it is writing already; {checkpoints.stop|Esc} stops it") if self.checkpoints else ""
            )
            return
        if self.problem is not None:
            self._note(self.problem)
            return
        try:
            request = with_settings(
                replace(PROPOSED, prompt=self._prompt()),
                seed=int(self.query_one("#scrub-seed", Input).value),
                max_tokens=int(self.query_one("#scrub-tokens", Input).value),
                temperature=float(self.query_one("#scrub-temperature", Input).value),
                repeat_penalty=float(self.query_one("#scrub-penalty", Input).value),
            )
        except ValueError:
            self._note("tokens and seed must be whole numbers, temperature and penalty numbers")
            return
        except UserError as error:
            self._note(str(error))
            return
        threads = self.threads()
        self.texts, self.errors, self.done = {}, {}, set()
        self._numbers += 1
        self.scrubber = Scrubber(self._numbers, self.exports, self.post_message)
        self.scrubber.start([c.path for c in reversed(self.checkpoints)], request, self.tokenizer, threads)
        fewer = f" on {counted(threads, 'thread')}, as a run computes on this machine" if threads is not None else ""
        self._note(f"exporting and loading{fewer} …")
        self._fill()
        self.table.focus()

    def action_stop_scrub(self) -> None:
        """Stop the scrubber."""
        if self.scrubber is not None and self.scrubber.is_working:
            self.scrubber.stop()
            self._note("stopped")

    @on(messages.ScrubProgress)
    def _progress(self, event: messages.ScrubProgress) -> None:
        event.stop()
        if event.number != self._numbers or event.checkpoint not in {c.path for c in self.checkpoints}:
            return
        path = event.checkpoint
        if event.error is not None:
            self.errors[path] = event.error
        else:
            self.texts[path] = event.text
        if event.done:
            self.done.add(path)
            total = len(self.checkpoints)
            self._note(f"{len(self.done)} of {total} checkpoints have written")
        table = self.table
        if str(path) in table.rows:
            table.update_cell_at(Coordinate(table.get_row_index(str(path)), 3), self._mark(path))
        if self.selected is not None:
            self._show_text()

    @on(messages.ScrubEnded)
    def _ended(self, event: messages.ScrubEnded) -> None:
        event.stop()
        if event.number == self._numbers and self.done:
            self._note(f"{len(self.done)} of {len(self.checkpoints)} have written; ↑/↓ leaf through")
