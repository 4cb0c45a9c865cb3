"""Makes a model ready, puts another one in its place, and compares it with a server."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from nanochat_tui.chat.backend import Backend
from nanochat_tui.chat.local import LocalBackend
from nanochat_tui.errors import UserError
from nanochat_tui.text import display_safe
from nanochat_tui.tui import messages
from nanochat_tui.tui.background import Job
from nanochat_tui.tui.chat.act import Act, plain
from nanochat_tui.tui.chat.actions import Actions
from nanochat_tui.tui.log import logger
from nanochat_tui.tui.widgets.dialogs import Choose
from nanochat_tui.tui.widgets.status import Status

if TYPE_CHECKING:
    from nanochat_tui.chat.remote import RemoteBackend, RemoteModel


class ModelActions(Actions):
    """Loads backends, one in the place of another, and says what is happening meanwhile."""

    def acts(self) -> dict[str, Act]:
        """Commands by their names."""
        model = self._model
        return {
            "model": Act(self.choose),
            "attach": Act(self.attach),
            "models": Act(plain(self.choose_of_server), concerns=lambda: not model.is_file),
            "inspect": Act(plain(self.inspect), concerns=lambda: model.is_file),
            "parity": Act(self.compare, lambda: True if model.ready else None),
        }

    # Loading

    async def begin(self) -> None:
        """Show that the model loads, and let it."""
        model = self._model
        model.begin()
        self._desk.set_status(Status(model.backend.name, "loading"))
        if not self._session.conversation.turns:
            await self._view.show_welcome()
        self._desk.later(model.loader.start)

    async def use(self, backend: Backend) -> None:
        """Put another model in the place of this one and load it. The session continues with it, if it can."""
        self._model.loader.stop()
        self._replies.abandon(1.0)
        self._model.replace(backend)
        self._session.model = backend.name
        await self._view.transcript.query("#welcome").remove()
        await self.begin()

    async def use_file(self, path: Path, mhc: Path | None = None, *, threads: int | None = None) -> None:
        """Load a model file in the place of this model, on up to `threads` threads."""
        await self.use(LocalBackend(path, mhc=mhc, threads=threads))

    async def take(self, event: messages.BackendMessage) -> None:
        """Show what a loader says, if it is the one of now."""
        if event.backend is not self._model.backend:
            return
        match event:
            case messages.BackendProgress():
                await self._progressed(event)
            case messages.BackendReady():
                await self._loaded()
            case messages.BackendFailed():
                logger.error("%s", event.text)
                await self._fail("The model cannot be used", event.text)

    async def _progressed(self, event: messages.BackendProgress) -> None:
        model = self._model
        if model.ready:
            return
        if model.progressed(event.step):
            self._desk.set_status(replace(self._desk.status, state="loading"))
        if not self._session.conversation.turns:
            await self._view.show_welcome()

    async def _loaded(self) -> None:
        model, session, view = self._model, self._session, self._view
        backend = model.backend
        self._flow.model_loaded()
        model.loaded()
        session.model = backend.name
        if not session.conversation.turns:
            session.restart(is_chat=backend.is_chat)
        elif session.conversation.is_chat and not backend.is_chat:
            key = self._desk.keys("{chat.sessions|Ctrl+O}")
            await view.transcript.note(
                f"{backend.name} continues text and cannot answer messages, so a new session was begun; the old one is "
                f"kept ({key})."
            )
            session.forget(is_chat=False)
        view.show_kind()
        self._desk.set_status(
            Status(
                backend.name,
                "ready",
                backend.kernel,
                backend.threads,
                model.context_of(session.conversation.last),
                context_size=backend.context_size,
            )
        )
        view.side.live.show_backend(backend)
        if not session.conversation.turns:
            await view.show_welcome()
            await self._flow.resume_last()  # a server's model has its name only now
        if backend.path is not None:
            self._desk.post_message(messages.ModelUsed(backend.path))
        if self._replies.send_when_ready:
            view.prompt.action_submit()

    async def give_up(self) -> None:
        """Stop waiting for the model; its thread ends at its next step."""
        self._model.loader.stop()
        await self._fail("No model is loaded", "Loading was given up.")

    async def _fail(self, title: str, text: str) -> None:
        self._replies.send_when_ready = False
        self._model.failed(title, text)
        self._desk.set_status(Status(self._model.backend.name, "failed"))
        await self._view.show_failure(text)

    # Choosing

    async def choose(self, text: str) -> None:
        """Load the file that `text` names, or without a text let one be chosen."""
        if not text:
            self._show_picker()
            return
        path = Path(text).expanduser()
        if path.is_file():
            await self.use_file(path)
        else:
            self._view.say_error(
                f"There is no file {display_safe(text)}; /model without a name lists those that are known."
            )

    def _show_picker(self) -> None:
        from nanochat_tui.tui.chat.model_picker import ModelPicker

        async def answered(path: Path | None) -> None:
            if path is not None:
                await self.use_file(path)

        self._desk.ask(ModelPicker(self._session.preferences), answered)

    def _server(self, url: str, model: str | None = None) -> RemoteBackend:
        from nanochat_tui.chat.remote import RemoteBackend

        limits = self._session.preferences.remote
        return RemoteBackend(url, model, timeout=limits.timeout, connect_timeout=limits.connect_timeout)

    async def attach(self, url: str) -> None:
        """Use a server's model."""
        try:
            backend = self._server(url)
        except UserError as exc:
            self._view.say_error(str(exc))
            return
        await self.use(backend)

    def choose_of_server(self) -> None:
        """Choose another model of the server."""
        from nanochat_tui.chat.remote import RemoteBackend

        backend = self._model.backend
        if not isinstance(backend, RemoteBackend):
            self._view.say_error("This model is a file; attach to a server first, with /attach URL.")
            return

        def listed(models: list[RemoteModel]) -> None:
            async def chosen(place: int | None) -> None:
                if place is not None and models[place].id != backend.model_id:
                    await self.use(self._server(backend.url, models[place].id))

            lines = [(model.id, _told(model)) for model in models]
            self._desk.ask(Choose(f"Models of {backend.kernel}", lines), chosen)

        Job(self._desk, lambda _: backend.list_models(), listed, self._view.say_error, name="models").start()

    # Looking closer

    def inspect(self) -> None:
        """Show this model's file in the inspector."""
        path = self._model.backend.path
        if path is None:
            text = "A server's model cannot be inspected here; open its file with {app.inspect|F3}."
            self._view.say_error(self._desk.keys(text))
        else:
            self._desk.post_message(messages.OpenFile(path))

    def compare(self, url: str) -> None:
        """Ask this model and a server for the same, and show where their answers part."""
        from nanochat_tui.tui.chat.parity_screen import ParityScreen

        if not self._model.ready or self._replies.is_writing:
            self._view.say_error("Comparing needs a model that is loaded and not writing just now.")
            return
        conversation = self._session.conversation
        if conversation.last is None:
            self._view.say_error("Write something first; its last prompt is what both are asked.")
            return
        try:
            other = self._server(url)
        except UserError as exc:
            self._view.say_error(str(exc))
            return
        request = conversation.up_to(len(conversation.turns) - 1).request(self._session.settings)
        self._desk.ask(ParityScreen(self._model.backend, other, request), lambda _: None)


def _told(model: RemoteModel) -> str:
    """Return what a server says of one of its models, in one line."""
    context = f"context {model.context}" if model.context else model.owner
    return ", ".join(word for word in (context, model.status) if word)
