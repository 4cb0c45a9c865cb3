"""What is asked of the sessions' database: one function per question, each on an open connection."""

from __future__ import annotations

import json
import sqlite3
import time
import uuid
from collections.abc import Sequence
from dataclasses import asdict, replace
from itertools import accumulate, pairwise
from typing import Any

from nanochat_tui.chat.store.records import (
    Order,
    SearchHit,
    SessionInfo,
    StoredSession,
    StoredTurn,
    reason_from,
    settings_from_dict,
    settings_to_dict,
    stats_from_dict,
    turn_from_dict,
    with_versions,
)
from nanochat_tui.chat.store.schema import StoreError
from nanochat_tui.chat.tools.records import calls_from

_ORDERS: dict[Order, str] = {
    "updated": "updated DESC",
    "created": "created DESC",
    "title": "title COLLATE NOCASE",
    "turns": "turns DESC, updated DESC",
}
_INFO = """SELECT id, title, titled, model, is_chat, system, settings, draft, created, updated, parent,
  (SELECT count(*) FROM turn WHERE turn.session = session.id) AS turns FROM session"""
_HOLDS = "turns > 0 OR draft <> '' OR EXISTS (SELECT 1 FROM deleted_turn WHERE deleted_turn.session = session.id)"
_SAID = "prompt, reply, cuts, thinking, reason, stats, calls, called"
_PLACES = ", ".join("?" * len(_SAID.split(",")))
_OF_TURN = "WHERE session = ? AND position = ?"
_TRIGRAM = 3


def save_session(db: sqlite3.Connection, info: SessionInfo) -> None:
    """Insert a session or change everything about it but its turns and its time of creation."""
    parent = info.parent
    if parent is not None and not db.execute("SELECT 1 FROM session WHERE id = ?", (parent,)).fetchone():
        parent = None
    db.execute(
        """INSERT INTO session(id, title, titled, model, is_chat, system, settings, draft, created, updated, parent)
        VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
        ON CONFLICT(id) DO UPDATE SET title = excluded.title, titled = excluded.titled, model = excluded.model,
          is_chat = excluded.is_chat, system = excluded.system, settings = excluded.settings, draft = excluded.draft,
          updated = excluded.updated""",
        (
            info.id,
            _text(info.title),
            info.titled,
            _text(info.model),
            info.is_chat,
            _text(info.settings.system),
            json.dumps(settings_to_dict(info.settings)),
            _text(info.draft),
            info.created,
            info.updated,
            parent,
        ),
    )


def save_turn(db: sqlite3.Connection, session: str, position: int, turn: StoredTurn) -> None:
    """Insert or replace one turn; nothing happens if the session was deleted meanwhile."""
    db.execute(
        f"""INSERT INTO turn(session, position, place, {_SAID})
        SELECT ?, ?, ?, {_PLACES} WHERE EXISTS (SELECT 1 FROM session WHERE id = ?)
        ON CONFLICT(session, position) DO UPDATE SET place = excluded.place, prompt = excluded.prompt,
          reply = excluded.reply, cuts = excluded.cuts, thinking = excluded.thinking, reason = excluded.reason,
          stats = excluded.stats, calls = excluded.calls, called = excluded.called""",  # noqa: S608 - constants
        (session, position, turn.place, *_said(turn), session),
    )
    _save_versions(db, session, position, turn.versions)
    db.execute("UPDATE session SET updated = ? WHERE id = ?", (time.time(), session))


def _said(turn: StoredTurn) -> tuple[str | None, ...]:
    """Return the columns of `_SAID`; `called` is what a search looks for in `calls`."""
    return (
        _text(turn.prompt),
        _text(turn.reply),
        json.dumps([len(part) for part in turn.parts]),
        _text(turn.thinking),
        turn.reason,
        json.dumps(asdict(turn.stats)) if turn.stats else None,
        _text(json.dumps([asdict(call) for call in turn.calls], ensure_ascii=False)) if turn.calls else "",
        _text("\n".join(call.said for call in turn.calls)),
    )


def _save_versions(db: sqlite3.Connection, session: str, position: int, versions: Sequence[StoredTurn]) -> None:
    """Make the versions of a turn these; a turn is saved several times a second, and they seldom change."""
    place = (session, position)
    wanted = [_said(version) for version in versions]
    if wanted != db.execute(f"SELECT {_SAID} FROM version {_OF_TURN} ORDER BY ordinal", place).fetchall():  # noqa: S608
        db.execute(f"DELETE FROM version {_OF_TURN}", place)  # noqa: S608 - constants
        db.executemany(
            f"INSERT INTO version(session, position, ordinal, {_SAID}) SELECT ?, ?, ?, {_PLACES} "  # noqa: S608
            "WHERE EXISTS (SELECT 1 FROM session WHERE id = ?)",
            [(*place, ordinal, *said, session) for ordinal, said in enumerate(wanted)],
        )


def keep_turns(db: sqlite3.Connection, session: str, count: int) -> None:
    """Drop all turns from position `count` on."""
    db.execute("DELETE FROM turn WHERE session = ? AND position >= ?", (session, count))


