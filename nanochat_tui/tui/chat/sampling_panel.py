"""The sampling settings, changed while one watches what they do."""

from __future__ import annotations

from textual import on
from textual.app import ComposeResult
from textual.containers import Horizontal, Vertical
from textual.content import Content
from textual.events import DescendantFocus
from textual.widgets import Input, Label, Static

from nanochat_tui.chat.backend import SamplingSettings
from nanochat_tui.tui.chat.settings_form import FIELDS, FieldError, from_text, to_text
from nanochat_tui.tui.messages import SettingsChanged


class SamplingPanel(Vertical):
    """One field per setting. Posts `SettingsChanged` whenever all of them make sense; the next reply uses it."""

    HELP = """\
### Sampling
How the next token is chosen. Every change is checked as you type and used by the next reply; a field that makes no
sense is marked, and the last good settings stay in use. **Tab** goes on, **Esc** goes back to the input.
"""

    def __init__(self, sampling: SamplingSettings, max_tokens: int | None, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self._initial = to_text(sampling, max_tokens)
        self.border_title = Content("Sampling")

    def compose(self) -> ComposeResult:
        """Lay out one row per field and a line for hints and complaints."""
        for field in FIELDS:
            with Horizontal(classes="row"):
                yield Label(Content(field.label))
                yield Input(self._initial[field.key], placeholder=field.blank, id=f"field-{field.key}", compact=True)
        yield Static(id="hint", markup=False)

    def focus_first(self) -> None:
        """Put the cursor into the first field."""
        self.query(Input).first().focus()

    @on(DescendantFocus)
    def _explain(self) -> None:
        self._check()

    @on(Input.Changed)
    def _changed(self, event: Input.Changed) -> None:
        event.stop()
        settings = self._check()
        if settings is not None:
            self.post_message(SettingsChanged(*settings))

    def _check(self) -> tuple[SamplingSettings, int | None] | None:
        """Mark the wrong field, if there is one, and say what is wrong; else explain the field with the cursor."""
        values = {field.key: self.query_one(f"#field-{field.key}", Input).value for field in FIELDS}
        wrong: FieldError | None = None
        settings = None
        try:
            settings = from_text(values)
        except FieldError as exc:
            wrong = exc
        hint = self.query_one("#hint", Static)
        for field in FIELDS:
            entry = self.query_one(f"#field-{field.key}", Input)
            entry.set_class(wrong is not None and wrong.key == field.key, "-invalid")
            if entry.has_focus and wrong is None:
                blank = f"; empty: {field.blank}" if field.blank else ""
                hint.update(Content(field.hint + blank))
        hint.set_class(wrong is not None, "error")
        if wrong is not None:
            hint.update(Content(str(wrong)))
        return settings
