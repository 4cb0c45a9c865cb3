"""Sessions, kept as they happen.

One thread owns the database. Writes are told to it and return at once: the newest state of each turn waits at most
`DELAY` seconds and goes to the disk with everything else that waits, in one transaction. A disk that is full or a home
that cannot be written to is reported, once; what waits goes on waiting and is tried again, and the session goes on.
"""

from __future__ import annotations

import contextlib
import queue
import sqlite3
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from typing import TypeVar

from nanochat_tui.chat.store import owners, queries
from nanochat_tui.chat.store.records import Order, SearchHit, SessionInfo, StoredSession, StoredTurn
from nanochat_tui.chat.store.schema import StoreError, open_database

DELAY = 0.3
"""Seconds a change may wait: less than anybody would miss."""
KEPT_DAYS = 30
"""Days a deleted session can be restored."""
PATIENCE = 5.0
"""Seconds until a disk that refused is asked again."""

T = TypeVar("T")
Write = Callable[[sqlite3.Connection], object]
Key = tuple[str, int | str]


class _Read:
    def __init__(self, work: Callable[[sqlite3.Connection], object], answer: Future[object], *, writes: bool) -> None:
        self.work, self.answer, self.writes = work, answer, writes


class Store:
    """The sessions of one person. `path` None keeps them in memory only.

    `on_problem` is called from the store's thread with one sentence whenever saving begins to fail or has recovered.
    Questions return futures, whose errors are `StoreError`; they see every change made before them.
    """

    def __init__(self, path: Path | None, on_problem: Callable[[str], object] | None = None) -> None:
        self.path = path
        self.saves = self._kept = path is not None
        """Whether what happens will be there next time."""
        self.on_problem = on_problem
        self._owner = owners.Owner()
        self._holds: str | None = None
        self._problems: list[str] = []
        self._jobs: queue.SimpleQueue[tuple[Key | None, Write] | _Read | None] = queue.SimpleQueue()
        self._waiting: dict[Key | int, Write] = {}
        self._failed = False
        self._next_try = 0.0
        self._thread = threading.Thread(target=self._run, name="sessions", daemon=True)
        self._thread.start()

    # Changes

    def save_session(self, info: SessionInfo) -> None:
        """Insert or change a session's own values."""
        self._jobs.put(((info.id, "session"), partial(queries.save_session, info=info)))

    def save_turn(self, session: str, position: int, turn: StoredTurn) -> None:
        """Insert or replace a turn; cheap enough for every few tokens."""
        work = partial(queries.save_turn, session=session, position=position, turn=turn)
        self._jobs.put(((session, position), work))

    def keep_turns(self, session: str, count: int) -> None:
        """Drop all turns from position `count` on."""
        self._jobs.put((None, partial(queries.keep_turns, session=session, count=count)))

    def delete(self, session: str) -> None:
        """Hide a session until `restore`, or until it is dropped after `KEPT_DAYS`; forks of it stay."""
        self._jobs.put((None, partial(queries.delete_session, session=session)))

    def restore(self, session: str) -> None:
        """Bring a deleted session back."""
        self._jobs.put((None, partial(queries.restore_session, session=session)))

    def save_deleted(self, session: str, deleted: Sequence[tuple[int, StoredTurn]]) -> None:
        """Remember the deleted turns of a session, each with the number it had."""
        work = partial(queries.save_deleted_turns, session=session, deleted=tuple(deleted))
        self._jobs.put(((session, "deleted"), work))

    def hold(self, session: str | None) -> None:
        """Note that this window writes `session` now, and no other one; None: nothing that exists yet."""
        if session != self._holds or session is None:
            self._holds = session
            self._jobs.put((("", "open"), partial(owners.hold, owner=self._owner, session=session)))

    # Questions

    def take(self, session: str) -> Future[bool]:
        """Hold `session` too unless it is open in another window that lives; the answer is whether it is held. What is
        held as well goes with the next `hold`.
        """
        self._holds = None
        return self._ask(partial(owners.take, owner=self._owner, session=session), writes=True)

    def is_free(self, session: str) -> Future[bool]:
        """Whether no other window has `session` open."""
        return self._ask(partial(owners.is_free, owner=self._owner, session=session), writes=True)

    def sessions(self, order: Order = "updated") -> Future[list[SessionInfo]]:
        """List all sessions that hold anything."""
        return self._ask(partial(queries.list_sessions, order=order))

    def deleted(self) -> Future[list[SessionInfo]]:
        """List the sessions that can be restored, the last deleted first."""
        return self._ask(queries.deleted_sessions)

    def purge(self) -> Future[int]:
        """Drop permanently everything that was deleted; the answer is the number of sessions."""
        return self._ask(partial(queries.purge, seconds=0.0), writes=True)

    def load(self, session: str) -> Future[StoredSession]:
        """Return a session with its turns."""
        return self._ask(partial(queries.load_session, session=session))

    def fork(self, session: str, keep: int | None = None) -> Future[StoredSession]:
        """Copy a session, or its first `keep` turns, into a new one."""
        return self._ask(partial(queries.fork_session, session=session, keep=keep), writes=True)

    def search(self, text: str, limit: int = 50) -> Future[list[SearchHit]]:
        """Search titles, prompts and replies of all sessions."""
        return self._ask(partial(queries.search_turns, text=text, limit=limit))

    def prompts(self, limit: int = 200) -> Future[list[str]]:
        """Return the last prompts of all sessions, oldest first."""
        return self._ask(partial(queries.recent_prompts, limit=limit))

    def flush(self) -> Future[bool]:
        """Write what waits now; the answer is whether nothing waits any more."""
        return self._ask(lambda _: not self._waiting)

    def listen(self, on_problem: Callable[[str], object]) -> None:
        """Send problems to `on_problem`, those of the past at once."""
        self.on_problem = on_problem
        while self._problems:
            on_problem(self._problems.pop(0))

    def close(self, seconds: float = 3.0) -> bool:
        """Write what waits, hold no session any more and end the thread; returns whether it ended in time."""
        self.hold(None)
        self._jobs.put(None)
        self._thread.join(seconds)
        return not self._thread.is_alive()

    # The thread

    def _ask(self, work: Callable[[sqlite3.Connection], T], *, writes: bool = False) -> Future[T]:
        answer: Future[T] = Future()
        self._jobs.put(_Read(work, answer, writes=writes))  # type: ignore[arg-type]
        return answer

    def _report(self, text: str) -> None:
        if self.on_problem is None:
            self._problems.append(text)
        else:
            self.on_problem(text)

    def _open(self) -> sqlite3.Connection:
        try:
            connection, note = open_database(self.path)
        except StoreError as exc:
            self.saves = self._kept = False
            self._report(f"{exc} This session goes on unsaved.")
            return open_database(None)[0]
        if note:
            self._report(note)
        with contextlib.suppress(sqlite3.Error):
            queries.purge(connection, KEPT_DAYS * 86_400.0)
        return connection

    def _run(self) -> None:
        db = self._open()
        unkeyed = 0
        while True:
            try:
                job = self._jobs.get(timeout=self._pause())
            except queue.Empty:
                self._flush(db)
                continue
            if job is None:
                break
            if isinstance(job, _Read):
                self._flush(db)
                self._answer(db, job)
                continue
            key, work = job
            if not self._waiting:
                self._next_try = max(self._next_try, time.monotonic() + DELAY)
            if key is None:
                unkeyed += 1
                self._waiting[unkeyed] = work
            else:
                if key[1] != "session":  # a session's row must stay before the turns that refer to it
                    self._waiting.pop(key, None)
                self._waiting[key] = work
        self._flush(db)
        db.close()

    def _pause(self) -> float | None:
        return max(0.0, self._next_try - time.monotonic()) if self._waiting else None

    def _flush(self, db: sqlite3.Connection) -> None:
        if not self._waiting:
            return
        try:
            db.execute("BEGIN IMMEDIATE")
            for work in self._waiting.values():
                work(db)
            db.execute("COMMIT")
        except (
            sqlite3.IntegrityError,
            sqlite3.ProgrammingError,
            sqlite3.InterfaceError,
            TypeError,
            ValueError,
            OverflowError,
        ) as exc:
            _roll_back(db)  # one write is wrong in itself: it must not hold up the others for ever
            self._write_singly(db)
            self._report(f"Something of this session could not be saved ({exc}).")
        except sqlite3.Error as exc:
            _roll_back(db)
            self._next_try = time.monotonic() + PATIENCE
            if not self._failed:
                self._failed, self.saves = True, False
                self._report(f"Sessions are not being saved ({exc}); this one goes on, and saving is tried again.")
        else:
            self._waiting.clear()
            self._next_try = 0.0
            if self._failed:
                self._failed, self.saves = False, self._kept
                self._report("Sessions are being saved again.")

    def _write_singly(self, db: sqlite3.Connection) -> None:
        for key, work in list(self._waiting.items()):
            with contextlib.suppress(sqlite3.Error, TypeError, ValueError, OverflowError):
                work(db)
            del self._waiting[key]

    @staticmethod
    def _answer(db: sqlite3.Connection, job: _Read) -> None:
        try:
            if job.writes:
                db.execute("BEGIN IMMEDIATE")
            answer = job.work(db)
            if job.writes:
                db.execute("COMMIT")
        except StoreError as exc:
            _roll_back(db)
            job.answer.set_exception(exc)
        except Exception as exc:  # whatever a damaged file holds: a thread that ended would answer nothing any more
            _roll_back(db)
            job.answer.set_exception(StoreError(f"The sessions' database cannot be read: {exc}."))
        else:
            job.answer.set_result(answer)


def _roll_back(db: sqlite3.Connection) -> None:
    if db.in_transaction:
        db.execute("ROLLBACK")
