"""The input: grows with its text, sends on Enter, remembers, and shortens what is pasted by the page."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from rich.text import Text
from textual.binding import Binding, BindingType
from textual.events import Paste
from textual.message import Message
from textual.widgets import TextArea

from nanochat_tui.text import counted
from nanochat_tui.tui.chat.history import History
from nanochat_tui.tui.messages import PromptSubmitted

LARGE_LINES = 60
LARGE_CHARACTERS = 8_000
"""Texts beyond these stand in the input as one short mark, so that typing stays quick."""
_PICTURES = {code: chr(0x2400 + code) for code in range(0x20) if code != 0x09} | {0x7F: "\u2421"}
_PICTURES |= dict.fromkeys(range(0x80, 0xA0), "\ufffd")


def _is_large(text: str) -> bool:
    return len(text) > LARGE_CHARACTERS or text.count("\n") >= LARGE_LINES


class Prompt(TextArea):
    """A text area for one message. Posts `PromptSubmitted`; it empties itself only when told to, by `sent`."""

    HELP = """\
**{prompt.send|Enter}** sends, **{prompt.newline|Ctrl+J}** begins a new line, **↑ ↓** bring back what you typed before.
**/** begins a command; **{prompt.complete|Tab}** completes its name and the path it takes.

**{chat.stop|Esc}** stops a reply, **{chat.again|Ctrl+R}** writes it again, **{chat.earlier_version|Alt+←}
{chat.later_version|Alt+→}** show what was written before, **{chat.copy|Ctrl+Y}** copies it, **{chat.new|Ctrl+N}**
starts over, **{chat.sessions|Ctrl+O}** shows the sessions, **{chat.settings|Ctrl+S}** the settings of this one,
**{chat.live|Ctrl+L}** what the model does, **{chat.lens|F5}** token probabilities. **{app.palette|Ctrl+P}** finds every
command, **{prompt.complete|Tab}** goes to the transcript and its keys.

**{prompt.send|Enter} on an empty input** continues the last reply.
"""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("enter", "submit", "Send", priority=True, id="prompt.send"),
        Binding("ctrl+j,shift+enter,alt+enter", "newline", "Line", priority=True, id="prompt.newline"),
        Binding("tab", "complete(1)", "Complete", show=False, id="prompt.complete"),
        Binding("shift+tab", "complete(-1)", "Previous field", show=False, id="prompt.previous"),
    ]

    @dataclass
    class Complete(Message):
        """Tab was pressed: complete the command `text`, or go to the next widget (`step` 1) or the one before (-1)."""

        text: str
        step: int = 1

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
        """Post the text as a message, once the keys typed before this one are in it."""
        # priority bindings overtake keys that still wait in this widget's queue, as when a line is typed by a program
        self.call_later(self._offer)

    def _offer(self) -> None:
        self.post_message(PromptSubmitted(self.full_text))

    def action_newline(self) -> None:
        """Begin a new line at the cursor."""
        self.call_later(self.insert, "\n")

    def action_complete(self, step: int = 1) -> None:
        """Complete a command, or go to another widget."""
        self.post_message(self.Complete(self.text, step))

    async def _on_paste(self, event: Paste) -> None:
        if _is_large(event.text):
            event.prevent_default()
            event.stop()
            self.insert(self._mark(event.text))

    def _mark(self, text: str) -> str:
        """Keep a large text apart and return what stands for it."""
        size = f"{counted(text.count(chr(10)) + 1, 'line')}, {counted(len(text), 'character')}"
        mark = f"[pasted text {len(self._pasted) + 1}: {size}]"
        self._pasted[mark] = text
        return mark

    def sent(self) -> None:
        """Remember the text and empty the input."""
        self.past.add(self.full_text)
        self.fill("")

    def fill(self, text: str) -> None:
        """Replace the whole text and stand at its end; a large one is shortened as a paste is."""
        self._pasted.clear()
        self.text = self._mark(text) if _is_large(text) else text
        self.move_cursor(self.document.end)

    def get_line(self, line_index: int) -> Text:
        """Return a line as it is drawn: a control character as a picture of it, and never as what it does."""
        line = super().get_line(line_index)
        if not line.plain.isprintable():
            line.plain = line.plain.translate(_PICTURES)
        return line

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
        if not select and at_bottom and (text := self.past.newer(self.full_text)) is not None:
            self.fill(text)
        else:
            super().action_cursor_down(select)
