"""What every part of the chat screen shares: the state and the widgets. The parts are classes of their own, and
`ChatScreen` is all of them together.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from textual.screen import Screen

from nanochat_tui.chat.backend import Backend, SamplingSettings, Stats
from nanochat_tui.chat.printable import counted
from nanochat_tui.chat.records import SessionInfo, SessionSettings, StoredSession, new_session, title_of
from nanochat_tui.chat.store import Store
from nanochat_tui.tui import messages
from nanochat_tui.tui.chat.conversation import Conversation, Turn
from nanochat_tui.tui.chat.generation import Generation, Loader
from nanochat_tui.tui.chat.prompt import Prompt
from nanochat_tui.tui.chat.side_panel import SidePanel
from nanochat_tui.tui.chat.transcript import Transcript
from nanochat_tui.tui.clipboard import copy_natively
from nanochat_tui.tui.log import logger
from nanochat_tui.tui.preferences import Preferences
from nanochat_tui.tui.widgets.status import Status, StatusLine

if TYPE_CHECKING:
    from textual.widget import Widget


class ChatBase(Screen[None]):
    """State of the chat mode."""

    def __init__(self, backend: Backend, store: Store | None = None, preferences: Preferences | None = None) -> None:
        super().__init__()
        self.backend = backend
        self.preferences = preferences or Preferences()
        self.store = store or Store(None)
        self.settings = self.preferences.session_settings()
        self.conversation = Conversation(is_chat=False)
        self.info: SessionInfo | None = None
        """The session as it is kept; None before anything was said."""
        self.generation: Generation | None = None
        self.loader = Loader(backend, self.post_message)
        self.ready = False
        self.status = Status(backend.name)
        self.editing: int | None = None
        """The turn whose message stands in the input to be changed."""
        self._runs = 0
        self._offered: tuple[bool, ...] = ()

    # Sampling, as two values that may be set

    @property
    def sampling(self) -> SamplingSettings:
        """How tokens of this session are chosen."""
        return self.settings.sampling

    @sampling.setter
    def sampling(self, value: SamplingSettings) -> None:
        self.settings = replace(self.settings, sampling=value)

    @property
    def max_tokens(self) -> int | None:
        """Most tokens of one reply; None for as many as fit."""
        return self.settings.max_tokens

    @max_tokens.setter
    def max_tokens(self, value: int | None) -> None:
        self.settings = replace(self.settings, max_tokens=value)

    # Widgets

    @property
    def transcript(self) -> Transcript:
        """The scrolling part."""
        return self.query_one("#transcript", Transcript)

    @property
    def prompt(self) -> Prompt:
        """The input."""
        return self.query_one("#prompt", Prompt)

    @property
    def side(self) -> SidePanel:
        """Settings and live values."""
        return self.query_one("#side", SidePanel)

    def set_status(self, status: Status) -> None:
        """Change the status line, and with the state the keys that make sense."""
        self.status = replace(status, unsaved=not self.store.saves and self.store.path is not None)
        self.query_one("#status", StatusLine).status = self.status
        # the footer is made anew for it, which takes as long as a hundred tokens: only when other keys make sense
        offered = (self.generation is None, self.ready, bool(self.conversation.turns), self.info is None)
        if offered != self._offered:
            self._offered = offered
            self.refresh_bindings()

    def show_widget(self, selector: str, shown: bool) -> Widget:
        """Show or hide a widget and return it."""
        widget = self.query_one(selector)
        widget.display = shown
        return widget

    def say_error(self, text: str) -> None:
        """Tell what went wrong, without taking anything away."""
        logger.error("%s", text)
        self.notify(text, severity="error", timeout=8, markup=False)

    def copy(self, text: str, what: str) -> None:
        """Put `text` on the clipboard: the desktop's own and, by escape sequence, the terminal's."""
        self.app.copy_to_clipboard(text)
        copy_natively(text)
        self.notify(f"Copied the {what}: {counted(len(text), 'character')}.", timeout=2, markup=False)

    # Turns

    @property
    def chosen_index(self) -> int | None:
        """Number of the turn that turn commands mean: the chosen one, else the last; None if there is none."""
        turns = self.conversation.turns
        chosen = self.transcript.chosen
        if chosen is not None:
            return next((index for index, turn in enumerate(turns) if turn is chosen), None)
        return len(turns) - 1 if turns else None

    @property
    def chosen_turn(self) -> Turn | None:
        """The turn that turn commands mean."""
        index = self.chosen_index
        return None if index is None else self.conversation.turns[index]

    def context_used(self) -> Stats | None:
        """How much of the context the last reply had used, of the model that is loaded now; None where unknown."""
        last = self.conversation.last
        if last is None or last.stats is None:
            return None
        return Stats(None, None, last.stats.context_used, self.backend.context_size)

    # Keeping

    def keep_info(self, **changes: object) -> None:
        """Save the session's own values; begins a session if there is none yet."""
        if self.info is None:
            self.info = new_session(self.backend.name, is_chat=self.conversation.is_chat, settings=self.settings)
            self.store.hold(self.info.id)
        self.info = replace(
            self.info,
            model=self.backend.name,
            is_chat=self.conversation.is_chat,
            settings=self.settings,
            updated=time.time(),
            turns=len(self.conversation.turns),
        )
        self.info = replace(self.info, **changes)  # type: ignore[arg-type]
        if not self.info.titled and self.conversation.turns:
            self.info = replace(self.info, title=title_of(self.conversation.turns[0].prompt))
        self.store.save_session(self.info)
        self.sub_title = self.info.title

    def keep_turn(self, index: int = -1) -> None:
        """Save one turn as it is now."""
        turns = self.conversation.turns
        if self.info is not None and turns:
            at = index % len(turns)
            self.store.save_turn(self.info.id, at, turns[at].stored())

    def keep_all(self, start: int = 0) -> None:
        """Save every turn from `start` on, and forget those beyond the last."""
        self.keep_info()
        if self.info is not None:
            self.store.keep_turns(self.info.id, start)
        for index in range(start, len(self.conversation.turns)):
            self.keep_turn(index)

    def as_stored(self) -> StoredSession | None:
        """Return the session as a file would hold it; None before anything was said."""
        if self.info is None:
            return None
        return StoredSession(self.info, tuple(turn.stored() for turn in self.conversation.turns))

    def stop_writing(self, seconds: float = 0.0) -> None:
        """End the reply that is being written, and take nothing more from it."""
        if self.generation is not None:
            self.generation.stop()
            self.generation.join(seconds)
            self.generation = None
            self.keep_turn()

    # What the other parts provide

    def session_settings(self) -> SessionSettings:
        """The settings of the session."""
        return self.settings

    async def show_conversation(self) -> None:
        """Draw the whole transcript anew."""
        await self.transcript.show(
            self.conversation.turns, is_chat=self.conversation.is_chat, model_name=self.backend.name
        )

    def later(self, step: Callable[[], object]) -> None:
        """Do something after the next paint."""
        self.call_after_refresh(step)

    def listen_to_store(self) -> None:
        """Hear from the store's thread when saving fails or works again."""
        self.store.listen(lambda text: self.post_message(messages.StoreProblem(text)))
