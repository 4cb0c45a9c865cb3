"""The scrolling part of the chat: a welcome, turns, and notes between them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from textual import on
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.content import Content
from textual.message import Message
from textual.widgets import Static

from nanochat_tui.chat.tools.records import CallRecord
from nanochat_tui.text import printable
from nanochat_tui.tui.chat.conversation import Turn
from nanochat_tui.tui.chat.turns import AnyTurn, CompletionTurn, DialogueTurn, TurnClicked
from nanochat_tui.tui.keys import key_names

WINDOW = 40
"""Turns shown at first, and added each time the reader wants older ones: a thousand widgets make every key slow."""
MOST = 120
"""Turns beyond which the oldest leave the screen (not the session) while new ones are written."""


class Older(Static):
    """Stands for the turns that are not on the screen."""

    class Wanted(Message):
        """The reader wants them."""

    def show(self, count: int) -> None:
        """Say how many there are."""
        self.update(Content(key_names(self)(f"↑ {count} earlier turns — {{read.top|Home}} or a click shows more")))

    def on_click(self) -> None:
        """Bring them."""
        self.post_message(self.Wanted())


class Transcript(VerticalScroll):
    """Shows what was said. Stays at the end while text arrives, unless the reader has scrolled up."""

    FOCUS_ON_CLICK = False
    HELP = """\
### The transcript
The bar at the left marks the turn that the keys act on; **{read.previous|↑} {read.next|↓}** (or a click) choose another
one. **{read.down|j} {read.up|k}** scroll by a row, **{read.half_down|Ctrl+D} {read.half_up|Ctrl+U}** by half a page,
**{read.top|g} {read.end|G}** go to both ends; while a reply is being written the view follows it, until you scroll up.

On the turn: **{turn.edit|e}** edit and send again, **{turn.again|r}** write again, **{turn.earlier|←} {turn.later|→}**
earlier and later versions of it, **{turn.delete|d}** delete, **{turn.undo|u}** undo, **{turn.copy|y}** copy,
**{turn.code|c}** copy a block of code, **{turn.fork|f}** fork the session there, **{turn.lens|p}** token probabilities,
**{turn.thoughts|t}** unfold what the model thought, **{turn.calls|x}** its calls of tools. What is replaced is kept as
a version, what is deleted comes back with **{turn.undo|u}**.

