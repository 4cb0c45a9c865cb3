"""The input: grows with its text, sends on Enter, remembers."""

from __future__ import annotations

from typing import ClassVar

from textual.binding import Binding, BindingType
from textual.widgets import TextArea

from nanochat_tui.tui.chat.history import History
from nanochat_tui.tui.messages import PromptSubmitted


class Prompt(TextArea):
    """A text area for one message. Posts `PromptSubmitted`; it empties itself only when told to, by `sent`."""

    HELP = """\
**Enter** sends, **Ctrl+J** begins a new line, **↑ ↓** bring back what you typed before.

**Esc** stops a reply, **Ctrl+R** writes it anew, **Ctrl+Y** copies it, **Ctrl+N** starts over, **Ctrl+S** changes the
sampling, **Ctrl+P** finds every command, **Tab** goes to the transcript.

With a base model, **Enter on an empty input** lets the last reply go on.
"""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("enter", "submit", "Send", priority=True, id="prompt.send"),
        Binding("ctrl+j,shift+enter,alt+enter", "newline", "Line", priority=True, id="prompt.newline"),
    ]

    def __init__(self, *, past: History | None = None, id: str | None = None) -> None:
        super().__init__(id=id, soft_wrap=True, show_line_numbers=False, highlight_cursor_line=False, compact=True)
        self.past = past or History()

    def action_submit(self) -> None:
        """Offer the text to whoever listens."""
        self.post_message(PromptSubmitted(self.text))

    def action_newline(self) -> None:
        """Begin a new line at the cursor."""
        self.insert("\n")

    def sent(self) -> None:
        """Remember the text and empty the input."""
        self.past.add(self.text)
        self.text = ""

    def action_cursor_up(self, select: bool = False) -> None:
        """Move up; from the first row go to the older entry."""
        at_top = self.navigator.is_first_wrapped_line(self.cursor_location)
        if not select and at_top and (text := self.past.older(self.text)) is not None:
            self._show(text)
        else:
            super().action_cursor_up(select)

    def action_cursor_down(self, select: bool = False) -> None:
        """Move down; from the last row go to the newer entry."""
        at_bottom = self.navigator.is_last_wrapped_line(self.cursor_location)
        if not select and at_bottom and (text := self.past.newer()) is not None:
            self._show(text)
        else:
            super().action_cursor_down(select)

    def _show(self, text: str) -> None:
        self.text = text
        self.move_cursor(self.document.end)