def delete_session(db: sqlite3.Connection, session: str) -> None:
    """Hide a session from every list and search until it is restored or `purge` drops it; forks of it stay."""
    db.execute("UPDATE session SET deleted = ? WHERE id = ?", (time.time(), session))


def restore_session(db: sqlite3.Connection, session: str) -> None:
    """Bring a deleted session back."""
    db.execute("UPDATE session SET deleted = NULL WHERE id = ?", (session,))


def save_deleted_turns(db: sqlite3.Connection, session: str, deleted: Sequence[tuple[int, StoredTurn]]) -> None:
    """Make the deleted turns of a session these, each with the number it had."""
    db.execute("DELETE FROM deleted_turn WHERE session = ?", (session,))
    db.executemany(
        """INSERT INTO deleted_turn(session, ordinal, position, turn)
        SELECT ?, ?, ?, ? WHERE EXISTS (SELECT 1 FROM session WHERE id = ?)""",
        [
            (session, ordinal, position, _text(json.dumps(asdict(turn))), session)
            for ordinal, (position, turn) in enumerate(deleted)
        ],
    )


def purge(db: sqlite3.Connection, seconds: float) -> int:
    """Drop permanently the sessions that were deleted longer ago than this, and all deleted turns if it is 0.

    Returns the number of sessions.
    """
    if seconds == 0:
        db.execute("DELETE FROM deleted_turn")
    return db.execute("DELETE FROM session WHERE deleted <= ?", (time.time() - seconds,)).rowcount


def list_sessions(db: sqlite3.Connection, order: Order = "updated") -> list[SessionInfo]:
    """Return all sessions that hold anything."""
    rows = db.execute(f"{_INFO} WHERE ({_HOLDS}) AND deleted IS NULL ORDER BY {_ORDERS[order]}")
    return [_info(row) for row in rows]


def deleted_sessions(db: sqlite3.Connection) -> list[SessionInfo]:
    """Return what can be restored, the last deleted first."""
    return [_info(row) for row in db.execute(f"{_INFO} WHERE deleted IS NOT NULL ORDER BY deleted DESC")]


def load_session(db: sqlite3.Connection, session: str) -> StoredSession:
    """Return a session with all its turns. Raises `StoreError` if there is none of that id, or it was deleted."""
    row = db.execute(f"{_INFO} WHERE id = ? AND deleted IS NULL", (session,)).fetchone()
    if row is None:
        raise StoreError("This session does not exist any more; choose another one.")
    versions: dict[int, list[StoredTurn]] = {}
    for position, *said in db.execute(
        f"SELECT position, {_SAID} FROM version WHERE session = ? ORDER BY position, ordinal",  # noqa: S608
        (session,),
    ):
        versions.setdefault(position, []).append(_turn(said))
    turns = []
    for position, place, *said in db.execute(
        f"SELECT position, place, {_SAID} FROM turn WHERE session = ? ORDER BY position",  # noqa: S608
        (session,),
    ):
        turns.append(with_versions(_turn(said), tuple(versions.get(position, ())), place))
    deleted = db.execute("SELECT position, turn FROM deleted_turn WHERE session = ? ORDER BY ordinal", (session,))
    gone = tuple((int(_number(position)), turn_from_dict(_dictionary(turn))) for position, turn in deleted)
    return StoredSession(_info(row), tuple(turns), gone)


def fork_session(db: sqlite3.Connection, session: str, keep: int | None = None) -> StoredSession:
    """Copy a session, or its first `keep` turns, into a new one and return that."""
    old = load_session(db, session).info
    made, now = uuid.uuid4().hex, time.time()
    db.execute(
        """INSERT INTO session(id, title, titled, model, is_chat, system, settings, draft, created, updated, parent)
        SELECT ?, title || ' (fork)', titled, model, is_chat, system, settings, '', ?, ?, id FROM session
        WHERE id = ?""",
        (made, now, now, old.id),
    )
    db.execute(
        f"""INSERT INTO turn(session, position, place, {_SAID})
        SELECT ?, position, place, {_SAID} FROM turn WHERE session = ? AND position < ?""",  # noqa: S608
        (made, old.id, old.turns if keep is None else keep),
    )
    db.execute(
        f"""INSERT INTO version(session, position, ordinal, {_SAID})
        SELECT ?, position, ordinal, {_SAID} FROM version WHERE session = ? AND position < ?""",  # noqa: S608
        (made, old.id, old.turns if keep is None else keep),
    )
    return load_session(db, made)


def search_turns(db: sqlite3.Connection, text: str, limit: int = 50) -> list[SearchHit]:
    """Return turns and titles that hold every word of `text` (parts of words count), the newest session first."""
    words = text.split()
    if not words:
        return []
    found = [
        *_in_titles(db, words, limit),
        *_in_turns(db, words, limit, "turn"),
        *(replace(hit, earlier=True) for hit in _in_turns(db, words, limit, "version")),
    ]
    return sorted(found, key=lambda hit: hit.updated, reverse=True)[:limit]


