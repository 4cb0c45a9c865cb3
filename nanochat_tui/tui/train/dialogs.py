"""Small questions over the screen: yes or no, a path, how a run should go on."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical
from textual.screen import ModalScreen
from textual.widgets import Button, Input, Label

from nanochat_tui.errors import UserError


class Confirm(ModalScreen[bool]):
    """Ask whether to do something that cannot be undone. The harmless answer has the focus."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape", "dismiss(False)", "No", show=False)]

    def __init__(self, question: str, yes: str, no: str = "No, leave it") -> None:
        super().__init__(classes="train-dialog")
        self._question, self._yes, self._no = question, yes, no

    def compose(self) -> ComposeResult:
        """The question over two buttons."""
        with Vertical():
            yield Label(self._question, markup=False)
            with Horizontal():
                yield Button(self._no, id="no", variant="primary")
                yield Button(self._yes, id="yes", variant="error")

    @on(Button.Pressed)
    def _answer(self, event: Button.Pressed) -> None:
        self.dismiss(event.button.id == "yes")


class Ask(ModalScreen[list[str] | None]):
    """Ask for one or more lines of text. `check` raises UserError for an answer that will not do; it stays to be
    mended.
    """

    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape", "dismiss(None)", "Cancel", show=False)]

    def __init__(
        self,
        title: str,
        fields: list[tuple[str, str]],
        check: Callable[[list[str]], object] | None = None,
        *,
        button: str = "OK",
    ) -> None:
        super().__init__(classes="train-dialog")
        self._title, self._fields, self._check, self._button = title, fields, check, button

    def compose(self) -> ComposeResult:
        """Title, labelled inputs, a line for what is wrong, a button."""
        with Vertical():
            yield Label(self._title, markup=False)
            for label, value in self._fields:
                yield Label(label, classes="field", markup=False)
                yield Input(value, compact=True)
            yield Label("", classes="problem", markup=False)
            with Horizontal():
                yield Button(self._button, id="ok", variant="primary")

    @on(Input.Submitted)
    @on(Button.Pressed)
    def _answer(self) -> None:
        values = [field.value.strip() for field in self.query(Input)]
        try:
            if self._check is not None:
                self._check(values)
        except UserError as error:
            self.query_one(".problem", Label).update(str(error))
            return
        self.dismiss(values)
