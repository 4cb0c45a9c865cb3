"""Small questions over the screen: a line of text, a yes or no, one of several."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.content import Content
from textual.screen import ModalScreen
from textual.widgets import Input, OptionList, Static
from textual.widgets.option_list import Option

from nanochat_tui.chat.printable import printable

_CSS = """
{name} {{ align: center middle; background: $background 60%; }}
{name} > Vertical {{
    width: 72; max-width: 96%; height: auto; max-height: 90%;
    border: round $primary; border-title-color: $text-primary; background: $surface; padding: 0 1;
}}
{name} .explanation {{ color: $text-muted; height: auto; max-height: 12; }}
{name} OptionList {{ height: auto; max-height: 20; border: none; background: $surface; padding: 0; }}
"""


class Ask(ModalScreen[str | None]):
    """Asks for one line; the answer is None if Esc was pressed."""

    DEFAULT_CSS = _CSS.format(name="Ask")
    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape", "dismiss(None)", "Back", priority=True)]

    def __init__(self, title: str, value: str = "", explanation: str = "", *, password: bool = False) -> None:
        super().__init__()
        self._title, self._value, self._explanation, self._password = title, value, explanation, password

    def compose(self) -> ComposeResult:
        """Lay out a line with a title."""
        with Vertical() as box:
            box.border_title = Content(self._title)
            box.border_subtitle = Content("Enter takes it · Esc leaves")
            if self._explanation:
                yield Static(Content(printable(self._explanation)), classes="explanation", markup=False)
            yield Input(self._value, password=self._password)

    @on(Input.Submitted)
    def _answered(self, event: Input.Submitted) -> None:
        self.dismiss(event.value)


class Confirm(ModalScreen[bool]):
    """Asks before something that cannot be undone. Enter alone means no."""

    DEFAULT_CSS = _CSS.format(name="Confirm")
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,n,enter", "dismiss(False)", "No", priority=True),
        Binding("y", "dismiss(True)", "Yes", priority=True),
    ]

    def __init__(self, title: str, explanation: str) -> None:
        super().__init__()
        self._title, self._explanation = title, explanation

    def compose(self) -> ComposeResult:
        """Lay out the question."""
        with Vertical() as box:
            box.border_title = Content(self._title)
            box.border_subtitle = Content("y yes · n no")
            yield Static(Content(printable(self._explanation)), classes="explanation", markup=False)


class Choose(ModalScreen[int | None]):
    """Asks for one of several lines, each perhaps with a dim second part; the answer is its number."""

    DEFAULT_CSS = _CSS.format(name="Choose")
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
            box.border_title = Content(self._title)
            box.border_subtitle = Content("Enter takes it · Esc leaves")
            if self._explanation:
                yield Static(Content(printable(self._explanation)), classes="explanation", markup=False)
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