def recent_prompts(db: sqlite3.Connection, limit: int = 200) -> list[str]:
    """Return the last prompts of all sessions, oldest first."""
    rows = db.execute(
        """SELECT prompt FROM turn JOIN session ON session.id = turn.session
        WHERE prompt <> '' AND deleted IS NULL ORDER BY number DESC LIMIT ?""",
        (limit,),
    ).fetchall()
    return [prompt for (prompt,) in reversed(rows)]


def _in_titles(db: sqlite3.Connection, words: Sequence[str], limit: int) -> list[SearchHit]:
    condition, values = _like(("title",), words)
    rows = db.execute(
        f"SELECT id, title, updated FROM session WHERE deleted IS NULL AND {condition} ORDER BY updated DESC LIMIT ?",  # noqa: S608
        (*values, limit),
    )
    return [SearchHit(session, title, None, title, updated) for session, title, updated in rows]


def _in_turns(db: sqlite3.Connection, words: Sequence[str], limit: int, table: str) -> list[SearchHit]:
    """Search the turns, or the versions of them that are not shown: `table` is "turn" or "version"."""
    if min(map(len, words)) >= _TRIGRAM:
        quoted = " AND ".join('"' + word.replace('"', '""') + '"' for word in words)
        rows = db.execute(
            f"""SELECT session.id, title, position, snippet({table}_text, -1, '⟦', '⟧', '…', 40), updated
            FROM {table}_text JOIN {table} ON {table}.number = {table}_text.rowid
            JOIN session ON session.id = {table}.session
            WHERE {table}_text MATCH ? AND deleted IS NULL
            ORDER BY updated DESC, position LIMIT ?""",  # noqa: S608 - the names of two tables
            (quoted, limit),
        )
        return [SearchHit(*row) for row in rows]
    # an index of trigrams knows no shorter words
    condition, values = _like(("prompt", "reply", "called"), words)
    rows = db.execute(
        f"""SELECT session.id, title, position, prompt || ' ' || reply || ' ' || called, updated
        FROM {table} JOIN session ON session.id = {table}.session WHERE deleted IS NULL AND {condition}
        ORDER BY updated DESC, position LIMIT ?""",  # noqa: S608 - the condition holds column names only
        (*values, limit),
    )
    return [SearchHit(a, title, position, _mark(both, words[0]), when) for a, title, position, both, when in rows]


def _like(columns: Sequence[str], words: Sequence[str]) -> tuple[str, list[str]]:
    either = "(" + " OR ".join(f"{column} LIKE ? ESCAPE '\\'" for column in columns) + ")"
    patterns = [f"%{_escaped(word)}%" for word in words]
    return " AND ".join([either] * len(words)), [pattern for pattern in patterns for _ in columns]


def _escaped(word: str) -> str:
    return word.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_")


def _mark(text: str, word: str, around: int = 30) -> str:
    at = text.lower().find(word.lower())
    if at < 0:
        return text[: 2 * around]
    before, found, after = text[max(0, at - around) : at], text[at : at + len(word)], text[at + len(word) :]
    return f"{'…' if at > around else ''}{before}⟦{found}⟧{after[:around]}{'…' if len(after) > around else ''}"


def _text(text: str) -> str:
    """Half a surrogate pair, which a model may write and UTF-8 cannot, becomes a question mark."""
    return text.encode("utf-8", "replace").decode() if not text.isascii() else text


def _info(row: Sequence[object]) -> SessionInfo:
    identity, title, titled, model, is_chat, system, settings, draft, created, updated, parent, turns = row
    return SessionInfo(
        str(identity),
        str(title),
        bool(titled),
        str(model),
        bool(is_chat),
        settings_from_dict(str(system), _dictionary(settings)),
        str(draft),
        _number(created),
        _number(updated),
        None if parent is None else str(parent),
        int(str(turns)),
    )


def _decoded(text: object) -> object:
    """Return the JSON of a column; None for what is none, so that one damaged row hides no other session."""
    try:
        return json.loads(str(text))
    except (ValueError, RecursionError):
        return None


def _dictionary(text: object) -> dict[str, Any]:
    found = _decoded(text)
    return found if isinstance(found, dict) else {}


def _number(value: object) -> float:
    try:
        return float(str(value))
    except ValueError:
        return 0.0


def _turn(row: Sequence[object]) -> StoredTurn:
    prompt, reply, cuts, thinking, reason, stats, calls, _ = row
    return StoredTurn(
        str(prompt),
        _parts(str(reply), _decoded(cuts)),
        str(thinking),
        reason_from(reason),
        stats_from_dict(_dictionary(stats) if stats else None),
        calls=calls_from(_decoded(calls)) if calls else (),
    )


def _parts(reply: str, sizes: object) -> tuple[str, ...]:
    """Cut a reply into parts of these sizes; whatever they are, nothing of it is lost."""
    if not isinstance(sizes, list) or not all(isinstance(size, int) and size >= 0 for size in sizes):
        return (reply,)
    borders = [0, *accumulate(sizes)]
    borders[-1] = len(reply)
    return tuple(reply[start:end] for start, end in pairwise(borders)) or (reply,)
