"""The part of the chat that makes a model ready, and says what is going on meanwhile."""

from __future__ import annotations

import time
from dataclasses import replace

from textual import on

from nanochat_tui.chat.backend import Backend
from nanochat_tui.tui import messages
from nanochat_tui.tui.chat.base import ChatBase
from nanochat_tui.tui.chat.conversation import Conversation
from nanochat_tui.tui.chat.generation import Loader
from nanochat_tui.tui.chat.history import History
from nanochat_tui.tui.log import logger
from nanochat_tui.tui.widgets.background import answer_of
from nanochat_tui.tui.widgets.status import Status

EXAMPLES = [
    "/// Returns the largest value of a slice.\npub fn largest(values: &[i32]) -> Option<i32> {",
    "impl fmt::Display for Point {",
    "fn main() {",
]
"""Beginnings for a model of Rust, offered by the arrow-up key before anything was typed."""


class LoadingPart(ChatBase):
    """Loads backends, one in the place of another."""

    _send_when_ready = False
    _began = 0.0
    _steps: tuple[str, ...] = ()

    async def begin_loading(self) -> None:
        """Show that the model loads, and let it."""
        self.ready = False
        self._steps = ()
        self._began = time.monotonic()
        self.set_status(Status(self.backend.name, "loading"))
        if not self.conversation.turns:
            await self.transcript.welcome(self.backend.name, ["Loading …"])
        self.later(self.loader.start)

    async def use_backend(self, backend: Backend) -> None:
        """Put another model in the place of this one and load it. The session goes on with it, if it can."""
        self.loader.stop()
        self.stop_writing(1.0)
        close = getattr(self.backend, "close", None)
        if close is not None and backend is not self.backend and not self.loader.is_working:
            close()
        self.backend = backend
        self.loader = Loader(backend, self.post_message)
        await self.transcript.query("#welcome").remove()
        await self.begin_loading()

    @on(messages.BackendProgress)
    async def _show_progress(self, event: messages.BackendProgress) -> None:
        if self.ready or event.backend is not self.backend:
            return
        if event.step not in self._steps:
            self._steps = (*self._steps[-5:], event.step)
            self.set_status(replace(self.status, state="loading"))
        if not self.conversation.turns:
            done = [f"✓ {step}" for step in self._steps[:-1]]
            seconds = time.monotonic() - self._began
            waited = f" ({seconds:.0f} s)" if seconds >= 2 else ""
            await self.transcript.welcome(
                self.backend.name,
                [*done, f"{event.step} …{waited}", "", "You can begin to type. Esc gives up and offers other models."],
            )

    @on(messages.BackendReady)
    async def _loaded(self, event: messages.BackendReady) -> None:
        backend = self.backend
        if event.backend is not backend:
            return
        self.ready = True
        if not self.conversation.turns:
            self.conversation = Conversation(is_chat=backend.is_chat)
        elif self.conversation.is_chat and not backend.is_chat:
            await self.transcript.note(
                f"{backend.name} continues text and cannot answer messages, so a new session was begun; the old one is "
                "kept (Ctrl+O)."
            )
            self.conversation = Conversation(is_chat=False)
            self.info = None
        self.show_kind()
        size = backend.context_size
        self.set_status(
            Status(backend.name, "ready", backend.kernel, backend.threads, self.context_used(), context_size=size)
        )
        self.side.live.show_backend(backend)
        if not self.conversation.turns:
            await self.transcript.welcome(backend.name, self.welcome_lines())
            await self.resume_last()  # a server's model has its name only now
        path = getattr(backend, "path", None)
        if path is not None:
            self.app.post_message(messages.ModelUsed(path))
        if self._send_when_ready:
            self.prompt.action_submit()

    async def resume_last(self) -> None:
        """Open the session this model was used in last; the part that knows sessions does it."""

    def show_kind(self) -> None:
        """Say in the input whether messages or text are wanted."""
        chat = self.conversation.is_chat
        self._fit_penalty()
        self.prompt.border_title = "Message" if chat else "Text to continue"
        if not chat and not self.prompt.past.entries:
            self.prompt.past = History(EXAMPLES)
        self.side.settings.show(self.settings, is_chat=chat)

    def _fit_penalty(self) -> None:
        """Give a session that has not begun the repeat penalty of its kind, unless somebody chose another: small base
        models fall into loops without one. Servers are asked for nothing that not all of them know.
        """
        if self.conversation.turns or getattr(self.backend, "path", None) is None:
            return
        usual = self.preferences.sampling
        continues, answers = usual.completion_penalty, usual.repeat_penalty
        wanted, other = (answers, continues) if self.conversation.is_chat else (continues, answers)
        if self.sampling.repeat_penalty == other:
            self.sampling = replace(self.sampling, repeat_penalty=wanted)

    async def recall_prompts(self) -> None:
        """Fill the input's history with what was typed in earlier sessions; examples are for those who have none."""
        entries = await answer_of(self, self.store.prompts())
        if entries:
            typed = [text for text in self.prompt.past.entries if text not in EXAMPLES and text not in entries[-1:]]
            self.prompt.past = History([*entries, *typed])

    def welcome_lines(self) -> list[str]:
        """What to do with the model that is ready."""
        keys = ["", "F1 explains the keys, Ctrl+P finds every command, Ctrl+O shows earlier sessions."]
        if self.conversation.is_chat:
            return ["Write a message and press Enter.", *keys]
        return [
            "This is a base model: it continues text."
            if not self.backend.is_chat
            else "Completion: the model continues text (/complete goes back to messages).",
            "",
            "Type the beginning of something and press Enter; ↑ brings examples.",
            "Enter on an empty input lets it go on.",
            *keys,
        ]

    @on(messages.BackendFailed)
    async def _failed(self, event: messages.BackendFailed) -> None:
        if event.backend is self.backend:
            logger.error("%s", event.text)
            await self.show_failure(event.text)

    async def show_failure(self, text: str, title: str = "The model cannot be used") -> None:
        """Say that there is no model, and what can be done."""
        self.ready = False
        self._send_when_ready = False
        self.set_status(Status(self.backend.name, "failed"))
        lines = [
            text,
            "",
            "Ctrl+G  choose a model: shipped, recent, in a folder, in Hugging Face's cache",
            "/attach URL  use a server instead",
            "F3  inspect the file   F4  train a model   F8  the log   Ctrl+O  earlier sessions   Ctrl+Q  leave",
        ]
        if self.conversation.turns:
            await self.transcript.note("\n".join(lines), error=True)
        else:
            await self.transcript.welcome(title, lines, failed=True)

    async def give_up_loading(self) -> None:
        """Stop waiting for the model; its thread ends at its next step."""
        self.loader.stop()
        await self.show_failure("Loading was given up.", "No model is loaded")
