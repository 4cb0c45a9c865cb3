"""The input: grows with its text, sends on Enter, remembers, and shortens what is pasted by the page."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from textual.binding import Binding, BindingType
from textual.events import Paste
from textual.message import Message
from textual.widgets import TextArea

from nanochat_tui.tui.chat.history import History
from nanochat_tui.tui.messages import PromptSubmitted

LARGE_LINES = 60
LARGE_CHARACTERS = 8_000
"""Pastes beyond these stand in the input as one short mark, so that typing stays quick."""


class Prompt(TextArea):
    """A text area for one message. Posts `PromptSubmitted`; it empties itself only when told to, by `sent`."""

    HELP = """\
**Enter** sends, **Ctrl+J** begins a new line, **↑ ↓** bring back what you typed before. **/** begins a command; **Tab**
completes it.

**Esc** stops a reply, **Ctrl+R** writes it anew, **Ctrl+Y** copies it, **Ctrl+N** starts over, **Ctrl+O** shows the
sessions, **Ctrl+S** the settings of this one, **Ctrl+L** what the model does, **F5** token probabilities. **Ctrl+P**
finds every command, **Tab** goes to the transcript and its keys.

**Enter on an empty input** lets the last reply go on.
"""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("enter", "submit", "Send", priority=True, id="prompt.send"),
        Binding("ctrl+j,shift+enter,alt+enter", "newline", "Line", priority=True, id="prompt.newline"),
        Binding("tab", "complete", "Complete", show=False, id="prompt.complete"),
    ]

    @dataclass
    class Complete(Message):
        """Tab was pressed: complete the command `text`, or go on to the next widget."""

        text: str

    def __init__(self, *, past: History | None = None, id: str | None = None) -> None:
        super().__init__(
            id=id,
            soft_wrap=True,
            show_line_numbers=False,
            highlight_cursor_line=False,
            compact=True,
            tab_behavior="focus",
        )
        self.past = past or History()
        self._pasted: dict[str, str] = {}

    @property
    def full_text(self) -> str:
        """The text with everything that was pasted."""
        text = self.text
        for mark, pasted in self._pasted.items():
            text = text.replace(mark, pasted)
        return text

    def action_submit(self) -> None:
        """Offer the text to whoever listens, once the keys typed before this one are in it."""
        # priority bindings overtake keys that still wait in this widget's queue, as when a line is typed by a program
        self.call_later(self._offer)

    def _offer(self) -> None:
        self.post_message(PromptSubmitted(self.full_text))

    def action_newline(self) -> None:
        """Begin a new line at the cursor."""
        self.call_later(self.insert, "\n")

    def action_complete(self) -> None:
        """Complete a command, or go to the next widget."""
        self.post_message(self.Complete(self.text))

    async def _on_paste(self, event: Paste) -> None:
        text = event.text.replace("\r\n", "\n").replace("\r", "\n")
        lines = text.count("\n") + 1
        if lines <= LARGE_LINES and len(text) <= LARGE_CHARACTERS:
            return
        event.prevent_default()
        event.stop()
        mark = f"[pasted text {len(self._pasted) + 1}: {lines} lines, {len(text)} characters]"
        self._pasted[mark] = text
        self.insert(mark)

    def sent(self) -> None:
        """Remember the text and empty the input."""
        self.past.add(self.full_text)
        self.fill("")

    def fill(self, text: str) -> None:
        """Replace the whole text and stand at its end."""
        self.text = text
        self._pasted.clear()
        self.move_cursor(self.document.end)

    def action_cursor_up(self, select: bool = False) -> None:
        """Move up; from the first row go to the older entry."""
        at_top = self.navigator.is_first_wrapped_line(self.cursor_location)
        if not select and at_top and (text := self.past.older(self.full_text)) is not None:
            self.fill(text)
        else:
            super().action_cursor_up(select)

    def action_cursor_down(self, select: bool = False) -> None:
        """Move down; from the last row go to the newer entry."""
        at_bottom = self.navigator.is_last_wrapped_line(self.cursor_location)
        if not select and at_bottom and (text := self.past.newer()) is not None:
            self.fill(text)
        else:
            super().action_cursor_down(select)
