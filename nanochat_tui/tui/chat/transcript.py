"""The scrolling part of the chat: a welcome, turns, and notes between them."""

from __future__ import annotations

from textual.containers import VerticalScroll
from textual.content import Content
from textual.widgets import Static

from nanochat_tui.chat.printable import printable
from nanochat_tui.tui.chat.conversation import Turn
from nanochat_tui.tui.chat.turns import CompletionTurn, DialogueTurn


class Transcript(VerticalScroll):
    """Shows what was said. Stays at the end while text arrives, unless the reader has scrolled up."""

    HELP = """\
### The transcript
**↑ ↓ PageUp PageDown Home End** scroll. While a reply is being written the view follows it, until you scroll up; go to
the end and it follows again. Select text with the mouse and copy it with **Ctrl+C**.
"""

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self._view: CompletionTurn | DialogueTurn | None = None

    def on_mount(self) -> None:
        """Follow what is written."""
        self.anchor()

    async def welcome(self, title: str, lines: list[str], *, failed: bool = False) -> None:
        """Show what to expect, in place of turns; with `failed`, what went wrong."""
        content = Content.styled(printable(title), "bold $text-error" if failed else "bold $text-primary")
        for line in lines:
            content += Content("\n" + printable(line))
        existing = self.query("#welcome")
        if existing:
            existing.first(Static).update(content)
            existing.first(Static).set_class(failed, "failed")
        else:
            await self.mount(Static(content, id="welcome", classes="failed" if failed else "", markup=False))

    async def begin(self, turn: Turn, *, is_chat: bool, model_name: str) -> None:
        """Show a new turn, whose reply is about to be written."""
        await self.query("#welcome").remove()
        if isinstance(self._view, CompletionTurn):
            self._view.settle()
        self._view = DialogueTurn(turn) if is_chat else CompletionTurn(turn, model_name)
        await self.mount(self._view)
        await self._view.restart()
        self.scroll_end(animate=False)

    async def restart(self) -> None:
        """Show that the last reply is written anew or goes on."""
        if self._view is not None:
            await self._view.restart()
            self.scroll_end(animate=False)

    async def write(self, text: str) -> None:
        """Show more of the last reply."""
        if self._view is not None:
            await self._view.write(text)

    async def finish(self) -> None:
        """Show the last reply as finished."""
        if self._view is not None:
            await self._view.finish()

    async def context_note(self, text: str) -> None:
        """Say what no longer reaches the model, in the one place for it."""
        existing = self.query("#context-note")
        if existing:
            existing.first(Static).update(Content(printable(text)))
        else:
            await self.mount(Static(Content(printable(text)), id="context-note", classes="note", markup=False))

    async def note(self, text: str, *, error: bool = False) -> None:
        """Say something between turns, in the application's own voice."""
        await self.mount(Static(Content(printable(text)), classes="note error" if error else "note", markup=False))

    async def clear(self) -> None:
        """Forget all turns and notes."""
        self._view = None
        await self.remove_children()
