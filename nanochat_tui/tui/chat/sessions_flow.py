"""The part of the chat that keeps, opens and changes sessions."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

from textual import on
from textual.widgets import TextArea

from nanochat_tui.chat.exchange import export_session, import_session
from nanochat_tui.chat.printable import counted
from nanochat_tui.chat.records import StoredSession, named
from nanochat_tui.errors import UserError
from nanochat_tui.tui import messages
from nanochat_tui.tui.chat.conversation import Conversation
from nanochat_tui.tui.chat.replies import ReplyPart
from nanochat_tui.tui.chat.session_list import SessionList
from nanochat_tui.tui.log import logger
from nanochat_tui.tui.widgets.background import answer_of
from nanochat_tui.tui.widgets.dialogs import Ask, Confirm

DRAFT_SECONDS = 0.7


class SessionPart(ReplyPart):
    """Sessions from the store and back."""

    _draft = ""
    _resumed = False

    @property
    def sessions(self) -> SessionList:
        """The list at the left."""
        return self.query_one("#sessions", SessionList)

    @on(messages.StoreProblem)
    def _store_problem(self, event: messages.StoreProblem) -> None:
        logger.warning("%s", event.text)
        self.notify(event.text, severity="warning", timeout=12, markup=False)
        self.set_status(self.status)

    async def resume_last(self) -> None:
        """Open the session this model was used in last, if that is wanted and there is one."""
        if self._resumed or not self.preferences.chat.resume or self.store.path is None:
            return
        found = await answer_of(self, self.store.sessions("updated"))
        last = next((info for info in found or () if info.model == self.backend.name), None)
        if last is None or self.conversation.turns or self.info is not None or self.prompt.text:
            return
        self._resumed = True
        if await self._is_free(last.id):
            await self.open_session(last.id)
        else:
            self.notify("The last session is open in another window, so this is a new one.", timeout=6)

    async def open_session(self, session: str, position: int | None = None) -> None:
        """Show a session and go on with it; one that another window writes is forked, for two would overwrite each
        other's turns.
        """
        if await self._is_free(session):
            stored = await answer_of(self, self.store.load(session))
        else:
            stored = await answer_of(self, self.store.fork(session))
            if stored is not None:
                self.notify("This session is open in another window; here is a fork of it.", timeout=8)
        if stored is not None:
            await self.show_stored(stored)
            if position is not None:
                await self.transcript.reveal(position)

    async def _is_free(self, session: str) -> bool:
        """Take a session for this window; returns whether no other one has it. Where nothing can be written, nothing
        can be overwritten either.
        """
        try:
            return await asyncio.wrap_future(self.store.take(session))
        except UserError as exc:
            logger.warning("%s", exc)
            return True

    async def show_stored(self, stored: StoredSession) -> None:
        """Put a session on the screen, in the place of the one that is there."""
        self.stop_writing()
        self.leave_session()
        self.info = stored.info
        self.store.hold(stored.info.id)
        self.settings = stored.info.settings
        self.conversation = Conversation(is_chat=stored.info.is_chat, turns=stored.turns)
        self.sub_title = stored.info.title
        self.sessions.current = stored.info.id
        await self.show_conversation()
        if not self.conversation.turns:
            await self.transcript.welcome(self.backend.name, self.welcome_lines())
        self.show_kind()
        self._draft = stored.info.draft
        self.prompt.fill(stored.info.draft)
        if self.ready:
            if self.conversation.is_chat and not self.backend.is_chat:
                await self.transcript.note(
                    f"{self.backend.name} continues text and cannot answer messages; choose a chat model to go on here."
                )
            self.set_status(replace(self.status, state="ready", stats=self.context_used(), speeds=()))

    def leave_session(self) -> None:
        """Save what is not saved yet and stand before an empty screen."""
        edited = self.editing is not None  # an old message, which is no draft
        self.end_editing()
        if not edited and self.info is not None and self.prompt.full_text != self._draft:
            self.keep_info(draft=self.prompt.full_text)

    @on(TextArea.Changed, "#prompt")
    def _typed(self) -> None:
        self.show_suggestions(self.prompt.text)
        self.set_timer(DRAFT_SECONDS, self._keep_draft)

    def show_suggestions(self, text: str) -> None:
        """Show which commands `text` may become."""

    def _keep_draft(self) -> None:
        text = self.prompt.full_text
        if text == self._draft or self.editing is not None or text.startswith("/"):
            return
        if self.info is not None or text.strip():
            self._draft = text
            self.keep_info(draft=text)

    async def new_session(self) -> None:
        """Start over with an empty transcript; what was said is kept."""
        self._resumed = True
        self.stop_writing()
        self.leave_session()
        self.info = None
        self.store.hold(None)
        self._draft = ""
        self.settings = self.preferences.session_settings()
        self.conversation = Conversation(is_chat=self.backend.is_chat)
        self.sessions.current = None
        await self.transcript.clear()
        await self.transcript.welcome(self.backend.name, self.welcome_lines())
        self.show_kind()
        self.set_status(replace(self.status, state="ready", stats=None, speeds=()))
        self.prompt.focus()

    # The list

    async def action_toggle_sessions(self) -> None:
        """Open or close the list of sessions."""
        if self.sessions.display:
            self.sessions.display = False
            self.prompt.focus()
        else:
            self.sessions.current = self.info.id if self.info else None
            await self.sessions.open()

    @on(messages.SessionChosen)
    async def _session_chosen(self, event: messages.SessionChosen) -> None:
        if event.session != (self.info.id if self.info else None):
            await self.open_session(event.session, event.position)
        elif event.position is not None:
            await self.transcript.reveal(event.position)
        if self.has_class("-narrow"):
            self.sessions.display = False
        self.prompt.focus()

    @on(messages.SessionAction)
    async def _session_action(self, event: messages.SessionAction) -> None:
        stored = await answer_of(self, self.store.load(event.session))
        if stored is None:
            return
        changes = event.action in ("rename", "delete")
        if changes and await answer_of(self, self.store.is_free(event.session)) is False:
            self.say_error(f"This session is open in another window; {event.action} it there, or fork it.")
            return
        match event.action:
            case "rename":
                self._ask_name(stored)
            case "delete":
                self._ask_delete(stored)
            case "export":
                self._ask_export(stored)
            case _:
                await self._fork(stored.info.id, None)

    def _ask_name(self, stored: StoredSession) -> None:
        async def answered(name: str | None) -> None:
            if name is not None:
                await self.rename(stored, name)

        self.app.push_screen(Ask("Rename the session", stored.info.title), answered)

    async def rename(self, stored: StoredSession, name: str) -> None:
        """Give a session a name."""
        try:
            renamed = named(stored.info, name)
        except UserError as exc:
            self.say_error(str(exc))
            return
        if self.info is not None and self.info.id == renamed.id:
            self.keep_info(title=renamed.title, titled=True)
        else:
            self.store.save_session(renamed)
        await self.list_changed()

    def _ask_delete(self, stored: StoredSession) -> None:
        async def answered(sure: bool | None) -> None:
            if not sure:
                return
            self.store.delete(stored.info.id)
            if self.info is not None and self.info.id == stored.info.id:
                self.stop_writing()
                self.info = None
                self.prompt.fill("")
                await self.new_session()
            await self.list_changed()

        text = f"“{stored.info.title}” with {counted(stored.info.turns, 'turn')} will be gone for good."
        self.app.push_screen(Confirm("Delete this session?", text), answered)

    def _ask_export(self, stored: StoredSession) -> None:
        def answered(path: str | None) -> None:
            if path:
                self.export_to(stored, path)

        self.app.push_screen(Ask("Export to a .md or .json file", _file_name(stored.info.title)), answered)

    def export_to(self, stored: StoredSession, path: str) -> None:
        """Write a session to a file, asking before one is replaced, and say where."""
        file = Path(path).expanduser()
        if not file.is_file():
            self._write_to(stored, file)
            return

        def answered(sure: bool | None) -> None:
            if sure:
                self._write_to(stored, file)

        self.app.push_screen(
            Confirm("Replace this file?", f"{file.resolve()} exists; what it holds is lost."), answered
        )

    def _write_to(self, stored: StoredSession, file: Path) -> None:
        try:
            written = export_session(stored, file)
        except UserError as exc:
            self.say_error(str(exc))
        else:
            self.notify(f"Written to {written.resolve()}", markup=False)

    async def import_from(self, path: str) -> None:
        """Read a session from a file, keep it and show it."""
        try:
            stored = import_session(Path(path).expanduser())
        except UserError as exc:
            self.say_error(str(exc))
            return
        self.store.save_session(stored.info)
        for position, turn in enumerate(stored.turns):
            self.store.save_turn(stored.info.id, position, turn)
        await self.show_stored(stored)
        await self.list_changed()

    async def _fork(self, session: str, keep: int | None) -> None:
        stored = await answer_of(self, self.store.fork(session, keep))
        if stored is not None:
            await self.show_stored(stored)
            await self.list_changed()
            self.notify("This is a fork; the other session stays as it was.", timeout=4)

    async def action_fork_turn(self) -> None:
        """Go on in a copy that ends with the chosen turn."""
        index = self.chosen_index
        if self.info is None or index is None:
            self.app.bell()
            return
        await self._fork(self.info.id, index + 1)

    async def list_changed(self) -> None:
        """See `ReplyPart`."""
        if self.sessions.display:
            self.sessions.current = self.info.id if self.info else None
            await self.sessions.refresh_list()


def _file_name(title: str) -> str:
    """Return a name for an export that no file here has yet."""
    stem = "".join(c if c.isalnum() or c in "-_" else "-" for c in title)[:40].strip("-") or "session"
    names = (f"{stem}-{number}.md" if number > 1 else f"{stem}.md" for number in range(1, 1000))
    return next((name for name in names if not Path(name).exists()), f"{stem}.md")
