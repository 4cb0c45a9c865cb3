"""Which window a session is open in. Two that write one session would replace each other's turns, place by place.

An owner is a process, known by its number and the time it began (numbers are given out again), and a store in it. One
that is gone owns nothing, so that a killed window's session is free at once.
"""

from __future__ import annotations

import os
import sqlite3
import time
import uuid
from dataclasses import dataclass, field
from functools import cache


@cache
def _began(pid: int) -> float:
    import psutil  # when first asked for, in the store's thread: it would only delay the first paint

    try:
        return float(psutil.Process(pid).create_time())
    except psutil.Error:
        return time.time()


@dataclass(frozen=True, slots=True)
class Owner:
    """One store of one process; `token` tells two stores of a process apart."""

    pid: int = field(default_factory=os.getpid)
    token: str = field(default_factory=lambda: uuid.uuid4().hex)


def hold(db: sqlite3.Connection, owner: Owner, session: str | None) -> None:
    """Let `owner` own `session` and nothing else; None: nothing at all."""
    db.execute("DELETE FROM open_session WHERE token = ?", (owner.token,))
    if session is not None:
        _add(db, owner, session)


def _add(db: sqlite3.Connection, owner: Owner, session: str) -> None:
    db.execute(
        "INSERT OR REPLACE INTO open_session(session, pid, began, token) VALUES (?, ?, ?, ?)",
        (session, owner.pid, _began(owner.pid), owner.token),
    )


def is_free(db: sqlite3.Connection, owner: Owner, session: str) -> bool:
    """Whether no living window but `owner` has `session` open; what the dead left is swept."""
    from nanochat_tui.processes import process_runs  # with psutil, as above

    row = db.execute("SELECT pid, began, token FROM open_session WHERE session = ?", (session,)).fetchone()
    if row is None or row[2] == owner.token:
        return True
    if process_runs(row[0], row[1]):
        return False
    db.execute("DELETE FROM open_session WHERE token = ?", (row[2],))
    return True


def take(db: sqlite3.Connection, owner: Owner, session: str) -> bool:
    """Own `session` too if it is free; returns whether it was."""
    free = is_free(db, owner, session)
    if free:
        _add(db, owner, session)
    return free
