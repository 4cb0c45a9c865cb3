"""The chat mode: brings conversation, threads and widgets together."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import ClassVar

from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Container
from textual.events import Key
from textual.screen import Screen
from textual.widgets import Footer

from nanochat_tui.chat.backend import Backend, SamplingSettings, Stats
from nanochat_tui.tui import messages
from nanochat_tui.tui.chat.conversation import Conversation
from nanochat_tui.tui.chat.generation import Generation, Loader
from nanochat_tui.tui.chat.history import History
from nanochat_tui.tui.chat.prompt import Prompt
from nanochat_tui.tui.chat.sampling_panel import SamplingPanel
from nanochat_tui.tui.chat.transcript import Transcript
from nanochat_tui.tui.clipboard import copy_natively
from nanochat_tui.tui.widgets.status import Status, StatusLine

EXAMPLES = [
    "/// Returns the largest value of a slice.\npub fn largest(values: &[i32]) -> Option<i32> {",
    "impl fmt::Display for Point {",
    "fn main() {",
]
"""Beginnings for a model of Rust, offered by the arrow-up key before anything was typed."""


class ChatScreen(Screen[None]):
    """Type, see the reply being written, stop it, try again."""

    CSS_PATH = "chat.tcss"
    AUTO_FOCUS = "#prompt"
    HORIZONTAL_BREAKPOINTS = [(0, "-narrow"), (76, "-wide")]  # noqa: RUF012 - typed by Textual
    VERTICAL_BREAKPOINTS = [(0, "-low"), (24, "-high")]  # noqa: RUF012

    HELP = """\
## Chat
A **base model** continues text: what you type is the beginning, and everything in the transcript is one document that
grows. **Enter** on an empty input lets it go on. A model with a chat template answers messages instead.

