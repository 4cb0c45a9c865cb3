"""The form that starts an evaluation."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import ClassVar

from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, VerticalScroll
from textual.content import Content
from textual.message import Message
from textual.widget import Widget
from textual.widgets import Button, Input, Label, Static

from nanochat_tui.errors import UserError
from nanochat_tui.text import display_safe
from nanochat_tui.tui.evaluate.starting import DEFAULTS, SETS, Start, start_of
from nanochat_tui.tui.widgets.choice import Choice

HINTS = {
    "set": "What the model is asked; ←/→ takes another one.",
    "model": "A GGUF file or a checkpoint folder; with a server, the name of one of its models.",
    "server": "URL of an OpenAI-compatible server; empty: the model runs here.",
    "file": "Problems (JSON lines), or for held-out Rust files of your own; empty: what comes along.",
    "limit": "Only so many problems; empty: all.",
    "samples": "Completions of each problem.",
    "temperature": "0: greedy. Held-out Rust takes several, as in 0,0.2,0.8.",
    "max_tokens": "Longest completion.",
    "threads": "Empty: one per physical core.",
    "unsafe": "yes: run the model's programs even where no isolation works.",
    "name": "Of the folder; empty: after set and model. One that was stopped continues.",
}


class FormFields(VerticalScroll, can_focus=False):
    """The fields; the arrows go from one to the next."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("down", "app.focus_next", "Next field", show=False),
        Binding("up", "app.focus_previous", "Previous field", show=False),
    ]


class StartForm(Widget):
    """Collects what to evaluate; asks for it by `Wanted`."""

    HELP = """\
## New evaluation
Enter or **{evaluate.launch|Ctrl+L}** starts exactly the command line that stands below the fields, as a process of its
own that continues when this application ends. ↑ ↓ and Tab go from field to field, ←/→ choose.
"""

    class Wanted(Message):
        """Start this."""

        def __init__(self, start: Start) -> None:
            super().__init__()
            self.start = start

    def __init__(self, root: Path, model: str, server: str, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self.root = root
        self._first = {**DEFAULTS, "model": model, "server": server}
        self.problem = ""

    def compose(self) -> ComposeResult:
        """Fields over a hint, the command, and the button."""
        with FormFields(id="start-fields"):
            for name, value in self._first.items():
                yield Horizontal(Label(name.replace("_", " ")), self._field(name, value), classes="row")
        yield Static("", id="start-hint", markup=False)
        yield Static("", id="start-command", markup=False)
        yield Button("Start", id="start-button", variant="primary", compact=True)

    def _field(self, name: str, value: str) -> Widget:
        if name == "set":
            return Choice(tuple(SETS), value, titles=SETS, id="start-set", name=name)
        if name == "unsafe":
            return Choice(("no", "yes"), value, id="start-unsafe", name=name)
        return Input(value, id=f"start-{name}", name=name, compact=True, select_on_focus=name not in ("model", "file"))

    def on_mount(self) -> None:
        """Judge what the form begins with."""
        self._judge()

    def focus_first(self) -> None:
        """Put the cursor where one begins."""
        self.query_one("#start-set").focus()

    def texts(self) -> dict[str, str]:
        """What stands in the fields."""
        found = {}
        for widget in self.query("Input, Choice"):
            if isinstance(widget, (Input, Choice)):
                found[widget.name or ""] = widget.value
        return found

    def set_field(self, name: str, text: str) -> None:
        """Put a text into a field, as if it had been typed."""
        widget = self.query_one(f"#start-{name}")
        if isinstance(widget, (Input, Choice)):
            widget.value = text
        self._judge()

    @on(Input.Changed)
    @on(Choice.Changed)
    def _typed(self, event: Message) -> None:
        event.stop()
        self._judge()

    def _judge(self) -> Start | None:
        """Say what would be started, or what stands against it."""
        command = self.query_one("#start-command", Static)
        try:
            start = start_of(self.texts(), self.root)
        except UserError as error:
            self.problem = str(error)
            command.update(Content.styled(display_safe(str(error), 300), "$text-error"))
            self.query_one("#start-button", Button).disabled = True
            return None
        self.problem = ""
        words = shlex.join(["nanochat-tui", *start.arguments])
        command.update(Content.styled(display_safe(words, 1000), "$text 80%"))
        self.query_one("#start-button", Button).disabled = False
        return start

    def on_descendant_focus(self) -> None:
        """Explain the field that has the focus."""
        focused = self.screen.focused
        self.query_one("#start-hint", Static).update(HINTS.get(focused.name or "", "") if focused is not None else "")

    @on(Input.Submitted)
    @on(Button.Pressed)
    def launch(self) -> None:
        """Ask for the start, or say what stands against it."""
        start = self._judge()
        if start is None:
            self.app.notify(display_safe(self.problem, 300), severity="error", markup=False)
        else:
            self.post_message(self.Wanted(start))
