"""The same prompt on the engine here and on a server, side by side."""

from __future__ import annotations

import contextvars
import threading
from dataclasses import dataclass, field
from functools import partial
from typing import ClassVar

from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, VerticalScroll
from textual.content import Content
from textual.message import Message
from textual.screen import Screen
from textual.widgets import Static

from nanochat_tui.chat.backend import Backend, Request, Token
from nanochat_tui.chat.parity import Parity, compare, in_words, parity_request
from nanochat_tui.chat.printable import printable
from nanochat_tui.tui.chat.generation import explain
from nanochat_tui.tui.chat.lens import choices, percent, spelled
from nanochat_tui.tui.widgets.key_line import KeyLine


@dataclass
class Side:
    """One of the two answers."""

    backend: Backend
    tokens: list[Token] = field(default_factory=list)
    done: bool = False
    error: str | None = None


class ParityScreen(Screen[None]):
    """Asks both at once, greedily, and marks where they part."""

    DEFAULT_CSS = """
    ParityScreen #parity-summary { height: auto; padding: 0 1; background: $surface; min-height: 2; }
    ParityScreen #parity-sides { height: 1fr; }
    ParityScreen VerticalScroll { width: 1fr; border: round $surface-lighten-2; padding: 0 1; }
    ParityScreen #parity-choices { height: auto; max-height: 12; padding: 0 1; background: $surface; }
    """
    HELP = """\
### Parity
The same prompt, decoded greedily (temperature 0) by the engine here and by the server. The text both agree on is dim,
what comes after the first difference is marked. Below stand the alternatives of both at that place. The divergence is
over the alternatives that both returned, not over the whole vocabulary. **r** asks again, **Esc** goes back.
"""
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "leave", "Back", priority=True),
        Binding("r", "again", "Again"),
    ]

    class Finished(Message):
        """One of the two has answered."""

    def __init__(self, local: Backend, remote: Backend, request: Request) -> None:
        super().__init__()
        self._request = parity_request(request)
        self._backends = (local, remote)
        self.sides: tuple[Side, ...] = ()
        self.parity: Parity | None = None
        self._cancel = threading.Event()

    def compose(self) -> ComposeResult:
        """Lay out two columns."""
        yield Static(id="parity-summary", markup=False)
        with Horizontal(id="parity-sides"):
            for place, title in enumerate(("here", "server")):
                with VerticalScroll() as box:
                    box.border_title = title
                    yield Static(id=f"parity-{place}", markup=False)
        yield Static(id="parity-choices", markup=False)
        yield KeyLine()

    def on_mount(self) -> None:
        """Begin."""
        self.action_again()

    def action_again(self) -> None:
        """Ask both anew."""
        self._cancel.set()
        self._cancel = threading.Event()
        self.parity = None
        self.sides = tuple(Side(backend) for backend in self._backends)
        self.query_one("#parity-summary", Static).update("asking both …")
        self.query_one("#parity-choices", Static).update("")
        for side in self.sides:
            context = contextvars.copy_context()
            work = partial(context.run, self._ask, side, self._cancel)
            threading.Thread(target=work, name="parity", daemon=True).start()

    def action_leave(self) -> None:
        """Stop both and go back."""
        self._cancel.set()
        self.dismiss()

    def _ask(self, side: Side, cancel: threading.Event) -> None:
        try:
            side.backend.load()
            for event in side.backend.chat(self._request, cancel):
                if isinstance(event, Token):
                    side.tokens.append(event)
        except Exception as exc:
            side.error = explain(exc)
        side.done = True
        self.post_message(self.Finished())

    @on(Finished)
    def _finished(self) -> None:
        for place, side in enumerate(self.sides):
            box = self.query_one(f"#parity-{place}", Static)
            box.parent.border_title = f"{'here' if place == 0 else 'server'}: {printable(side.backend.name)}"  # type: ignore[union-attr]
            text = "".join(token.text for token in side.tokens)
            box.update(Content(printable(side.error or text or ("…" if not side.done else "(nothing)"))))
        if all(side.done and side.error is None for side in self.sides):
            self._show()
        elif all(side.done for side in self.sides):
            self.query_one("#parity-summary", Static).update("There is nothing to compare.")

    def _show(self) -> None:
        left, right = self.sides
        found = self.parity = compare(left.tokens, right.tokens)
        self.query_one("#parity-summary", Static).update(
            Content.styled(in_words(found), "$text-success" if found.same else "$text-warning")
        )
        for place, side in enumerate(self.sides):
            text = "".join(token.text for token in side.tokens)
            same, other = printable(text[: found.text_at]), printable(text[found.text_at :])
            content = Content.styled(same, "$text 70%") + Content.styled(other, "$text on $warning-muted")
            self.query_one(f"#parity-{place}", Static).update(content)
        if found.by_tokens and not found.same:
            self.query_one("#parity-choices", Static).update(self._choices(found.common))

    def _choices(self, place: int) -> Content:
        """The alternatives of both at the place where they part, side by side."""
        columns = []
        for side in self.sides:
            token = [token for token in side.tokens if token.text][place]
            columns.append(
                [f"{spelled(c.text).replace(' ', '·')[:18]:<19}{percent(c.logprob):>8}" for c in choices(token)]
            )
        rows = [
            f"{(columns[0][i] if i < len(columns[0]) else ''):<40}{columns[1][i] if i < len(columns[1]) else ''}"
            for i in range(min(10, max(map(len, columns))))
        ]
        return Content("\n".join(["alternatives where they part:", *rows]))
