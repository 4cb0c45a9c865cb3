"""Small questions over the screen: one or more lines of text, a yes or no, one of several."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical, VerticalScroll
from textual.content import Content
from textual.events import Key
from textual.screen import ModalScreen
from textual.widgets import Button, Input, Label, OptionList, Static
from textual.widgets.option_list import Option

from nanochat_tui.errors import UserError
from nanochat_tui.text import printable

_CSS = """
{name} {{ align: center middle; background: $background 60%; }}
{name} > Vertical {{
    width: {width}; max-width: 96%; height: auto; max-height: 90%;
    border: round $primary; border-title-color: $text-primary; background: $surface; padding: 0 1;
}}
{name} .explanation {{ color: $text-muted; height: auto; max-height: 12; }}
{name} .buttons {{ height: auto; margin: 1 0 0 0; align: right middle; }}
{name} Button {{ margin: 0 0 0 2; }}
{name} .field {{ height: 1; }}
{name} .field Label {{ width: 16; color: $text-muted; }}
{name} .field Input {{ width: 1fr; background: $surface-lighten-1; }}
{name} .problem {{ color: $text-error; height: auto; }}
{name} OptionList {{ height: auto; max-height: 20; border: none; background: $surface; padding: 0; }}
"""


def _text(text: str, kind: str) -> Static:
    return Static(Content(printable(text)), classes=kind, markup=False)


@dataclass(frozen=True, slots=True)
class Field:
    """One line that is asked for. `empty` is shown while it holds nothing; a single field needs no `label`."""

    value: str = ""
    label: str = ""
    empty: str = ""


class Ask(ModalScreen[list[str] | None]):
    """Asks for lines of text; the answers come without the blanks around them, None if Esc was pressed.

    `check` raises `UserError` for answers that will not do, which stay to be corrected.
    """

    DEFAULT_CSS = _CSS.format(name="Ask", width=100)
    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape", "dismiss(None)", "Back", priority=True)]

    def __init__(
        self,
        title: str,
        fields: Sequence[Field] = (Field(),),
        explanation: str = "",
        *,
        check: Callable[[list[str]], object] | None = None,
        button: str = "OK",
    ) -> None:
        super().__init__()
        self._title, self._fields, self._explanation = title, fields, explanation
        self._check, self._button = check, button

    def compose(self) -> ComposeResult:
        """Lay out the lines under what they are for, a place for what is wrong, a button."""
        with Vertical() as box:
            box.border_title = Content(printable(self._title))
            box.border_subtitle = Content("Enter takes it · Esc leaves")
            if self._explanation:
                yield _text(self._explanation, "explanation")
            for field in self._fields:
                with Horizontal(classes="field"):
                    if field.label:
                        yield Label(Content(printable(field.label)))
                    yield Input(field.value, placeholder=field.empty, compact=True)
            yield Static("", classes="problem", markup=False)
            with Horizontal(classes="buttons"):
                yield Button(self._button, id="ok", variant="primary")

    @on(Input.Submitted)
    @on(Button.Pressed)
    def _answered(self) -> None:
        values = [field.value.strip() for field in self.query(Input)]
        try:
            if self._check is not None:
                self._check(values)
        except UserError as error:
            self.query_one(".problem", Static).update(Content(printable(str(error))))
            return
        self.dismiss(values)


class Confirm(ModalScreen[bool]):
    """Asks before something that cannot be undone. The harmless answer has the focus, so that Enter alone means no."""

    DEFAULT_CSS = _CSS.format(name="Confirm", width=84)
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,n", "dismiss(False)", "No", priority=True),
        Binding("y", "dismiss(True)", "Yes", priority=True),
        Binding("left,right", "app.focus_next", "Other answer", show=False),
    ]

    def __init__(self, question: str, explanation: str = "", *, yes: str = "Yes", no: str = "No") -> None:
        super().__init__()
        self._question, self._explanation, self._yes, self._no = question, explanation, yes, no

    def compose(self) -> ComposeResult:
        """Lay out the question over two buttons."""
        with Vertical() as box:
            box.border_subtitle = Content("y yes · n no")
            yield _text(self._question, "question")
            if self._explanation:
                yield _text(self._explanation, "explanation")
            with Horizontal(classes="buttons"):
                yield Button(self._no, id="no", variant="primary")
                yield Button(self._yes, id="yes", variant="error")

    @on(Button.Pressed)
    def _answered(self, event: Button.Pressed) -> None:
        self.dismiss(event.button.id == "yes")


class Decide(ModalScreen[str | None]):
    """Asks for one of several answers, each with a key of its own: (key, value, label). None if Esc was pressed.

    The question may come while the user types, so that for a moment, and after each key, no key answers it. `details`
    is shown whole and scrolls.
    """

    QUIET: ClassVar[float] = 0.6
    """Seconds without a key before one counts."""
    DEFAULT_CSS = (
        _CSS.format(name="Decide", width=96)
        + """
    Decide .explanation { max-height: 3; }
    Decide VerticalScroll { height: auto; max-height: 45vh; margin: 1 0 0 0; }
    Decide .details { height: auto; }
    """
    )
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("left", "app.focus_previous", "Other answer", show=False),
        Binding("right", "app.focus_next", "Other answer", show=False),
        Binding("up", "scroll(-1)", "Up", show=False),
        Binding("down", "scroll(1)", "Down", show=False),
        Binding("pageup", "scroll(-10)", "Page up", show=False),
        Binding("pagedown", "scroll(10)", "Page down", show=False),
    ]

    def __init__(
        self,
        question: str,
        answers: Sequence[tuple[str, str, str]],
        *,
        explanation: str = "",
        details: str = "",
        leave: str = "Not now",
    ) -> None:
        super().__init__()
        self._question, self._answers, self._explanation = question, answers, explanation
        self._details, self._leave = details, leave
        self._touched = time.monotonic()

    def compose(self) -> ComposeResult:
        """Lay out the question, what it is about, and the answers, of which the harmless one has the focus."""
        with Vertical() as box:
            keys = " · ".join(f"{key} {label.lower()}" for key, _, label in self._answers)
            box.border_subtitle = Content(f"{keys} · Esc {self._leave.lower()}")
            yield _text(self._question, "question")
            if self._explanation:
                yield _text(self._explanation, "explanation")
            with VerticalScroll(can_focus=False):
                yield _text(self._details, "details")
            with Horizontal(classes="buttons"):
                yield Button(self._leave, id="leave", variant="primary")
                for _, value, label in self._answers:
                    yield Button(label, name=value)

    def action_scroll(self, rows: int) -> None:
        """Scroll the details."""
        self.query_one(VerticalScroll).scroll_relative(y=rows, animate=False)

    def _quiet(self) -> bool:
        """Whether no key came for a moment; now one did."""
        before, self._touched = self._touched, time.monotonic()
        return self._touched - before >= self.QUIET

    def on_key(self, event: Key) -> None:
        """Take the key of an answer."""
        found = next((value for key, value, _ in self._answers if key == event.key), None)
        if found is None and event.key != "escape":
            if event.is_printable:
                self._quiet()
            return
        event.stop()
        if self._quiet():
            self.dismiss(found)

    @on(Button.Pressed)
    def _answered(self, event: Button.Pressed) -> None:
        if self._quiet():
            self.dismiss(event.button.name)


class Choose(ModalScreen[int | None]):
    """Asks for one of several lines, each perhaps with a dim second part; the answer is its number."""

    DEFAULT_CSS = _CSS.format(name="Choose", width=72)
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "dismiss(None)", "Back", priority=True),
        Binding("j", "move(1)", "Down", show=False),
        Binding("k", "move(-1)", "Up", show=False),
    ]

    def __init__(self, title: str, options: Sequence[tuple[str, str]], explanation: str = "") -> None:
        super().__init__()
        self._title, self._options, self._explanation = title, options, explanation

    def compose(self) -> ComposeResult:
        """Lay out the list."""
        with Vertical() as box:
            box.border_title = Content(printable(self._title))
            box.border_subtitle = Content("Enter takes it · Esc leaves")
            if self._explanation:
                yield _text(self._explanation, "explanation")
            yield OptionList(
                *(
                    Option(Content.assemble(printable(text), (f"  {printable(more)}" if more else "", "$text 60%")))
                    for text, more in self._options
                ),
                compact=True,
            )

    def action_move(self, step: int) -> None:
        """Move the cursor."""
        options = self.query_one(OptionList)
        if step > 0:
            options.action_cursor_down()
        else:
            options.action_cursor_up()

    @on(OptionList.OptionSelected)
    def _answered(self, event: OptionList.OptionSelected) -> None:
        self.dismiss(event.option_index)
