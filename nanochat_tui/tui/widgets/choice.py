"""A field with a few possible values, of one line and one widget: a drop-down list costs four."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

from textual.binding import Binding, BindingType
from textual.content import Content
from textual.message import Message
from textual.reactive import reactive
from textual.widget import Widget


class Choice(Widget, can_focus=True):
    """Shows one of its options; ←/→, Space, Enter or a click takes the next."""

    DEFAULT_CSS = """
    Choice { height: 1; width: 1fr; background: $surface-lighten-1; }
    Choice:focus { background: $primary 40%; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("left,h", "turn(-1)", "Previous", show=False),
        Binding("right,l,space,enter", "turn(1)", "Next", show=False),
    ]

    value: reactive[str] = reactive("")
    blank: reactive[str] = reactive("default")
    """What is shown for the empty option."""

    class Changed(Message):
        """Another option was taken."""

        def __init__(self, choice: Choice) -> None:
            super().__init__()
            self.choice = choice

    def __init__(
        self,
        options: Sequence[str],
        value: str,
        *,
        titles: Mapping[str, str] | None = None,
        id: str | None = None,
        name: str = "",
    ) -> None:
        super().__init__(id=id, name=name)
        self.options = tuple(options)
        self._titles = titles or {}
        self.set_reactive(Choice.value, value)

    def render(self) -> Content:
        """The option between arrows."""
        shown = self._titles.get(self.value, self.value) or self.blank
        return Content.assemble(("‹ ", "$text 50%"), (shown, "bold $text"), (" ›", "$text 50%"))

    def action_turn(self, by: int) -> None:
        """Take the next or previous option."""
        if not self.options:
            return
        at = self.options.index(self.value) + by if self.value in self.options else 0
        self.value = self.options[at % len(self.options)]
        self.post_message(self.Changed(self))

    def on_click(self) -> None:
        """Take the next option."""
        self.action_turn(1)
