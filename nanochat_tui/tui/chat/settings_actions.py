"""The commands about the session's settings, its kind, and the panel that shows both."""

from __future__ import annotations

from pathlib import Path

from nanochat_tui.errors import UserError, reason_of
from nanochat_tui.text import display_safe
from nanochat_tui.tui.chat.act import Act, plain
from nanochat_tui.tui.chat.actions import Actions
from nanochat_tui.tui.chat.settings_form import FIELDS, from_text, to_text

MAX_FILE = 1 << 20
"""Largest file whose beginning is completed, in bytes; no context holds more."""


class SettingsActions(Actions):
    """Changes how the session's replies are made."""

    def acts(self) -> dict[str, Act]:
        """Commands by their names."""
        model, session = self._model, self._session
        return {
            "settings": Act(plain(self.toggle_settings)),
            "live": Act(plain(self.toggle_live)),
            "set": Act(self.set),
            "system": Act(
                self.set_system,
                concerns=lambda: session.conversation.is_chat,
                value=lambda: session.settings.system,
                blank=True,
            ),
            "complete": Act(
                plain(self.toggle_kind),
                lambda: True if model.ready else None,
                concerns=lambda: model.answers,
            ),
            "file": Act(self.complete_file),
        }

    def toggle_settings(self) -> None:
        """Open or close the settings of this session."""
        side = self._view.side
        if side.shows("settings"):
            side.display = False
            self._view.prompt.focus()
        else:
            side.open("settings")
            self._view.show_settings()
            side.settings.focus_first()

    def toggle_live(self) -> None:
        """Open or close what the model does."""
        side = self._view.side
        if side.shows("live"):
            side.display = False
            side.live.is_open = False
        else:
            side.open("live")
            side.live.is_open = True
        self._view.prompt.focus()

    def set_system(self, text: str) -> None:
        """Set the system prompt; the one before comes back with the arrow-up key."""
        old = self._session.settings.system
        if old.strip() and old != text:
            self._view.prompt.past.add(f"/system {old}")
        self._session.change_settings(system=text)
        self._view.show_settings()
        if not self._session.conversation.is_chat:
            text = "The system prompt is for conversations; this is a completion."
            self._desk.notify(text, severity="warning")

    def set(self, text: str) -> None:
        """Set one value, as in `temperature 0.5`."""
        name, _, value = text.replace("=", " ").partition(" ")
        key = name.strip().lower().replace("-", "_")
        if key not in {field.name for field in FIELDS}:
            known = ", ".join(field.name for field in FIELDS)
            self._view.say_error(f"There is no setting {display_safe(name)}; there are {known}.")
            return
        session = self._session
        try:
            sampling, most = from_text(to_text(session.sampling, session.max_tokens) | {key: value.strip()})
        except UserError as exc:
            self._view.say_error(str(exc))
            return
        session.change_settings(sampling=sampling, max_tokens=most)
        self._view.show_settings()
        self._desk.notify(f"{key} is {value.strip() or 'as it is when left empty'}.", timeout=3)

    async def toggle_kind(self) -> None:
        """Change between messages and raw completion, in a new session if this one has begun."""
        if not self._model.answers:
            self._view.say_error("This model has no chat template, so it can only continue text.")
            return
        is_chat = not self._session.conversation.is_chat
        if self._session.conversation.turns:
            await self._flow.new()
        self._session.restart(is_chat=is_chat)
        await self._view.show_welcome()
        self._view.show_kind()

    async def complete_file(self, path: str) -> None:
        """Let the model continue a file's beginning: all of it, or up to a line as in `src/lib.rs:40`."""
        try:
            text = beginning_of(path)
        except UserError as exc:
            self._view.say_error(str(exc))
            return
        if self._session.conversation.turns:
            await self._flow.new()
        self._session.restart(is_chat=False)
        self._view.show_kind()
        await self._replies.send(text)


def beginning_of(path: str) -> str:
    """Return the text of a file, up to line N if `path` ends in `:N`. Raises `UserError`."""
    name, _, line = path.rpartition(":")
    file, last = (Path(name), int(line)) if name and line.isdigit() else (Path(path), None)
    file = file.expanduser()
    shown = display_safe(file.name)
    try:
        if file.stat().st_size > MAX_FILE:
            raise UserError(f"{shown} is larger than any context; give a line, as in FILE:200.")
        text = file.read_text(encoding="utf-8")
    except OSError as exc:
        raise UserError(f"Cannot read {display_safe(str(file))}: {reason_of(exc)}.") from exc
    except UnicodeDecodeError as exc:
        raise UserError(f"{shown} is not text.") from exc
    if last is not None:
        text = "".join(text.splitlines(keepends=True)[:last])
    if not text.strip():
        raise UserError(f"{shown} is empty up to there; there is nothing to continue.")
    return text
