"""The part of the chat that does what slash commands and the palette say."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

from nanochat_tui.chat.backend import Backend
from nanochat_tui.chat.local import LocalBackend
from nanochat_tui.errors import UserError, display_safe
from nanochat_tui.tui import messages
from nanochat_tui.tui.chat.commands import Command
from nanochat_tui.tui.chat.conversation import Conversation
from nanochat_tui.tui.chat.lens_flow import LensPart
from nanochat_tui.tui.chat.settings_form import FIELDS, from_text, to_text
from nanochat_tui.tui.widgets.dialogs import Ask, Choose

MAX_FILE = 1 << 20
"""Largest file whose beginning is completed, in bytes; no context holds more."""


class CommandPart(LensPart):
    """One method for every command that takes an argument; the others are actions."""

    async def run_command(self, command: Command, argument: str) -> None:
        """Do what a command says, asking for its argument if it needs one and none was given."""
        if not self.check_action(command.action, ()):
            self.say_error(f"/{command.name} is not possible now.")
            return
        taking: dict[str, Callable[[str], Awaitable[None]]] = {
            "search": self._search,
            "rename": self._rename,
            "export": self._export,
            "import": self.import_from,
            "system": self._system,
            "set": self._set,
            "file": self._fill_file,
            "model": self._model,
            "attach": self._use_server,
            "parity": self._parity,
        }
        handler = taking.get(command.name)
        if handler is None or (command.name == "model" and not argument):
            await self.run_action(f"{'app.' if command.action in APP_ACTIONS else ''}{command.action}")
        elif argument:
            await handler(argument)
        else:
            self._ask_argument(command, handler)

    def _ask_argument(self, command: Command, handler: Callable[[str], Awaitable[None]]) -> None:
        async def answered(text: str | None) -> None:
            if text is not None and (text.strip() or command.name == "system"):
                await handler(text)

        value = self.settings.system if command.name == "system" else ""
        if command.name == "rename" and self.info is not None:
            value = self.info.title
        self.app.push_screen(Ask(f"{command.title}: {command.argument.lower()}", value, command.help), answered)

    # Sessions

    async def action_new(self) -> None:
        """Start a new session; this one is kept."""
        await self.new_session()

    async def _search(self, words: str) -> None:
        await self.sessions.open(words)

    async def _rename(self, name: str) -> None:
        stored = self.as_stored()
        if stored is not None:
            await self.rename(stored, name)

    async def _export(self, path: str) -> None:
        stored = self.as_stored()
        if stored is not None:
            self.export_to(stored, path)

    def action_delete_session(self) -> None:
        """Delete this session, after asking."""
        stored = self.as_stored()
        if stored is not None:
            self._ask_delete(stored)

    async def action_sort_sessions(self) -> None:
        """Show the list in the next order."""
        if not self.sessions.display:
            await self.sessions.open()
        self.sessions.next_order()

    def action_toggle_thoughts(self) -> None:
        """Fold or unfold what the model thought in the chosen turn, or in the last one."""
        self.transcript.action_toggle_thinking()

    # Settings

    def action_toggle_settings(self) -> None:
        """Open or close the settings of this session."""
        if self.side.shows("settings"):
            self.side.display = False
            self.prompt.focus()
        else:
            self.side.open("settings")
            self.side.settings.show(self.settings, is_chat=self.conversation.is_chat)
            self.side.settings.focus_first()

    def action_toggle_live(self) -> None:
        """Open or close what the model does."""
        if self.side.shows("live"):
            self.side.display = False
            self.side.live.is_open = False
        else:
            self.side.open("live")
            self.side.live.is_open = True
        self.prompt.focus()

    async def _system(self, text: str) -> None:
        self.settings = replace(self.settings, system=text)
        self._settings_were_set()
        if not self.conversation.is_chat:
            self.notify("The system prompt is for conversations; this is a completion.", severity="warning")

    async def _set(self, text: str) -> None:
        name, _, value = text.replace("=", " ").partition(" ")
        key = name.strip().lower().replace("-", "_")
        if key not in {field.key for field in FIELDS}:
            known = ", ".join(field.key for field in FIELDS)
            self.say_error(f"There is no setting {display_safe(name)}; there are {known}.")
            return
        try:
            sampling, most = from_text(to_text(self.sampling, self.max_tokens) | {key: value.strip()})
        except UserError as exc:
            self.say_error(str(exc))
            return
        self.settings = replace(self.settings, sampling=sampling, max_tokens=most)
        self._settings_were_set()
        self.notify(f"{key} is {value.strip() or 'as it is when left empty'}.", timeout=3, markup=False)

    def _settings_were_set(self) -> None:
        self.side.settings.show(self.settings, is_chat=self.conversation.is_chat)
        if self.info is not None:
            self.keep_info()

    # Completion

    async def action_toggle_kind(self) -> None:
        """Change between messages and raw completion, in a new session if this one has begun."""
        if not self.backend.is_chat:
            self.say_error("This model has no chat template, so it can only continue text.")
            return
        is_chat = not self.conversation.is_chat
        if self.conversation.turns:
            await self.new_session()
        self.conversation = Conversation(is_chat=is_chat)
        await self.transcript.welcome(self.backend.name, self.welcome_lines())
        self.show_kind()

    async def _fill_file(self, path: str) -> None:
        """Let the model go on from a file's beginning: all of it, or up to a line as in `src/lib.rs:40`."""
        name, _, line = path.rpartition(":")
        file, last = (Path(name), int(line)) if name and line.isdigit() else (Path(path), None)
        file = file.expanduser()
        try:
            if file.stat().st_size > MAX_FILE:
                raise UserError(f"{display_safe(file.name)} is larger than any context; give a line, as in FILE:200.")
            text = file.read_text(encoding="utf-8")
        except OSError as exc:
            self.say_error(f"Cannot read {display_safe(str(file))}: {exc.strerror or exc}.")
            return
        except (UnicodeDecodeError, UserError) as exc:
            self.say_error(str(exc) if isinstance(exc, UserError) else f"{display_safe(file.name)} is not text.")
            return
        if last is not None:
            text = "".join(text.splitlines(keepends=True)[:last])
        if not text.strip():
            self.say_error(f"{display_safe(file.name)} is empty up to there; there is nothing to go on from.")
            return
        if self.conversation.turns:
            await self.new_session()
        self.conversation = Conversation(is_chat=False)
        self.show_kind()
        await self.send(text)

    # Models

    async def use_local(self, path: Path, mhc: Path | None = None) -> None:
        """Load a model file in the place of this model."""
        await self.use_backend(LocalBackend(path, mhc=mhc))

    async def _model(self, text: str) -> None:
        path = Path(text).expanduser()
        if path.is_file():
            await self.use_local(path)
        else:
            self.say_error(f"There is no file {display_safe(text)}; /model without a name lists those that are known.")

    def action_model(self) -> None:
        """Choose a model."""
        from nanochat_tui.tui.chat.model_picker import ModelPicker

        async def answered(path: Path | None) -> None:
            if path is not None:
                await self.use_local(path)

        self.app.push_screen(ModelPicker(self.preferences), answered)

    async def _use_server(self, url: str) -> None:
        from nanochat_tui.chat.remote import RemoteBackend

        remote = self.preferences.remote
        try:
            backend: Backend = RemoteBackend(url, timeout=remote.timeout, connect_timeout=remote.connect_timeout)
        except UserError as exc:
            self.say_error(str(exc))
            return
        await self.use_backend(backend)

    def action_inspect_model(self) -> None:
        """Show this model's file in the inspector."""
        path = getattr(self.backend, "path", None)
        if path is None:
            self.say_error("A server's model cannot be inspected here; open its file with F3.")
        else:
            self.app.post_message(messages.OpenFile(path))

    def action_to_prompt(self) -> None:
        """Go to the input."""
        self.prompt.focus()

    def action_server_models(self) -> None:
        """Choose another model of the server."""
        from nanochat_tui.chat.remote import RemoteBackend, RemoteModel

        backend = self.backend
        if not isinstance(backend, RemoteBackend):
            self.say_error("This model is a file; attach to a server first, with /attach URL.")
            return

        async def chosen(models: list[RemoteModel], place: int | None) -> None:
            if place is not None and models[place].id != backend.name:
                limits = self.preferences.remote
                other = RemoteBackend(
                    backend.url, models[place].id, timeout=limits.timeout, connect_timeout=limits.connect_timeout
                )
                await self.use_backend(other)

        async def ask() -> None:
            try:
                models = await asyncio.to_thread(backend.list_models)
            except UserError as exc:
                self.say_error(str(exc))
                return
            lines = [(model.id, f"context {model.context}" if model.context else model.owner) for model in models]
            self.app.push_screen(Choose(f"Models of {backend.url}", lines), partial(chosen, models))

        self.run_worker(ask(), exclusive=True, group="models")

    async def _parity(self, url: str) -> None:
        from nanochat_tui.chat.remote import RemoteBackend
        from nanochat_tui.tui.chat.parity_screen import ParityScreen

        if not isinstance(self.backend, LocalBackend) or not self.ready or self.generation is not None:
            self.say_error("Comparing needs a model file that is loaded here and not writing just now.")
            return
        if self.conversation.last is None:
            self.say_error("Write something first; its last prompt is what both are asked.")
            return
        limits = self.preferences.remote
        try:
            remote = RemoteBackend(url, timeout=limits.timeout, connect_timeout=limits.connect_timeout)
        except UserError as exc:
            self.say_error(str(exc))
            return
        request = self.conversation.up_to(len(self.conversation.turns) - 1).request(self.settings)
        self.app.push_screen(ParityScreen(self.backend, remote, request))


APP_ACTIONS = ("preferences", "show_log", "help", "quit")
