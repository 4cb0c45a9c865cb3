"""What the parts of the chat show on, and what they ask of the screen they stand on."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Protocol, TypeVar

from textual.notifications import SeverityLevel
from textual.screen import Screen
from textual.timer import Timer

from nanochat_tui.tui.chat.history import History
from nanochat_tui.tui.chat.model_slot import ModelSlot
from nanochat_tui.tui.chat.prompt import Prompt
from nanochat_tui.tui.chat.session import ChatSession
from nanochat_tui.tui.chat.side_panel import SidePanel
from nanochat_tui.tui.chat.transcript import Transcript
from nanochat_tui.tui.chat.welcome import EXAMPLES, failure_lines, loading_lines, ready_lines
from nanochat_tui.tui.keys import KeyNames
from nanochat_tui.tui.log import logger
from nanochat_tui.tui.widgets.status import Status

if TYPE_CHECKING:
    from textual.message import Message

    from nanochat_tui.tui.chat.conversation import Turn

T = TypeVar("T")
Answered = Callable[[T | None], None] | Callable[[T | None], Awaitable[None]]
"""What gets the result of a dialog, None if it was left."""


class Desk(Protocol):
    """The screen, as its parts know it: it asks and tells the person, and shows the status."""

    @property
    def status(self) -> Status:
        """What the status line shows."""

    def set_status(self, status: Status) -> None:
        """Change the status line, and with the state the keys that make sense."""

    @property
    def keys(self) -> KeyNames:
        """What keys are called."""

    def notify(
        self,
        message: str,
        *,
        severity: SeverityLevel = "information",
        timeout: float | None = None,
        markup: bool = False,
    ) -> None:
        """Say something in passing."""

    def ask(self, dialog: Screen[T], answered: Answered[T]) -> None:
        """Show a dialog; `answered` gets its result."""

    def bell(self) -> None:
        """A key makes no sense now."""

    def copy(self, text: str, what: str) -> None:
        """Put `text`, which is called `what`, on the clipboard."""

    def post_message(self, message: Message) -> bool:
        """Send a message to the screen, from any thread."""

    def later(self, step: Callable[[], object]) -> None:
        """Do something after the next paint."""

    def set_interval(self, interval: float, callback: Callable[[], object]) -> Timer:
        """Do something every `interval` seconds."""

    def refresh_bindings(self) -> None:
        """Other keys make sense now."""


class ChatView:
    """The widgets that show a session and its model, and the ways to show them."""

    def __init__(self, session: ChatSession, model: ModelSlot, desk: Desk) -> None:
        self._session, self._model, self._desk = session, model, desk
        self.transcript = Transcript(id="transcript")
        self.prompt = Prompt(id="prompt")
        self.side = SidePanel(session.settings, id="side")

    @property
    def chosen_index(self) -> int | None:
        """Number of the turn that turn commands mean: the chosen one, else the last; None if there is none."""
        turns = self._session.conversation.turns
        chosen = self.transcript.chosen
        if chosen is not None:
            return next((index for index, turn in enumerate(turns) if turn is chosen), None)
        return len(turns) - 1 if turns else None

    @property
    def chosen_turn(self) -> Turn | None:
        """The turn that turn commands mean."""
        index = self.chosen_index
        return None if index is None else self._session.conversation.turns[index]

    @property
    def draft(self) -> str:
        """What is typed and not sent."""
        return self._session.draft.text(self.prompt.full_text, self._session.conversation)

    def say_error(self, text: str) -> None:
        """Tell what went wrong, without taking anything away."""
        logger.error("%s", text)
        self._desk.notify(text, severity="error", timeout=8, markup=False)

    async def show_conversation(self) -> None:
        """Draw the whole transcript again."""
        conversation = self._session.conversation
        self.transcript.offer(continues=self._model.can_continue(chat=conversation.is_chat))
        await self.transcript.show(conversation.turns, is_chat=conversation.is_chat, model_name=self._session.model)

    async def show_welcome(self) -> None:
        """Fill a transcript without turns."""
        model, keys = self._model, self._desk.keys
        if model.failure is not None:
            title, text = model.failure
            await self.transcript.welcome(title, failure_lines(text, keys), failed=True)
        elif model.ready:
            lines = ready_lines(model, keys, is_chat=self._session.conversation.is_chat)
            await self.transcript.welcome(model.backend.name, lines)
        else:
            await self.transcript.welcome(model.backend.name, loading_lines(model, keys))

    async def show_failure(self, text: str) -> None:
        """Say that there is no model: in place of turns, or after them."""
        if self._session.conversation.turns:
            await self.transcript.note("\n".join(failure_lines(text, self._desk.keys)), error=True)
        else:
            await self.show_welcome()

    def show_kind(self) -> None:
        """Say in the input whether messages or text are wanted, and show the settings that belong to it."""
        chat = self._session.conversation.is_chat
        if self._model.is_file:  # servers are asked for nothing that not all of them know
            self._session.fit_penalty()
        self.transcript.offer(continues=self._model.can_continue(chat=chat))
        self.prompt.border_title = "Message" if chat else "Text to continue"
        if not chat and not self.prompt.past.entries:
            self.prompt.past = History(EXAMPLES)
        self.show_settings()

    def show_settings(self) -> None:
        """Show the settings of the session in their panel."""
        self.side.settings.show(self._session.settings, is_chat=self._session.conversation.is_chat)

    def end_editing(self) -> None:
        """The input holds a new message again: what it held before."""
        aside = self._session.draft.end_edit()
        if not self.prompt.text:
            self.prompt.fill(aside)
        self.prompt.border_subtitle = ""
