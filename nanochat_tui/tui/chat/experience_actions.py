"""The command about rules from experience: which file the model reads before each message, and editing it."""

from __future__ import annotations

from pathlib import Path

from nanochat_tui.chat.experience import ExperienceFile
from nanochat_tui.errors import UserError
from nanochat_tui.paths import expanded
from nanochat_tui.text import counted, display_safe
from nanochat_tui.tui.chat.act import Act
from nanochat_tui.tui.chat.actions import Actions
from nanochat_tui.tui.widgets.dialogs import Ask, Field

OFF = "off"
"""What ends the use of a file."""


class ExperienceActions(Actions):
    """Chooses, shows and edits rules from experience."""

    def acts(self) -> dict[str, Act]:
        """Commands by their names."""
        return {"experience": Act(self.use, concerns=lambda: self._session.conversation.is_chat)}

    def use(self, text: str) -> None:
        """Use the rules of a file, or none for `off`; without one show those in use, or ask for a file."""
        text = text.strip()
        if text == OFF:
            self._session.use_experience(None)
            self._desk.set_status(self._desk.status)
            self._desk.notify("No rules are read before messages.", timeout=3)
        elif text:
            self._open(expanded(Path(text)))
        elif self._session.experience is not None:
            self._show()
        else:
            explanation = "JSON of ids and texts, as nanochat-tui grpo writes it; a new name begins an empty list."
            self._desk.ask(Ask("Rules from experience: file", [Field()], explanation), self._answered)

    def _answered(self, texts: list[str] | None) -> None:
        if texts and texts[0]:
            self.use(texts[0])

    def _open(self, path: Path) -> None:
        try:
            file = ExperienceFile(path)
        except UserError as error:
            self._view.say_error(str(error))
            return
        self._session.use_experience(file)
        self._changed()
        if not self._session.conversation.is_chat:
            text = "The rules are for conversations; this is a completion."
            self._desk.notify(text, severity="warning")
        else:
            rules = counted(file.enabled, "rule")
            self._desk.notify(f"{rules} of {display_safe(path.name)} before each message.", timeout=4)
        self._show()

    def _show(self) -> None:
        from nanochat_tui.tui.chat.experience_screen import ExperienceScreen

        file = self._session.experience
        if file is not None:
            try:
                file.reload()
            except UserError as error:
                self._view.say_error(str(error))
            self._desk.ask(ExperienceScreen(file, self._changed), lambda _: None)

    def _changed(self) -> None:
        """Take the rules as they are now, and say so in the status."""
        self._session.use_experience(self._session.experience)
        self._desk.set_status(self._desk.status)
