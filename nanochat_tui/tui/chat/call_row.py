"""A call of a tool in the transcript: one line, under which arguments and result can be unfolded."""

from __future__ import annotations

import json
from textwrap import indent

from textual.content import Content
from textual.events import Click

from nanochat_tui.chat.tools.records import CallRecord
from nanochat_tui.text import counted, display_safe, printable
from nanochat_tui.tui.widgets.selecting import SelectingStatic

LINES = 200
"""Lines of a result that are drawn; all of it is kept, searched and told to the model."""
_COLOURS = {"waiting": "$text-warning", "failed": "$text-error", "denied": "$text-warning", "done": "$text-success"}


class CallRow(SelectingStatic):
    """Shows one call; a click on its first line unfolds it."""

    def __init__(self, record: CallRecord, *, unfolded: bool = False) -> None:
        super().__init__(classes="call", markup=False)
        self.record = record
        self.unfolded = unfolded

    def on_mount(self) -> None:
        """Draw it."""
        self._draw()

    def show(self, record: CallRecord) -> None:
        """Show another state of the same call."""
        self.record = record
        self._draw()

    def fold(self, *, unfolded: bool) -> None:
        """Fold or unfold."""
        self.unfolded = unfolded
        self._draw()

    def on_click(self, event: Click) -> None:
        """Fold or unfold by the first line; the rest is text to be selected."""
        if event.chain == 1 and event.y == 0:
            event.stop()
            self.fold(unfolded=not self.unfolded)

    def _draw(self) -> None:
        record = self.record
        head = Content.assemble(
            (f"{'▾' if self.unfolded else '▸'} ", "$text 60%"),
            (display_safe(record.title, 80), "bold"),
            (f" {_in_line(record.arguments)}" if not self.unfolded else "", "$text 60%"),
            (f" · {record.outcome}", _COLOURS.get(record.state, "$text 60%")),
        )
        if not self.unfolded:
            more = f" · {counted(len(record.result), 'character')}" if record.state == "done" else ""
            if record.state == "failed":
                more = f": {display_safe(record.result.strip().partition(chr(10))[0], 80)}"
            self.update(Content.assemble(head, (more, "$text 60%")))
            return
        lines = record.result.split("\n")
        more = f"\n… {counted(len(lines) - LINES, 'more line')}" if len(lines) > LINES else ""
        shown = printable("\n".join(lines[:LINES])) + more
        arguments, result = indent(_indented(record.arguments), "  "), indent(shown, "  ")
        self.update(Content.assemble(head, (f"\n{arguments}", "$text 60%"), f"\n{result}"))


def _in_line(arguments: str) -> str:
    return "" if arguments.strip() in ("", "{}") else display_safe(arguments, 80)


def _indented(arguments: str) -> str:
    try:
        return printable(json.dumps(json.loads(arguments), ensure_ascii=False, indent=2))
    except (ValueError, RecursionError):
        return printable(arguments)
