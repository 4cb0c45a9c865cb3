"""What is asked of the sessions' database: one function per question, each on an open connection."""

from __future__ import annotations

import json
import sqlite3
import time
import uuid
from collections.abc import Sequence
from dataclasses import asdict
from itertools import accumulate, pairwise

from nanochat_tui.chat.records import (
    Order,
    SearchHit,
    SessionInfo,
    StoredSession,
    StoredTurn,
    reason_from,
    settings_from_dict,
    settings_to_dict,
    stats_from_dict,
)
from nanochat_tui.chat.store_schema import StoreError

_ORDERS: dict[Order, str] = {
    "updated": "updated DESC",
    "created": "created DESC",
    "title": "title COLLATE NOCASE",
    "turns": "turns DESC, updated DESC",
}
_INFO = """SELECT id, title, titled, model, is_chat, system, settings, draft, created, updated, parent,
  (SELECT count(*) FROM turn WHERE turn.session = session.id) AS turns FROM session"""
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
        """INSERT INTO turn(session, position, prompt, reply, cuts, thinking, reason, stats)
        SELECT ?, ?, ?, ?, ?, ?, ?, ? WHERE EXISTS (SELECT 1 FROM session WHERE id = ?)
        ON CONFLICT(session, position) DO UPDATE SET prompt = excluded.prompt, reply = excluded.reply,
          cuts = excluded.cuts, thinking = excluded.thinking, reason = excluded.reason, stats = excluded.stats""",
        (
            session,
            position,
            _text(turn.prompt),
            _text(turn.reply),
            json.dumps([len(part) for part in turn.parts]),
            _text(turn.thinking),
            turn.reason,
            json.dumps(asdict(turn.stats)) if turn.stats else None,
            session,
        ),
    )
    db.execute("UPDATE session SET updated = ? WHERE id = ?", (time.time(), session))


def keep_turns(db: sqlite3.Connection, session: str, count: int) -> None:
    """Drop all turns from position `count` on."""
    db.execute("DELETE FROM turn WHERE session = ? AND position >= ?", (session, count))


def delete_session(db: sqlite3.Connection, session: str) -> None:
    """Drop a session and its turns; forks of it stay."""
    db.execute("DELETE FROM session WHERE id = ?", (session,))


def list_sessions(db: sqlite3.Connection, order: Order = "updated") -> list[SessionInfo]:
    """Return all sessions that hold anything."""
    rows = db.execute(f"{_INFO} WHERE turns > 0 OR draft <> '' ORDER BY {_ORDERS[order]}")
    return [_info(row) for row in rows]


def load_session(db: sqlite3.Connection, session: str) -> StoredSession:
    """Return a session with all its turns. Raises `StoreError` if there is none of that id."""
    row = db.execute(f"{_INFO} WHERE id = ?", (session,)).fetchone()
    if row is None:
        raise StoreError("This session does not exist any more; choose another one.")
    turns = db.execute(
        "SELECT prompt, reply, cuts, thinking, reason, stats FROM turn WHERE session = ? ORDER BY position", (session,)
    )
    return StoredSession(_info(row), tuple(map(_turn, turns)))


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
        """INSERT INTO turn(session, position, prompt, reply, cuts, thinking, reason, stats)
        SELECT ?, position, prompt, reply, cuts, thinking, reason, stats FROM turn
        WHERE session = ? AND position < ?""",
        (made, old.id, old.turns if keep is None else keep),
    )
    return load_session(db, made)


def search_turns(db: sqlite3.Connection, text: str, limit: int = 50) -> list[SearchHit]:
    """Return turns and titles that hold every word of `text` (parts of words count), the newest session first."""
    words = text.split()
    if not words:
        return []
    return sorted(
        [*_in_titles(db, words, limit), *_in_turns(db, words, limit)], key=lambda hit: hit.updated, reverse=True
    )[:limit]


def recent_prompts(db: sqlite3.Connection, limit: int = 200) -> list[str]:
    """Return the last prompts of all sessions, oldest first."""
    rows = db.execute("SELECT prompt FROM turn WHERE prompt <> '' ORDER BY number DESC LIMIT ?", (limit,)).fetchall()
    return [prompt for (prompt,) in reversed(rows)]


def _in_titles(db: sqlite3.Connection, words: Sequence[str], limit: int) -> list[SearchHit]:
    condition, values = _like(("title",), words)
    rows = db.execute(
        f"SELECT id, title, updated FROM session WHERE {condition} ORDER BY updated DESC LIMIT ?",  # noqa: S608
        (*values, limit),
    )
    return [SearchHit(session, title, None, title, updated) for session, title, updated in rows]


def _in_turns(db: sqlite3.Connection, words: Sequence[str], limit: int) -> list[SearchHit]:
    if min(map(len, words)) >= _TRIGRAM:
        quoted = " AND ".join('"' + word.replace('"', '""') + '"' for word in words)
        rows = db.execute(
            """SELECT session.id, title, position, snippet(turn_text, -1, '⟦', '⟧', '…', 40), updated
            FROM turn_text JOIN turn ON turn.number = turn_text.rowid JOIN session ON session.id = turn.session
            WHERE turn_text MATCH ? ORDER BY updated DESC, position LIMIT ?""",
            (quoted, limit),
        )
        return [SearchHit(*row) for row in rows]
    # an index of trigrams knows no shorter words
    condition, values = _like(("prompt", "reply"), words)
    rows = db.execute(
        f"""SELECT session.id, title, position, prompt || ' ' || reply, updated
        FROM turn JOIN session ON session.id = turn.session WHERE {condition}
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
        settings_from_dict(str(system), json.loads(str(settings))),
        str(draft),
        float(str(created)),
        float(str(updated)),
        None if parent is None else str(parent),
        int(str(turns)),
    )


def _turn(row: Sequence[str]) -> StoredTurn:
    prompt, reply, cuts, thinking, reason, stats = row
    borders = [0, *accumulate(json.loads(cuts))]
    borders[-1] = len(reply)
    parts = tuple(reply[start:end] for start, end in pairwise(borders)) or (reply,)
    return StoredTurn(
        prompt, parts, thinking, reason_from(reason), stats_from_dict(json.loads(stats)) if stats else None
    )
