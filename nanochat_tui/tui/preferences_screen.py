"""The preferences as a form, made from their schema: a field that is added there appears here."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar, Literal, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, VerticalScroll
from textual.content import Content
from textual.screen import Screen
from textual.widget import Widget
from textual.widgets import Input, Label, Select, Static, TabbedContent, TabPane

from nanochat_tui.errors import UserError
from nanochat_tui.tui.keys import Remappable, key_problem
from nanochat_tui.tui.preferences import Preferences, save_preferences
from nanochat_tui.tui.widgets.choice import Choice
from nanochat_tui.tui.widgets.key_line import KeyLine

YES_NO = ("yes", "no")


class PreferencesScreen(Screen[None]):
    """Every change that makes sense applies at once and is kept."""

    CSS_PATH = "preferences_screen.tcss"
    HELP = """\
### Preferences
Every change is checked, applied and kept at once. **Tab** goes from field to field, **Esc** goes back. Keys are
written as `ctrl+x`, `f6` or `escape`, several with commas; an empty field means the key it came with.
"""
    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape,f9", "dismiss", "Back", priority=True)]

    def __init__(self, preferences: Preferences, path: Path | None, keys: list[Remappable]) -> None:
        super().__init__()
        self._preferences = preferences
        self._path = path
        self._keys = keys

    def compose(self) -> ComposeResult:
        """Lay out one tab per section of the schema, and one for the keys."""
        with TabbedContent():
            for name, info in Preferences.model_fields.items():
                section = getattr(self._preferences, name)
                if isinstance(section, BaseModel):
                    with TabPane(info.title or name), VerticalScroll(can_focus=False):
                        yield from self._section(name, section)
            with TabPane("Keys"), VerticalScroll(can_focus=False):
                for key in self._keys:
                    with Horizontal(classes="row"):
                        yield Label(Content(key.title))
                        value = self._preferences.keys.get(key.id, "")
                        yield Input(value, placeholder=key.default, name=key.id, classes="key", compact=True)
        yield Static(id="preferences-hint", markup=False)
        yield KeyLine()

    def _section(self, name: str, section: BaseModel) -> Iterator[Widget]:
        for key, info in type(section).model_fields.items():
            with Horizontal(classes="row"):
                yield Label(Content(info.title or key))
                yield self._field(f"{name}.{key}", info, getattr(section, key))
                yield Static(Content(info.description or ""), classes="description", markup=False)

    def _field(self, name: str, info: FieldInfo, value: Any) -> Widget:
        if name == "appearance.theme":
            themes = sorted(self.app.available_themes)
            chosen = value if value in themes else self.app.theme
            return Select(
                [(theme, theme) for theme in themes], value=chosen, allow_blank=False, name=name, compact=True
            )
        if get_origin(info.annotation) is Literal:
            options = [(str(option), option) for option in get_args(info.annotation)]
            return Select(options, value=value, allow_blank=False, name=name, compact=True)
        if info.annotation is bool:
            return Choice(YES_NO, YES_NO[not value], name=name)
        text = f"{value:g}" if isinstance(value, float) else str(value)
        return Input(text, name=name, compact=True)

    def on_mount(self) -> None:
        """Say where all this is kept."""
        where = f"Kept in {self._path}" if self._path else "Not kept: there is no place for them"
        self._hint(where)

    def _hint(self, text: str, *, wrong: bool = False) -> None:
        hint = self.query_one("#preferences-hint", Static)
        hint.update(Content(text))
        hint.set_class(wrong, "error")

    @on(Input.Changed)
    @on(Select.Changed)
    def _changed(self, event: Input.Changed | Select.Changed) -> None:
        event.stop()
        widget = event.control
        if isinstance(widget, Input) and widget.has_class("key"):
            self._change_key(widget, widget.name or "", widget.value.strip())
        else:
            self._change(widget, event.value)

    @on(Choice.Changed)
    def _turned(self, event: Choice.Changed) -> None:
        event.stop()
        self._change(event.choice, event.choice.value == YES_NO[0])

    def _change(self, widget: Widget, value: object) -> None:
        section, _, key = (widget.name or "").partition(".")
        values = self._preferences.model_dump()
        if values[section][key] == value or str(values[section][key]) == value:
            widget.remove_class("-invalid")
            return
        values[section][key] = value
        try:
            changed = Preferences.model_validate(values)
        except ValidationError as exc:
            widget.add_class("-invalid")
            self._hint(exc.errors()[0]["msg"], wrong=True)
            return
        widget.remove_class("-invalid")
        self._take(changed)

    def _change_key(self, widget: Input, name: str, keys: str) -> None:
        if keys == self._preferences.keys.get(name, ""):
            return
        wrong = key_problem(name, keys, self._keys, self._preferences.keys) if keys else None
        widget.set_class(wrong is not None, "-invalid")
        if wrong is not None:
            self._hint(wrong, wrong=True)
            return
        chosen = {other: value for other, value in self._preferences.keys.items() if other != name}
        if keys:
            chosen[name] = keys
        self._take(self._preferences.model_copy(update={"keys": chosen}))

    def _take(self, changed: Preferences) -> None:
        self._preferences = changed
        self.app.apply_preferences(changed)  # type: ignore[attr-defined]
        if self._path is None:
            return
        try:
            save_preferences(changed, self._path)
        except UserError as exc:
            self._hint(str(exc), wrong=True)
        else:
            self._hint(f"Kept in {self._path}")
