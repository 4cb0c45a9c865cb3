"""The rules that the model reads before it answers: a list to add to, edit, delete from, and switch off and on."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.content import Content
from textual.screen import ModalScreen
from textual.widgets import OptionList, Static
from textual.widgets.option_list import Option

from nanochat_tui.chat.experience import ExperienceFile
from nanochat_tui.errors import UserError
from nanochat_tui.text import counted, display_safe, printable
from nanochat_tui.tui.widgets.dialogs import Ask, Confirm, Field


class ExperienceScreen(ModalScreen[None]):
    """Shows a file of rules; every change is saved at once."""

    DEFAULT_CSS = """
    ExperienceScreen { align: center middle; background: $background 60%; }
    ExperienceScreen > Vertical {
        width: 110; max-width: 96%; height: 80%;
        border: round $primary; border-title-color: $text-primary; background: $surface; padding: 0 1;
    }
    ExperienceScreen OptionList { height: 1fr; border: none; background: $surface; padding: 0; }
    ExperienceScreen Static { height: 1; color: $text-muted; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,q", "dismiss(None)", "Back", priority=True),
        Binding("a", "add", "Add"),
        Binding("e,enter", "edit", "Edit"),
        Binding("d,delete", "delete", "Delete"),
        Binding("space", "switch", "On/off"),
    ]

    def __init__(self, file: ExperienceFile, changed: Callable[[], object]) -> None:
        super().__init__()
        self._file, self._changed = file, changed

    def compose(self) -> ComposeResult:
        """The rules over what the keys do."""
        with Vertical() as box:
            box.border_title = Content(f"Rules from experience: {display_safe(str(self._file.path))}")
            box.border_subtitle = Content("a add · e edit · d delete · Space on/off · Esc leaves")
            yield OptionList(compact=True)
            yield Static("", markup=False)

    def on_mount(self) -> None:
        """Show what there is."""
        self._show()

    @property
    def rules(self) -> OptionList:
        """The list."""
        return self.query_one(OptionList)

    def _show(self, name: str | None = None) -> None:
        rules, all_rules = self.rules, self._file.all
        at = rules.highlighted or 0
        rules.clear_options()
        for own, one in all_rules.items():
            style = "$text" if one.enabled else "$text 40%"
            mark = "● " if one.enabled else "○ "
            line = Content.assemble((mark, "$text-success" if one.enabled else style), (display_safe(own), "bold"), " ")
            rules.add_option(Option(line + Content.styled(printable(" ".join(one.text.split())), style)))
        if all_rules:
            rules.highlighted = list(all_rules).index(name) if name in all_rules else min(at, len(all_rules) - 1)
        rules.focus()
        said = f"{counted(len(all_rules), 'rule')}, {self._file.enabled} of them told to the model before each message"
        self.query_one(Static).update(Content(said if all_rules else "no rules yet; a adds one"))

    @property
    def _chosen(self) -> str | None:
        at = self.rules.highlighted
        names = list(self._file.all)
        return names[at] if at is not None and at < len(names) else None

    def _do(self, change: Callable[[], object], name: str | None = None) -> None:
        try:
            change()
        except UserError as error:
            self.notify(str(error), severity="error", markup=False, timeout=8)
        self._show(name)
        self._changed()

    def action_add(self) -> None:
        """Ask for a rule and add it."""

        def go(texts: list[str] | None) -> None:
            if texts is not None:
                self._do(lambda: self._file.add(texts[0]))
                self.rules.action_last()

        self.app.push_screen(Ask("A new rule", [Field(empty="When …, do …")], button="Add"), go)

    @on(OptionList.OptionSelected)
    def action_edit(self) -> None:
        """Ask for another text of the chosen rule."""
        name = self._chosen
        if name is None:
            return

        def go(texts: list[str] | None) -> None:
            if texts is not None:
                self._do(lambda: self._file.edit(name, texts[0]), name)

        text = " ".join(self._file.all[name].text.split())
        self.app.push_screen(Ask(f"Rule {name}", [Field(text)], button="Save"), go)

    def action_delete(self) -> None:
        """Take the chosen rule out, if so wished."""
        name = self._chosen
        if name is None:
            return

        def go(wanted: bool | None) -> None:
            if wanted:
                self._do(lambda: self._file.delete(name))

        text = self._file.all[name].text
        self.app.push_screen(Confirm(f"Delete rule {name}?", printable(text[:400]), yes="Delete"), go)

    def action_switch(self) -> None:
        """Switch the chosen rule off or on."""
        name = self._chosen
        if name is not None:
            self._do(lambda: self._file.switch(name), name)
