"""The settings of one session, changed while one watches what they do."""

from __future__ import annotations

from textual import on
from textual.app import ComposeResult
from textual.containers import Horizontal, Vertical
from textual.content import Content
from textual.events import DescendantFocus
from textual.widgets import Input, Label, Static, TextArea

from nanochat_tui.chat.store.records import SessionSettings
from nanochat_tui.request import SamplingParams
from nanochat_tui.tui.chat.settings_form import FIELDS, FieldError, from_text, to_text
from nanochat_tui.tui.messages import SettingsChanged


class SettingsPanel(Vertical):
    """The system prompt and one field per sampling value. Posts `SettingsChanged` whenever all of them make sense."""

    HELP = """\
### Settings of this session
The **system prompt** is what a chat model is told before everything else. The **sampling** is how the next token is
chosen. Every change is checked as you type and used by the next reply; a field that makes no sense is marked, and the
last good settings stay in use. **Tab** goes to the next field, **{chat.back|Esc}** goes back to the input. What new
sessions begin with is set in the preferences (**{app.preferences|F9}**).
"""

    def __init__(self, settings: SessionSettings, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self._initial = settings
        self._shown = settings

    def compose(self) -> ComposeResult:
        """Lay out one row per field and a line for hints and complaints."""
        values = to_text(self._initial.sampling, self._initial.max_tokens)
        for field in FIELDS:
            with Horizontal(classes="row"):
                yield Label(Content(field.title))
                yield Input(values[field.name], placeholder=field.blank, id=f"field-{field.name}", compact=True)
        yield Static(id="hint", markup=False)
        yield Label(Content("System prompt"), id="system-label")
        system = TextArea(self._initial.system, id="system", compact=True, tab_behavior="focus", soft_wrap=True)
        system.show_line_numbers = False
        yield system

    def show(self, settings: SessionSettings, *, is_chat: bool) -> None:
        """Show the settings of another session; only conversations have a system prompt."""
        self._shown = settings
        values = to_text(settings.sampling, settings.max_tokens)
        with self.prevent(Input.Changed, TextArea.Changed):
            for field in FIELDS:
                self.query_one(f"#field-{field.name}", Input).value = values[field.name]
            self.query_one("#system", TextArea).text = settings.system
        for selector in ("#system", "#system-label"):
            self.query_one(selector).display = is_chat
        self._check()

    def focus_first(self) -> None:
        """Put the cursor into the first field."""
        self.query(Input).first().focus()

    @on(DescendantFocus)
    def _explain(self) -> None:
        self._check()

    @on(Input.Changed)
    @on(TextArea.Changed)
    def _changed(self, event: Input.Changed | TextArea.Changed) -> None:
        event.stop()
        found = self._check()
        if found is None:
            return
        settings = SessionSettings(self.query_one("#system", TextArea).text, *found)
        if settings != self._shown:
            self._shown = settings
            self.post_message(SettingsChanged(settings.system, settings.sampling, settings.max_tokens))

    def _check(self) -> tuple[SamplingParams, int | None] | None:
        """Mark the wrong field, if there is one, and say what is wrong; else explain the field with the cursor."""
        values = {field.name: self.query_one(f"#field-{field.name}", Input).value for field in FIELDS}
        wrong: FieldError | None = None
        settings = None
        try:
            settings = from_text(values)
        except FieldError as exc:
            wrong = exc
        hint = self.query_one("#hint", Static)
        for field in FIELDS:
            entry = self.query_one(f"#field-{field.name}", Input)
            entry.set_class(wrong is not None and wrong.key == field.name, "-invalid")
            if entry.has_focus and wrong is None:
                blank = f"; empty: {field.blank}" if field.blank else ""
                hint.update(Content(field.help + blank))
        hint.set_class(wrong is not None, "error")
        if wrong is not None:
            hint.update(Content(str(wrong)))
        return settings