**{read.write|i}** or **{chat.back|Esc}** goes back to the input. Select text with the mouse and copy it with
**Ctrl+C**.
"""

    class Cleared(Message):
        """Another session, or none, is shown."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("j", "scroll_down", "Down", show=False, id="read.down"),
        Binding("k", "scroll_up", "Up", show=False, id="read.up"),
        Binding("g,home", "top", "Top", show=False, id="read.top"),
        Binding("G,end", "bottom", "End", show=False, id="read.end"),
        Binding("ctrl+d", "half(1)", "Half a page down", show=False, id="read.half_down"),
        Binding("ctrl+u", "half(-1)", "Half a page up", show=False, id="read.half_up"),
        Binding("up,K,shift+up,left_square_bracket", "choose(-1)", "Turn", key_display="↑↓", id="read.previous"),
        Binding("down,J,shift+down,right_square_bracket", "choose(1)", "Next turn", show=False, id="read.next"),
        Binding("left,h", "screen.command('earlier')", "Version", key_display="←→", id="turn.earlier"),
        Binding("right,l", "screen.command('later')", "Later version", show=False, id="turn.later"),
        Binding("e", "screen.command('edit')", "Edit", id="turn.edit"),
        Binding("r", "screen.command('retry')", "Again", id="turn.again"),
        Binding("d", "screen.command('remove')", "Delete", id="turn.delete"),
        Binding("u", "screen.command('undo')", "Undo", show=False, id="turn.undo"),
        Binding("y", "screen.command('copy_turn')", "Copy", show=False, id="turn.copy"),
        Binding("c", "screen.command('code')", "Code", id="turn.code"),
        Binding("f", "screen.command('fork')", "Fork", id="turn.fork"),
        Binding("p", "screen.command('lens')", "Probabilities", id="turn.lens"),
        Binding("t", "toggle_thinking", "Thoughts", show=False, id="turn.thoughts"),
        Binding("x", "toggle_calls", "Tool calls", show=False, id="turn.calls"),
        Binding("i", "screen.command('write')", "Write", id="read.write"),
    ]

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self._view: AnyTurn | None = None
        self._turns: Sequence[Turn] = ()
        self._is_chat = False
        self._model_name = ""
        self._chosen: AnyTurn | None = None
        self._marked = False
        """Whether the choice was made by the focus, and goes with it."""
        self.unfolded = False
        """Whether thinking is shown unfolded from the start."""
        self._can_continue = True

    def on_mount(self) -> None:
        """Follow what is written."""
        self.anchor()

    @property
    def views(self) -> list[AnyTurn]:
        """The turns on the screen, oldest first."""
        return [child for child in self.children if isinstance(child, (CompletionTurn, DialogueTurn))]

    @property
    def chosen(self) -> Turn | None:
        """The turn the reader points at; None if none."""
        return self._chosen.turn if self._chosen is not None and self._chosen.is_attached else None

    # What is shown

    async def show(self, turns: Sequence[Turn], *, is_chat: bool, model_name: str) -> None:
        """Show a whole session, or its last turns; earlier ones come when they are wanted."""
        await self.clear()
        self._turns, self._is_chat, self._model_name = turns, is_chat, model_name
        shown = turns[-WINDOW:]
        views = [self._made(turn, last=turn is turns[-1]) for turn in shown]
        if len(turns) > len(shown):
            older = Older(classes="note", id="older")
            older.show(len(turns) - len(shown))
            await self.mount(older)
        await self.mount_all(views)
        self._view = views[-1] if views else None
        self.scroll_end(animate=False)
        if self.has_focus:
            self.on_focus()

    def offer(self, *, continues: bool) -> None:
        """Say whether the last reply of a document can be continued, in its frame."""
        self._can_continue = continues
        if isinstance(self._view, CompletionTurn):
            self._view.offer(continues=continues)

    def _made(self, turn: Turn, *, last: bool) -> AnyTurn:
        if self._is_chat:
            return DialogueTurn(turn, finished=True, unfolded=self.unfolded)
        return CompletionTurn(turn, self._model_name, finished=True, continues=last and self._can_continue)

    @on(Older.Wanted)
    async def show_older(self) -> None:
        """Bring another window of earlier turns."""
        older = self.query("#older")
        if not older:
            return
        views = self.views
        first = next((i for i, turn in enumerate(self._turns) if views and turn is views[0].turn), len(self._turns))
        start = max(0, first - WINDOW)
        await self.mount_all([self._made(turn, last=False) for turn in self._turns[start:first]], after="#older")
        if start:
            older.first(Older).show(start)
        else:
            await older.remove()

    async def reveal(self, position: int) -> None:
        """Bring turn number `position` of the session onto the screen and choose it."""
        if not 0 <= position < len(self._turns):
            return
        wanted = self._turns[position]
        while not any(view.turn is wanted for view in self.views) and self.query("#older"):
            await self.show_older()
        view = next((view for view in self.views if view.turn is wanted), None)
        if view is not None:
            self.choose(view)
            self.call_after_refresh(self.scroll_to_widget, view, top=True, animate=False)

    async def welcome(self, title: str, lines: list[str], *, failed: bool = False) -> None:
        """Show what to expect, in place of turns; with `failed`, what went wrong."""
        content = Content.styled(printable(title), "bold $text-error" if failed else "bold $text-primary")
        for line in lines:
            content += Content("\n" + printable(line))
        existing = self.query("#welcome")
        if existing:
            shown = existing.first(Static)
            shown.update(content)
            shown.set_class(failed, "failed")
            # Textual keeps the height of what was there if it was laid out between two updates of one turn of its loop
            shown.call_after_refresh(shown.refresh, layout=True)
        else:
            await self.mount(Static(content, id="welcome", classes="failed" if failed else "", markup=False))

    async def begin(self, turn: Turn, turns: Sequence[Turn], *, is_chat: bool, model_name: str) -> None:
        """Show a new turn, the last of `turns`, whose reply is about to be written."""
        self._turns, self._is_chat, self._model_name = turns, is_chat, model_name
        await self.query("#welcome, .note.error").remove()
        self.choose(None)
        if self._view is not None:
            self._view.settle()
        if is_chat:
            self._view = DialogueTurn(turn, unfolded=self.unfolded)
        else:
            self._view = CompletionTurn(turn, model_name, continues=self._can_continue)
        await self._make_room()
        await self.mount(self._view)
        await self._view.restart()
        self.scroll_end(animate=False)

    async def redraw(self, turn: Turn) -> None:
        """Show a turn as it is now, in the place where it stands."""
        view = self.view_of(turn)
        if view is None:
            return
        made = self._made(turn, last=view is self._view)
        await self.mount(made, before=view)
        if view is self._view:
            self._view = made
        if view is self._chosen:
            self.choose(made)
        await view.remove()

    async def _make_room(self) -> None:
        views = self.views
        if len(views) < MOST:
            return
        await self.remove_children(views[: len(views) - WINDOW])
        hidden = len(self._turns) - 1 - WINDOW
        older = self.query("#older")
        if older:
            older.first(Older).show(hidden)
        else:
            made = Older(classes="note", id="older")
            made.show(hidden)
            await self.mount(made, before=0)

    async def restart(self) -> None:
        """Show that the last reply is written again or goes on; what went wrong before is no news any more."""
        await self.query(".note.error").remove()
        if self._view is not None:
            await self._view.restart()
            self.scroll_end(animate=False)

    async def write(self, text: str, *, thinking: bool = False) -> None:
        """Show more of the last reply."""
        if self._view is not None:
            await self._view.write(text, thinking=thinking)

    async def show_call(self, record: CallRecord) -> None:
        """Show a call of the last reply, or its new state."""
        if isinstance(self._view, DialogueTurn):
            await self._view.show_call(record)

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
        self._view = self._chosen = None
        self._turns = ()
        await self.remove_children()
        self.post_message(self.Cleared())

    # Choosing a turn

    def on_focus(self) -> None:
        """Mark the turn that the keys mean."""
        if self.chosen is None and self.views:
            self.choose(self.views[-1])
            self._marked = True

    def on_blur(self) -> None:
        """Take the mark away that came with the focus."""
        if self._marked:
            self.choose(None)

    def choose(self, view: AnyTurn | None) -> None:
        """Point at a turn, or at none."""
        self._marked = False
        if self._chosen is not None:
            self._chosen.remove_class("-chosen")
        self._chosen = view
        if view is not None:
            view.add_class("-chosen")

    @on(TurnClicked)
    def _clicked(self, event: TurnClicked) -> None:
        event.stop()
        self.choose(None if event.view is self._chosen else event.view)

    def view_of(self, turn: Turn) -> AnyTurn | None:
        """Return the widget of a turn, if it is on the screen."""
        return next((view for view in self.views if view.turn is turn), None)

    # Keys

    def action_choose(self, step: int) -> None:
        """Point at the next or previous turn."""
        views = self.views
        if not views:
            return
        at = views.index(self._chosen) + step if self._chosen in views else len(views) - 1
        self.choose(views[max(0, min(len(views) - 1, at))])
        if self._chosen is not None:
            self.scroll_to_widget(self._chosen, animate=False)

    def action_half(self, sign: int) -> None:
        """Scroll by half a page."""
        self.scroll_relative(y=sign * max(1, self.size.height // 2), animate=False)

    async def action_top(self) -> None:
        """Go to the beginning of what is shown; when there already, bring earlier turns."""
        if self.scroll_y == 0 and self.query("#older"):
            await self.show_older()
        self.scroll_home(animate=False)

    def action_bottom(self) -> None:
        """Go to the end, and follow what is written."""
        self.scroll_end(animate=False)
        self.anchor()

    def action_toggle_thinking(self) -> None:
        """Fold or unfold what the model thought in the chosen turn, or in the last one."""
        view = self._chosen or self._view
        if view is None or not view.toggle_thinking():
            self.app.bell()

    def action_toggle_calls(self) -> None:
        """Fold or unfold the calls of tools in the chosen turn, or in the last one."""
        view = self._chosen or self._view
        if not isinstance(view, DialogueTurn) or not view.toggle_calls():
            self.app.bell()
