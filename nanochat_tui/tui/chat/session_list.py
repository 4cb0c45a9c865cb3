"""The sessions at the left: found, sorted, opened, and changed by single keys."""

from __future__ import annotations

import time
from typing import ClassVar

from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.content import Content
from textual.widgets import Input, OptionList, Static
from textual.widgets.option_list import Option

from nanochat_tui.chat.store import Store
from nanochat_tui.chat.store.records import Order, SearchHit, SessionInfo
from nanochat_tui.text import counted, printable
from nanochat_tui.tui.background import answer_of
from nanochat_tui.tui.messages import SessionAction, SessionChosen
from nanochat_tui.tui.numbers import age

ORDERS: tuple[Order, ...] = ("updated", "created", "title", "turns")
ORDER_NAMES: dict[Order, str] = {
    "updated": "last used",
    "created": "newest",
    "title": "by name",
    "turns": "longest",
}


class Sessions(OptionList):
    """The list itself. Its keys act on the session under the cursor."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("j", "cursor_down", "Down", show=False, id="sessions.down"),
        Binding("k", "cursor_up", "Up", show=False, id="sessions.up"),
        Binding("r", "act('rename')", "Rename", id="sessions.rename"),
        Binding("d,delete", "act('delete')", "Delete", id="sessions.delete"),
        Binding("f", "act('fork')", "Fork", id="sessions.fork"),
        Binding("e", "act('export')", "Export", id="sessions.export"),
        Binding("s", "sort", "Sort", id="sessions.sort"),
        Binding("slash", "find", "Search", id="sessions.search"),
    ]

    def action_act(self, action: str) -> None:
        """Do something to the session under the cursor."""
        session = self.session
        if session is not None:
            self.post_message(SessionAction(action, session))

    @property
    def session(self) -> str | None:
        """Id of the session under the cursor."""
        if self.highlighted is None:
            return None
        identity = self.get_option_at_index(self.highlighted).id
        return identity.split("@")[0] if identity else None

    def action_sort(self) -> None:
        """Take the next order."""
        self.query_ancestor(SessionList).next_order()

    def action_find(self) -> None:
        """Go to the search."""
        self.query_ancestor(SessionList).query_one(Input).focus()


class SessionSearch(Input):
    """What is typed searches; the arrow keys and Enter act on the list below."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("up", "move(-1)", "Session", key_display="↑↓", id="sessions.search_up"),
        Binding("down", "move(1)", "Next session", show=False, id="sessions.search_down"),
    ]

    def action_move(self, step: int) -> None:
        """Move the cursor of the list."""
        options = self.query_ancestor(SessionList).options
        if step > 0:
            options.action_cursor_down()
        else:
            options.action_cursor_up()


class SessionList(Vertical):
    """Search above, sessions below. Posts `SessionChosen` and `SessionAction`."""

    HELP = """\
### Sessions
Everything that was said is kept. Type to search every prompt, reply, call of a tool and name; parts of words count.
**↑ ↓** choose a session, **Enter** opens it, **{chat.back|Esc}** closes.

**Tab** goes to the list, where letters are commands: **{sessions.rename|r}** renames, **{sessions.delete|d}** deletes
(**/restore** brings it back), **{sessions.fork|f}** copies into a new session, **{sessions.export|e}** writes to a
file, **{sessions.sort|s}** sorts, **{sessions.search|/}** goes back to the search.
"""

    def __init__(self, store: Store, order: Order = "updated", *, id: str | None = None) -> None:
        super().__init__(id=id)
        self._store = store
        self.order = order
        self.current: str | None = None
        self._asked = 0

    def compose(self) -> ComposeResult:
        """Lay out search and list."""
        yield SessionSearch(placeholder="search all sessions", id="session-search", compact=True)
        yield Sessions(id="session-options", compact=True, markup=False)
        yield Static(id="session-hint", markup=False)

    @property
    def options(self) -> Sessions:
        """The list."""
        return self.query_one(Sessions)

    async def open(self, search: str | None = None) -> None:
        """Show all sessions, or those that hold some words."""
        self.display = True
        field = self.query_one(Input)
        field.value = search or ""
        await self.refresh_list()
        field.focus()

    def next_order(self) -> None:
        """Sort by the next criterion."""
        self.order = ORDERS[(ORDERS.index(self.order) + 1) % len(ORDERS)]
        self.call_next(self.refresh_list)

    async def refresh_list(self) -> None:
        """Ask the store again."""
        self._asked += 1
        asked = self._asked
        words = self.query_one(Input).value.strip()
        if words:
            hits = await answer_of(self, self._store.search(words))
            if asked == self._asked and hits is not None:
                self._fill([self._hit(hit) for hit in hits])
                self._hint(f"{len(hits)} found" if hits else "nothing found")
            return
        found = await answer_of(self, self._store.sessions(self.order))
        if asked == self._asked and found is not None:
            self._fill([self._entry(info) for info in found])
            self._hint(f"{len(found)} · {ORDER_NAMES[self.order]}" if found else "no sessions yet")

    def _fill(self, options: list[Option]) -> None:
        place, session = self.options.highlighted, self.options.session
        self.options.clear_options()
        self.options.add_options(options)
        if options:  # the cursor stays on its session, wherever that went
            same = next((i for i, option in enumerate(options) if (option.id or "").split("@")[0] == session), None)
            self.options.highlighted = min(place or 0, len(options) - 1) if same is None else same

    def _hint(self, text: str) -> None:
        self.query_one("#session-hint", Static).update(Content(text))

    def _entry(self, info: SessionInfo) -> Option:
        here = info.id == self.current
        mark = Content.styled("● " if here else "⑂ " if info.parent else "  ", "$text-primary")
        more = f"\n  {age(time.time() - info.updated)} · {counted(info.turns, 'turn')} · {info.model}"
        text = mark + Content.styled(printable(info.title), "bold" if here else "")
        return Option(text + Content.styled(printable(more), "$text 60%"), id=info.id)

    @staticmethod
    def _hit(hit: SearchHit) -> Option:
        where = (
            "name" if hit.position is None else f"turn {hit.position + 1}{', another version' if hit.earlier else ''}"
        )
        text = Content.assemble((printable(hit.title), "bold"), (f"  {where}\n  ", "$text 60%"))
        before, marked, rest = hit.snippet.partition("⟦")
        pieces = [Content(printable(" ".join(before.split()) + " " * bool(before[-1:].isspace())))]
        while marked:
            word, _, after = rest.partition("⟧")
            pieces.append(Content.styled(printable(word), "bold $text-accent"))
            plain, marked, rest = after.partition("⟦")
            pieces.append(Content(printable(plain.replace("\n", " "))))
        for piece in pieces:
            text += piece
        return Option(text, id=f"{hit.session}@{'' if hit.position is None else hit.position}")

    @on(Input.Changed)
    async def _searched(self, event: Input.Changed) -> None:
        event.stop()
        await self.refresh_list()

    @on(Input.Submitted)
    def _open_first(self, event: Input.Submitted) -> None:
        event.stop()
        if self.options.option_count:
            self.options.action_select()

    @on(OptionList.OptionSelected)
    def _opened(self, event: OptionList.OptionSelected) -> None:
        event.stop()
        if event.option_id:
            session, _, position = event.option_id.partition("@")
            self.post_message(SessionChosen(session, int(position) if position else None))
