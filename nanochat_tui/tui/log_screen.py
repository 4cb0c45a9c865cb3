"""The log, in the application."""

from __future__ import annotations

from typing import ClassVar

from rich.text import Text
from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.content import Content
from textual.screen import Screen
from textual.widgets import Input, RichLog, Static

from nanochat_tui.text import printable
from nanochat_tui.tui.log import lines
from nanochat_tui.tui.widgets.key_line import KeyLine


class LogScreen(Screen[None]):
    """Shows what was noted since the start; follows what comes."""

    DEFAULT_CSS = """
    LogScreen #log-head { height: 1; background: $surface-lighten-1; padding: 0 1; }
    LogScreen RichLog { height: 1fr; }
    """
    HELP = "### Log\nWhat the application noted since it was started. Type to filter; **Esc** goes back."
    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape,f8", "dismiss", "Back", priority=True)]

    def compose(self) -> ComposeResult:
        """Lay out the lines and a filter."""
        yield Static(Content("Log"), id="log-head")
        yield RichLog(wrap=True, min_width=1)
        yield Input(placeholder="show only lines with …", compact=True)
        yield KeyLine()

    def on_mount(self) -> None:
        """Show what there is and look for more twice a second."""
        self._shown = -1
        self._fill()
        self.set_interval(0.5, self._fill)
        self.query_one(Input).focus()

    def on_resize(self) -> None:
        """Break the lines again."""
        self._shown = -1
        self._fill()

    @on(Input.Changed)
    def _filtered(self) -> None:
        self._shown = -1
        self._fill()

    def _fill(self) -> None:
        if len(lines) == self._shown and lines and lines[-1] == self._last:
            return
        self._shown, self._last = len(lines), lines[-1] if lines else ""
        words = self.query_one(Input).value.lower().split()
        chosen = [line for line in lines if all(word in line.lower() for word in words)]
        log = self.query_one(RichLog)
        log.clear()
        log.write(Text("\n".join(printable(part) for line in chosen for part in line.splitlines())))
        self.query_one("#log-head", Static).update(Content(f"Log: {len(chosen)} of {len(lines)} lines"))

    _last = ""