**Esc** stops a reply, **Ctrl+R** writes it anew, **Ctrl+Y** copies it, **Ctrl+N** starts over, **Ctrl+S** opens the
sampling settings, **Ctrl+P** finds every command. The line at the bottom shows the speed and how much of the context is
used; when the context is full, the oldest text no longer reaches the model, and a note says so.
"""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "stop", "Stop", priority=True, id="chat.stop"),
        Binding("escape", "dismiss_panel", "Back", priority=True, show=False, id="chat.back"),
        Binding("ctrl+r", "regenerate", "Again", priority=True, id="chat.again"),
        Binding("ctrl+n", "new", "New", priority=True, id="chat.new"),
        Binding("ctrl+y", "copy_reply", "Copy", priority=True, id="chat.copy"),
        Binding("ctrl+s,f6", "toggle_sampling", "Sampling", priority=True, id="chat.sampling"),
    ]

    def __init__(self, backend: Backend) -> None:
        super().__init__()
        self.backend = backend
        self.conversation = Conversation(is_chat=False)
        self.sampling = SamplingSettings()
        self.max_tokens: int | None = 256
        self.generation: Generation | None = None
        self.loader = Loader(backend, self.post_message)
        self.ready = False
        self.status = Status(backend.name)
        self._runs = 0
        self._send_when_ready = False

    def compose(self) -> ComposeResult:
        """Lay out transcript and settings above the input, the status and the keys."""
        with Container(id="body"):
            yield Transcript(id="transcript")
            yield SamplingPanel(self.sampling, self.max_tokens, id="sampling")
        yield Prompt(id="prompt", past=History())
        yield StatusLine(id="status")
        yield Footer(show_command_palette=False, compact=True)

    async def on_mount(self) -> None:
        """Paint, and only then begin to load."""
        self.prompt.border_title = "Write"
        self.set_status(Status(self.backend.name, "loading"))
        await self.transcript.welcome(self.backend.name, ["Loading …"])
        self.call_after_refresh(self.loader.start)

    def close(self) -> None:
        """Stop the threads, waiting for the one that can be waited for."""
        self.loader.stop()
        if self.generation is not None:
            self.generation.stop()
            self.generation.join(1.0)

    @property
    def is_working(self) -> bool:
        """Whether a thread still computes."""
        return self.loader.is_working or (self.generation is not None and not self.generation.join(0))

    @property
    def transcript(self) -> Transcript:
        """The scrolling part."""
        return self.query_one("#transcript", Transcript)

    @property
    def prompt(self) -> Prompt:
        """The input."""
        return self.query_one("#prompt", Prompt)

    async def use_backend(self, backend: Backend) -> None:
        """Put another model in the place of this one and load it; what was said goes with the old one."""
        self.loader.stop()
        if self.generation is not None:
            self.generation.stop()
            self.generation = None
        self.backend = backend
        self.ready = False
        self.loader = Loader(backend, self.post_message)
        self.conversation = Conversation(is_chat=False)
        self.prompt.disabled = False
        await self.transcript.clear()
        self.set_status(Status(backend.name, "loading"))
        await self.transcript.welcome(backend.name, ["Loading …"])
        self.loader.start()

    def palette_commands(self) -> Iterable[tuple[str, str, Callable[[], object]]]:
        """Every action that makes sense now, for the palette."""
        offers: tuple[tuple[str, str, str, Callable[[], object]], ...] = (
            ("stop", "Stop the reply", "End it at the next token (Esc)", self.action_stop),
            ("regenerate", "Write again", "Replace the last reply by a new one (Ctrl+R)", self.action_regenerate),
            ("new", "New conversation", "Start over with an empty transcript (Ctrl+N)", self.action_new),
            ("copy_reply", "Copy the last reply", "To the clipboard (Ctrl+Y)", self.action_copy_reply),
            ("copy_reply", "Copy everything", "The whole document or conversation", self.action_copy_all),
            ("sampling", "Sampling settings", "Temperature, top-k and others (Ctrl+S)", self.action_toggle_sampling),
        )
        for action, title, text, callback in offers:
            if self.check_action(action, ()):
                yield title, text, callback

    def set_status(self, status: Status) -> None:
        """Change the status line, and with the state the keys that make sense."""
        self.status = status
        self.query_one("#status", StatusLine).status = status
        self.refresh_bindings()

    # Loading

    @on(messages.BackendProgress)
    async def _show_progress(self, event: messages.BackendProgress) -> None:
        if not self.ready and not self.conversation.turns:
            await self.transcript.welcome(self.backend.name, [f"{event.step} …", "", "You can begin to type."])

    @on(messages.BackendReady)
    async def _loaded(self) -> None:
        backend = self.backend
        self.ready = True
        self.conversation = Conversation(is_chat=backend.is_chat)
        self.prompt.border_title = "Message" if backend.is_chat else "Text to continue"
        if not backend.is_chat:
            self.prompt.past = History(EXAMPLES)
        self.set_status(
            Status(backend.name, "ready", backend.kernel, backend.threads, context_size=backend.context_size)
        )
        await self.transcript.welcome(backend.name, self._welcome())
        if self._send_when_ready:
            self.prompt.action_submit()

    def _welcome(self) -> list[str]:
        if self.backend.is_chat:
            return ["Write a message and press Enter.", "", "F1 explains the keys, Ctrl+S the sampling."]
        return [
            "This is a base model: it continues text.",
            "",
            "Type the beginning of something and press Enter; ↑ brings examples.",
            "Enter on an empty input lets it go on. F1 explains the keys, Ctrl+S the sampling.",
        ]

    @on(messages.BackendFailed)
    async def _failed(self, event: messages.BackendFailed) -> None:
        self.prompt.disabled = True
        self.set_status(Status(self.backend.name, "failed"))
        await self.transcript.welcome(
            "The model cannot be used",
            [
                event.text,
                "",
                "Leave with Ctrl+Q. What the file is: nanochat-tui inspect FILE",
                "Another model: nanochat-tui FILE",
            ],
            failed=True,
        )

    # Replies

    @on(messages.PromptSubmitted)
    async def _submitted(self, event: messages.PromptSubmitted) -> None:
        if not self.ready:
            self._send_when_ready = bool(event.text.strip())
            if self._send_when_ready:
                self.set_status(replace(self.status, state="waiting"))
            return
        self._send_when_ready = False
        if self.generation is not None:
            self.app.bell()
            return
        if event.text.strip():
            turn = self.conversation.say(event.text)
            self.prompt.sent()
            await self.transcript.begin(turn, is_chat=self.conversation.is_chat, model_name=self.backend.name)
        elif self.conversation.go_on() is not None:
            await self.transcript.restart()
        else:
            return
        self._generate()

    def _generate(self) -> None:
        self._runs += 1
        request = self.conversation.request(self.sampling, self.max_tokens)
        self.generation = Generation(self._runs, self.backend, request, self.post_message)
        self.set_status(replace(self.status, state="reading"))
        self.generation.start()

    def _is_current(self, run: int) -> bool:
        return self.generation is not None and self.generation.run == run

    @on(messages.ReplyStarted)
    async def _reply_started(self, event: messages.ReplyStarted) -> None:
        if not self._is_current(event.run):
            return
        if event.note is not None:
            await self.transcript.context_note(event.note)
        size = self.status.context_size
        self.set_status(replace(self.status, stats=Stats(None, None, event.prompt_tokens, size)))

    @on(messages.ReplyText)
    async def _reply_text(self, event: messages.ReplyText) -> None:
        if not self._is_current(event.run):
            return
        if self.status.state == "reading":
            self.set_status(replace(self.status, state="writing"))
        self.conversation.write(event.text)
        await self.transcript.write(event.text)

    @on(messages.ReplyStats)
    def _reply_stats(self, event: messages.ReplyStats) -> None:
        if self._is_current(event.run):
            self.set_status(replace(self.status, stats=event.stats))
            if self.conversation.last is not None:
                self.conversation.last.stats = event.stats

    @on(messages.ReplyEnded)
    async def _reply_ended(self, event: messages.ReplyEnded) -> None:
        if not self._is_current(event.run):
            return
        self.generation = None
        if self.conversation.last is not None:
            self.conversation.last.reason = event.reason
        await self.transcript.finish()
        if event.error is not None:
            await self.transcript.note(event.error, error=True)
        self.set_status(replace(self.status, state="ready"))

    # Actions

    def on_key(self, event: Key) -> None:
        """Let typing go to the input even while the transcript has the focus, as after a click on it."""
        if self.focused is self.transcript and event.is_printable and event.character and not self.prompt.disabled:
            event.stop()
            self.prompt.focus()
            self.prompt.insert(event.character)

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """Offer only what makes sense now; None shows a key dimmed."""
        if action == "stop":
            return self.generation is not None
        if action == "dismiss_panel":
            return self.generation is None
        if action == "new":
            return True if self.ready else None
        if action in ("regenerate", "copy_reply"):
            return True if self.conversation.last is not None and self.ready else None
        return True

    def action_stop(self) -> None:
        """End the reply at the next token."""
        if self.generation is not None:
            self.generation.stop()
            self.set_status(replace(self.status, state="stopping"))

    def action_dismiss_panel(self) -> None:
        """Go back to the input, closing the settings and the help."""
        if self._send_when_ready:  # what Enter asked for before the model was there
            self._send_when_ready = False
            self.set_status(replace(self.status, state="loading"))
        self.query_one("#sampling").display = False
        self.app.action_hide_help_panel()
        self.prompt.focus()

    async def action_regenerate(self) -> None:
        """Write the last reply anew; one that is being written is stopped first by Esc."""
        if self.generation is not None or not self.ready:
            self.app.bell()
        elif self.conversation.retry() is not None:
            await self.transcript.restart()
            self._generate()

    async def action_new(self) -> None:
        """Start over with an empty transcript."""
        if self.generation is not None:
            self.generation.stop()
            self.generation = None  # what it still says is not for this conversation
        self.conversation = Conversation(is_chat=self.conversation.is_chat)
        await self.transcript.clear()
        await self.transcript.welcome(self.backend.name, self._welcome())
        self.set_status(replace(self.status, state="ready", stats=None))
        self.prompt.focus()

    def action_copy_reply(self) -> None:
        """Copy the last reply to the clipboard."""
        if self.conversation.last is not None:
            self._copy(self.conversation.last.reply, "reply")

    def action_copy_all(self) -> None:
        """Copy everything: the document, or the conversation."""
        if self.conversation.is_chat:
            turns = self.conversation.turns
            self._copy("\n\n".join(f"> {turn.prompt}\n\n{turn.reply}" for turn in turns), "conversation")
        else:
            self._copy(self.conversation.document, "document")

    def _copy(self, text: str, what: str) -> None:
        self.app.copy_to_clipboard(text)
        copy_natively(text)
        self.notify(f"Copied the {what}: {len(text)} characters.", timeout=2, markup=False)

    def action_toggle_sampling(self) -> None:
        """Open or close the sampling settings."""
        panel = self.query_one("#sampling", SamplingPanel)
        panel.display = not panel.display
        if panel.display:
            panel.focus_first()
        else:
            self.prompt.focus()

    @on(messages.SettingsChanged)
    def _settings_changed(self, event: messages.SettingsChanged) -> None:
        self.sampling = event.sampling
        self.max_tokens = event.max_tokens
