"""Puts one session in the place of another: the one of before, one from the list, a fork, a new one."""

from __future__ import annotations

import asyncio
from dataclasses import replace

from nanochat_tui.chat.restoring import RestoreNote
from nanochat_tui.chat.store.records import StoredSession
from nanochat_tui.errors import UserError
from nanochat_tui.tui.background import answer_of
from nanochat_tui.tui.chat.act import Act, plain
from nanochat_tui.tui.chat.history import History
from nanochat_tui.tui.chat.model_slot import ModelSlot
from nanochat_tui.tui.chat.replies import ReplyRunner
from nanochat_tui.tui.chat.session import ChatSession
from nanochat_tui.tui.chat.session_list import SessionList
from nanochat_tui.tui.chat.view import ChatView, Desk
from nanochat_tui.tui.chat.welcome import EXAMPLES
from nanochat_tui.tui.log import logger


class SessionFlow:
    """Opens, leaves and begins sessions, and shows them in `view`. `sessions` is the list at the left."""

    def __init__(
        self,
        session: ChatSession,
        model: ModelSlot,
        replies: ReplyRunner,
        view: ChatView,
        sessions: SessionList,
        desk: Desk,
    ) -> None:
        self._session, self._model, self._replies = session, model, replies
        self._view, self._sessions, self._desk = view, sessions, desk
        self._resumed = False
        self._restored: str | None = None
        """The session this start opened by itself."""

    def acts(self) -> dict[str, Act]:
        """Commands by their names."""
        return {
            "new": Act(plain(self.new)),
            "sessions": Act(plain(self.toggle_list)),
            "search": Act(self._sessions.open),
            "sort": Act(plain(self._sort)),
            "fork": Act(plain(self.fork_chosen), lambda: True if self._session.conversation.turns else None),
        }

    # At the start

    async def resume_last(self) -> None:
        """Open the session this model was used in last, if that is wanted and there is one."""
        session, store = self._session, self._session.store
        if self._resumed or not session.preferences.chat.resume or store.path is None:
            return
        note = RestoreNote(store.path)
        if note.left_behind():
            self._resumed = True
            self._say_not_restored("The last start ended while it opened the last session")
            return
        found = await answer_of(self._desk, store.sessions("updated"))
        last = next((info for info in found or () if info.model == self._model.backend.name), None)
        if last is None or session.conversation.turns or session.info is not None or self._view.prompt.text:
            return
        self._resumed = True
        if not await self._is_free(last.id):
            self._desk.notify("The last session is open in another window, so this is a new one.", timeout=6)
            return
        note.begin(last.id)
        try:
            await self.open(last.id)
        except Exception:  # whatever a session holds, the next one can be begun
            logger.exception("the last session cannot be shown")
            note.done()
            session.info = None  # nothing of it is to be changed
            await self.new()
            self._say_not_restored(self._desk.keys("The last session cannot be shown ({app.log|F8} shows the log)"))
            return
        self._restored = last.id
        self._desk.later(note.done)

    def _say_not_restored(self, why: str) -> None:
        text = f"{why}, so this is a new one. {self._desk.keys('{chat.sessions|Ctrl+O} lists all sessions.')}"
        logger.warning("%s", text)
        self._desk.notify(text, severity="warning", timeout=15)

    def model_loaded(self) -> None:
        """What the model changes about a restored session must not stop every start either."""
        if self._restored is not None and self._session.id == self._restored:
            note = RestoreNote(self._session.store.path)
            note.begin(self._restored)
            self._desk.later(note.done)
        self._restored = None

    async def recall_prompts(self) -> None:
        """Fill the input's history with what was typed in earlier sessions; examples are for those who have none."""
        entries = await answer_of(self._desk, self._session.store.prompts())
        if entries:
            prompt = self._view.prompt
            typed = [text for text in prompt.past.entries if text not in EXAMPLES and text not in entries[-1:]]
            prompt.past = History([*entries, *typed])

    # Opening

    async def open(self, session: str, position: int | None = None) -> None:
        """Show a session and continue it; one that another window writes is forked, for two would overwrite each
        other's turns.
        """
        store = self._session.store
        if await self._is_free(session):
            stored = await answer_of(self._desk, store.load(session))
        else:
            stored = await answer_of(self._desk, store.fork(session))
            if stored is not None:
                self._desk.notify("This session is open in another window; here is a fork of it.", timeout=8)
        if stored is not None:
            await self.show(stored)
            if position is not None:
                await self._view.transcript.reveal(position)

    async def _is_free(self, session: str) -> bool:
        """Take a session for this window; returns whether no other one has it. Where nothing can be written, nothing
        can be overwritten either.
        """
        try:
            return await asyncio.wrap_future(self._session.store.take(session))
        except UserError as exc:
            logger.warning("%s", exc)
            return True

    async def show(self, stored: StoredSession) -> None:
        """Put a session on the screen, in the place of the one that is there."""
        self._replies.abandon()
        self.leave()
        session, view = self._session, self._view
        session.open(stored)
        self._sessions.current = stored.info.id
        await view.show_conversation()
        if not session.conversation.turns:
            await view.show_welcome()
        view.show_kind()
        view.prompt.fill(stored.info.draft)
        if self._model.ready:
            backend = self._model.backend
            if session.conversation.is_chat and not backend.is_chat:
                await view.transcript.note(
                    f"{backend.name} continues text and cannot answer messages; choose a chat model to continue here."
                )
            stats = self._model.context_of(session.conversation.last)
            self._desk.set_status(replace(self._desk.status, state="ready", stats=stats, speeds=()))

    def leave(self) -> None:
        """Save what is not saved yet."""
        draft = self._view.draft
        if self._session.draft.editing is not None:
            self._view.end_editing()
            self._view.prompt.fill(draft)
        self._session.keep_draft(draft, commands=True)

    async def new(self) -> None:
        """Start over with an empty transcript; what was said is kept."""
        self._resumed = True
        self._replies.abandon()
        session, view = self._session, self._view
        if session.conversation.turns or session.conversation.deleted:
            self.leave()
        session.begin(is_chat=self._model.answers)
        self._sessions.current = None
        await view.transcript.clear()
        await view.show_welcome()
        view.show_kind()
        status = self._desk.status
        state = "ready" if self._model.ready else status.state
        self._desk.set_status(replace(status, state=state, stats=None, speeds=()))
        view.prompt.focus()

    async def close_current(self) -> None:
        """Leave the session of now, which is being deleted, for a new one; nothing stays in the input."""
        self._session.info = None
        self._view.prompt.fill("")
        await self.new()

    async def fork(self, session: str, keep: int | None) -> bool:
        """Continue in a copy of a session, or of its first `keep` turns; returns whether there is one."""
        stored = await answer_of(self._desk, self._session.store.fork(session, keep))
        if stored is None:
            return False
        await self.show(stored)
        await self.list_changed()
        self._desk.notify("This is a fork; the other session stays as it was.", timeout=4)
        return True

    async def fork_chosen(self) -> bool:
        """Continue in a copy that ends with the chosen turn; returns whether there is one."""
        index = self._view.chosen_index
        if self._session.id is None or index is None:
            self._desk.bell()
            return False
        return await self.fork(self._session.id, index + 1)

    # The list

    async def toggle_list(self) -> None:
        """Open or close the list of sessions."""
        if self._sessions.display:
            self._sessions.display = False
            self._view.prompt.focus()
        else:
            self._sessions.current = self._session.id
            await self._sessions.open()

    async def chosen(self, session: str, position: int | None) -> None:
        """Open a session of the list, at one of its turns if `position` says so."""
        if session != self._session.id:
            await self.open(session, position)
        elif position is not None:
            await self._view.transcript.reveal(position)

    async def _sort(self) -> None:
        if not self._sessions.display:
            await self._sessions.open()
        self._sessions.next_order()

    async def list_changed(self) -> None:
        """A session of the list is not what it was."""
        if self._sessions.display:
            self._sessions.current = self._session.id
            await self._sessions.refresh_list()
