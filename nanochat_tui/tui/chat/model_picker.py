"""Choosing a model file."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import ClassVar

from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.content import Content
from textual.screen import ModalScreen
from textual.widgets import Input, OptionList, Static
from textual.widgets.option_list import Option

from nanochat_tui.text import printable
from nanochat_tui.tui import numbers
from nanochat_tui.tui.chat.model_places import Found, find_models
from nanochat_tui.tui.preferences import Preferences


class ModelPicker(ModalScreen[Path | None]):
    """Every model that is found on this machine; typing narrows the list, or names a file that is not on it."""

    DEFAULT_CSS = """
    ModelPicker { align: center middle; background: $background 60%; }
    ModelPicker > Vertical {
        width: 90; max-width: 96%; height: 80%; border: round $primary; background: $surface; padding: 0 1;
    }
    ModelPicker OptionList { height: 1fr; border: none; background: $surface; padding: 0; }
    ModelPicker Input { background: $surface-lighten-1; }
    """
    HELP = """\
### Choose a model
The models found on this machine: the shipped one, those used before, those in the model folder of the preferences (or
the current folder) and those in Hugging Face's cache. **Type** to narrow the list or to give the path of another file.
"""
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "dismiss(None)", "Back", priority=True),
        Binding("down", "move(1)", show=False, priority=True),
        Binding("up", "move(-1)", show=False, priority=True),
    ]

    def __init__(self, preferences: Preferences) -> None:
        super().__init__()
        self._recent = preferences.recent
        self._folder = Path(preferences.chat.model_folder or ".").expanduser()
        self._found: list[Found] = []
        self._shown: list[Found] = []

    def compose(self) -> ComposeResult:
        """Lay out filter and list."""
        with Vertical() as box:
            box.border_title = "Choose a model"
            box.border_subtitle = "Enter loads it · Esc leaves"
            yield Input(placeholder="narrow the list, or a path", compact=True)
            yield OptionList(compact=True)
            yield Static(id="picker-hint", markup=False)

    async def on_mount(self) -> None:
        """Look for models without keeping the screen waiting."""
        self.query_one("#picker-hint", Static).update("looking …")
        self._found = await asyncio.to_thread(find_models, self._recent, self._folder)
        self._fill()

    @on(Input.Changed)
    def _fill(self) -> None:
        words = self.query_one(Input).value.lower().split()
        self._shown = [f for f in self._found if all(word in f"{f.place} {f.name} {f.path}".lower() for word in words)]
        options = self.query_one(OptionList)
        options.clear_options()
        for found in self._shown:
            size = numbers.size(found.size)
            options.add_option(
                Option(
                    Content.assemble(
                        (f"{found.place:<13}", "$text-accent"),
                        (printable(found.name), "bold"),
                        (f"  {size}\n             {printable(str(found.path))}", "$text 60%"),
                    )
                )
            )
        if self._shown:
            options.highlighted = 0
        self.query_one("#picker-hint", Static).update(f"{len(self._shown)} of {len(self._found)}")

    def action_move(self, step: int) -> None:
        """Move the cursor of the list while the filter has the keys."""
        options = self.query_one(OptionList)
        if step > 0:
            options.action_cursor_down()
        else:
            options.action_cursor_up()

    @on(Input.Submitted)
    def _entered(self, event: Input.Submitted) -> None:
        typed = Path(event.value).expanduser()
        place = self.query_one(OptionList).highlighted
        if event.value.strip() and typed.is_file():
            self.dismiss(typed)
        elif place is not None and self._shown:
            self.dismiss(self._shown[place].path)
        else:
            self.query_one("#picker-hint", Static).update("There is no such file.")

    @on(OptionList.OptionSelected)
    def _selected(self, event: OptionList.OptionSelected) -> None:
        self.dismiss(self._shown[event.option_index].path)
