"""The same prompt on the chat's model and on a server, side by side."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from functools import partial
from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, VerticalScroll
from textual.content import Content
from textual.screen import Screen
from textual.widgets import Static

from nanochat_tui.chat.backend import Backend, Request, Token
from nanochat_tui.chat.parity import Parity, compare, in_words, parity_request
from nanochat_tui.text import printable
from nanochat_tui.tui.background import Job
from nanochat_tui.tui.chat.lens import choices, probability, spelled
from nanochat_tui.tui.numbers import percent
from nanochat_tui.tui.widgets.key_line import KeyLine


@dataclass(eq=False)
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
The same prompt, decoded greedily (temperature 0) by the model of the chat, which may be a server's too, and by another
server. The text both agree on is dim, what comes after the first difference is marked. Below stand the alternatives of
both at that place. The divergence is over the alternatives that both returned, not over the whole vocabulary. **r**
asks again, **Esc** goes back.
"""
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "leave", "Back", priority=True),
        Binding("r", "again", "Again"),
    ]

    def __init__(self, ours: Backend, other: Backend, request: Request) -> None:
        super().__init__()
        self._request = parity_request(request)
        self._backends = (ours, other)
        self.sides: tuple[Side, ...] = ()
        self.parity: Parity | None = None
        self._cancel = threading.Event()
        self._jobs: list[Job[list[Token]]] = []

    def compose(self) -> ComposeResult:
        """Lay out two columns."""
        yield Static(id="parity-summary", markup=False)
        with Horizontal(id="parity-sides"):
            for place in range(2):
                with VerticalScroll() as box:
                    box.border_title = self._title(place)
                    yield Static(id=f"parity-{place}", markup=False)
        yield Static(id="parity-choices", markup=False)
        yield KeyLine()

    def on_mount(self) -> None:
        """Begin."""
        self.action_again()

    def action_again(self) -> None:
        """Ask both again."""
        self._cancel.set()
        self._cancel = threading.Event()
        self.parity = None
        self.sides = tuple(Side(backend) for backend in self._backends)
        self.query_one("#parity-summary", Static).update("asking both …")
        self.query_one("#parity-choices", Static).update("")
        for job in self._jobs:
            job.stop()
        self._jobs = [
            Job(
                self,
                partial(self._ask, side, self._cancel),
                partial(self._answered, side),
                partial(self._failed, side),
                name="parity",
            ).start()
            for side in self.sides
        ]

    def action_leave(self) -> None:
        """Go back."""
        self.dismiss()

    def on_unmount(self) -> None:
        """Stop both; the connections to the other one are this screen's own."""
        self._cancel.set()
        for job in self._jobs:
            job.stop()
        self._backends[1].close()

    def _title(self, place: int) -> str:
        """Say which side is which: by the place when one is a file here, else by the server's address."""
        backend = self._backends[place]
        where = (
            "here" if backend.path is not None else "server" if self._backends[0].path is not None else backend.kernel
        )
        return f"{where}: {printable(backend.name)}"

    def _ask(self, side: Side, cancel: threading.Event, _: Job[list[Token]]) -> list[Token]:
        side.backend.load()
        return [event for event in side.backend.chat(self._request, cancel) if isinstance(event, Token)]

    def _answered(self, side: Side, tokens: list[Token]) -> None:
        side.tokens = tokens
        self._finished(side)

    def _failed(self, side: Side, error: str) -> None:
        side.error = error
        self._finished(side)

    def _finished(self, ended: Side) -> None:
        """Show what there is."""
        ended.done = True
        for place, side in enumerate(self.sides):
            box = self.query_one(f"#parity-{place}", Static)
            box.parent.border_title = self._title(place)  # type: ignore[union-attr]
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
                [
                    f"{spelled(c.text).replace(' ', '·')[:18]:<19}{percent(probability(c.logprob)):>8}"
                    for c in choices(token)
                ]
            )
        rows = [
            f"{(columns[0][i] if i < len(columns[0]) else ''):<40}{columns[1][i] if i < len(columns[1]) else ''}"
            for i in range(min(10, max(map(len, columns))))
        ]
        return Content("\n".join(["alternatives where they part:", *rows]))
