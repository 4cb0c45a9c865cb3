"""What is done to one session, on the screen or in the list: rename, delete, restore, export, import."""

from __future__ import annotations

import time
from pathlib import Path

from nanochat_tui.chat.exchange import export_session, import_session
from nanochat_tui.chat.store import KEPT_DAYS
from nanochat_tui.chat.store.records import StoredSession, named
from nanochat_tui.errors import UserError
from nanochat_tui.text import counted
from nanochat_tui.tui.background import answer_of
from nanochat_tui.tui.chat.act import Act, plain
from nanochat_tui.tui.chat.actions import Actions
from nanochat_tui.tui.numbers import age
from nanochat_tui.tui.widgets.dialogs import Ask, Choose, Confirm, Field


class SessionActions(Actions):
    """Changes sessions in the store, asking before anything is lost."""

    def acts(self) -> dict[str, Act]:
        """Commands by their names."""
        return {
            "rename": Act(self._rename_this, self._has_begun, value=self._title),
            "export": Act(self._export_this, self._has_begun),
            "delete": Act(plain(self._delete_this), self._has_begun),
            "import": Act(self.import_from),
            "restore": Act(plain(self.restore)),
            "purge": Act(plain(self.empty_trash)),
        }

    def _has_begun(self) -> bool | None:
        return True if self._session.info is not None else None

    def _title(self) -> str:
        return self._session.info.title if self._session.info is not None else ""

    async def change(self, action: str, session: str) -> None:
        """Do something to a session of the list: "rename", "delete", "export" or "fork"."""
        store = self._session.store
        stored = await answer_of(self._desk, store.load(session))
        if stored is None:
            return
        changes = action in ("rename", "delete")
        if changes and await answer_of(self._desk, store.is_free(session)) is False:
            self._view.say_error(f"This session is open in another window; {action} it there, or fork it.")
            return
        match action:
            case "rename":
                self._ask_name(stored)
            case "delete":
                self._ask_delete(stored)
            case "export":
                self._ask_export(stored)
            case _:
                await self._flow.fork(stored.info.id, None)

    # Names

    def _ask_name(self, stored: StoredSession) -> None:
        async def answered(names: list[str] | None) -> None:
            if names is not None:
                await self.rename(stored, names[0])

        self._desk.ask(Ask("Rename the session", [Field(stored.info.title)]), answered)

    async def _rename_this(self, name: str) -> None:
        stored = self._session.as_stored()
        if stored is not None:
            await self.rename(stored, name)

    async def rename(self, stored: StoredSession, name: str) -> None:
        """Give a session a name."""
        try:
            renamed = named(stored.info, name)
        except UserError as exc:
            self._view.say_error(str(exc))
            return
        if self._session.id == renamed.id:
            self._session.keep_info(title=renamed.title, titled=True)
        else:
            self._session.store.save_session(renamed)
        await self._flow.list_changed()

    # Deleting

    def _delete_this(self) -> None:
        stored = self._session.as_stored()
        if stored is not None:
            self._ask_delete(stored)

    def _ask_delete(self, stored: StoredSession) -> None:
        async def answered(sure: bool | None) -> None:
            if not sure:
                return
            here = self._session.id == stored.info.id
            if here:
                self._replies.abandon()
                self._flow.leave()
            self._session.store.delete(stored.info.id)
            self._desk.notify("Deleted. /restore brings it back.", timeout=6)
            if here:
                await self._flow.close_current()
            await self._flow.list_changed()

        text = (
            f"“{stored.info.title}” ({counted(stored.info.turns, 'turn')}) leaves the list and the search. "
            f"/restore brings it back within {KEPT_DAYS} days."
        )
        self._desk.ask(Confirm("Delete this session?", text), answered)

    async def restore(self) -> None:
        """Bring back one of the deleted sessions."""
        found = await answer_of(self._desk, self._session.store.deleted())
        if not found:
            self._desk.notify("No session was deleted lately.", timeout=4)
            return
        now = time.time()
        lines = [(info.title, f"{counted(info.turns, 'turn')} · used {age(now - info.updated)}") for info in found]

        async def chosen(place: int | None) -> None:
            if place is not None:
                self._session.store.restore(found[place].id)
                await self._flow.open(found[place].id)
                await self._flow.list_changed()

        self._desk.ask(Choose("Restore a deleted session", lines), chosen)

    def empty_trash(self) -> None:
        """Drop what was deleted, after asking."""

        async def answered(sure: bool | None) -> None:
            if sure:
                self._session.conversation.deleted.clear()
                count = await answer_of(self._desk, self._session.store.purge())
                if count is not None:
                    text = f"Dropped {counted(count, 'deleted session')} and all deleted turns."
                    self._desk.notify(text, timeout=6)

        text = "Every deleted session and turn is dropped from the disk. This cannot be undone."
        self._desk.ask(Confirm("Drop what was deleted?", text), answered)

    # Files

    def _export_this(self, path: str) -> None:
        stored = self._session.as_stored()
        if stored is not None:
            self.export_to(stored, path)

    def _ask_export(self, stored: StoredSession) -> None:
        def answered(paths: list[str] | None) -> None:
            if paths is not None and paths[0]:
                self.export_to(stored, paths[0])

        self._desk.ask(Ask("Export to a .md or .json file", [Field(_file_name(stored.info.title))]), answered)

    def export_to(self, stored: StoredSession, path: str) -> None:
        """Write a session to a file, asking before one is replaced, and say where."""
        file = Path(path).expanduser()
        if not file.is_file():
            self._write_to(stored, file)
            return

        def answered(sure: bool | None) -> None:
            if sure:
                self._write_to(stored, file)

        text = f"{file.resolve()} exists; what it holds is lost."
        self._desk.ask(Confirm("Replace this file?", text), answered)

    def _write_to(self, stored: StoredSession, file: Path) -> None:
        try:
            written = export_session(stored, file)
        except UserError as exc:
            self._view.say_error(str(exc))
        else:
            self._desk.notify(f"Written to {written.resolve()}", markup=False)

    async def import_from(self, path: str) -> None:
        """Read a session from a file, keep it and show it."""
        try:
            stored = import_session(Path(path).expanduser())
        except UserError as exc:
            self._view.say_error(str(exc))
            return
        self._session.keep_imported(stored)
        self._view.prompt.past.add(f"/import {path}")
        await self._flow.show(stored)
        await self._flow.list_changed()


def _file_name(title: str) -> str:
    """Return a name for an export that no file here has yet."""
    stem = "".join(c if c.isalnum() or c in "-_" else "-" for c in title)[:40].strip("-") or "session"
    names = (f"{stem}-{number}.md" if number > 1 else f"{stem}.md" for number in range(1, 1000))
    return next((name for name in names if not Path(name).exists()), f"{stem}.md")
