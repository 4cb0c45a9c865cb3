"""The database file of the sessions: opening, setting aside what cannot be read, and migrations.

`PRAGMA user_version` counts the migrations done. Add one at the end; never change one that was released.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path

from nanochat_tui.errors import UserError
from nanochat_tui.paths import make_private
from nanochat_tui.text import display_safe

CACHE_KIB = 512
"""Size of SQLite's page cache. Its 2 MiB would fill over 2,500 replies; a save touches a few dozen pages of 4 KiB, and
the system keeps the file in memory too."""


class StoreError(UserError):
    """Sessions cannot be kept or found; the text says why."""

    exit_code = 1


_SESSIONS = """
CREATE TABLE session(
  id TEXT PRIMARY KEY, title TEXT NOT NULL, titled INTEGER NOT NULL DEFAULT 0, model TEXT NOT NULL,
  is_chat INTEGER NOT NULL, system TEXT NOT NULL DEFAULT '', settings TEXT NOT NULL DEFAULT '{}',
  created REAL NOT NULL, updated REAL NOT NULL, parent TEXT REFERENCES session(id) ON DELETE SET NULL);
CREATE TABLE turn(
  number INTEGER PRIMARY KEY, session TEXT NOT NULL REFERENCES session(id) ON DELETE CASCADE,
  position INTEGER NOT NULL, prompt TEXT NOT NULL, reply TEXT NOT NULL, cuts TEXT NOT NULL,
  reason TEXT, stats TEXT, UNIQUE(session, position));
CREATE INDEX session_updated ON session(updated);
"""

_SEARCH = """
CREATE VIRTUAL TABLE turn_text USING fts5(prompt, reply, content='turn', content_rowid='number', tokenize='trigram');
CREATE TRIGGER turn_added AFTER INSERT ON turn BEGIN
  INSERT INTO turn_text(rowid, prompt, reply) VALUES (new.number, new.prompt, new.reply);
END;
CREATE TRIGGER turn_removed AFTER DELETE ON turn BEGIN
  INSERT INTO turn_text(turn_text, rowid, prompt, reply) VALUES ('delete', old.number, old.prompt, old.reply);
END;
CREATE TRIGGER turn_changed AFTER UPDATE OF prompt, reply ON turn BEGIN
  INSERT INTO turn_text(turn_text, rowid, prompt, reply) VALUES ('delete', old.number, old.prompt, old.reply);
  INSERT INTO turn_text(rowid, prompt, reply) VALUES (new.number, new.prompt, new.reply);
END;
INSERT INTO turn_text(turn_text) VALUES ('rebuild');
"""

_THINKING_AND_DRAFT = """
ALTER TABLE turn ADD COLUMN thinking TEXT NOT NULL DEFAULT '';
ALTER TABLE session ADD COLUMN draft TEXT NOT NULL DEFAULT '';
"""

_OWNERS = """
CREATE TABLE open_session(session TEXT PRIMARY KEY, pid INTEGER NOT NULL, began REAL NOT NULL, token TEXT NOT NULL);
"""

_VERSIONS = """
ALTER TABLE turn ADD COLUMN place INTEGER NOT NULL DEFAULT 0;
CREATE TABLE version(
  number INTEGER PRIMARY KEY, session TEXT NOT NULL, position INTEGER NOT NULL, ordinal INTEGER NOT NULL,
  prompt TEXT NOT NULL, reply TEXT NOT NULL, cuts TEXT NOT NULL, thinking TEXT NOT NULL, reason TEXT, stats TEXT,
  UNIQUE(session, position, ordinal),
  FOREIGN KEY(session, position) REFERENCES turn(session, position) ON DELETE CASCADE);
CREATE VIRTUAL TABLE version_text
  USING fts5(prompt, reply, content='version', content_rowid='number', tokenize='trigram');
CREATE TRIGGER version_added AFTER INSERT ON version BEGIN
  INSERT INTO version_text(rowid, prompt, reply) VALUES (new.number, new.prompt, new.reply);
END;
CREATE TRIGGER version_removed AFTER DELETE ON version BEGIN
  INSERT INTO version_text(version_text, rowid, prompt, reply) VALUES ('delete', old.number, old.prompt, old.reply);
END;
"""
"""What stood in the place of a turn before. Rows are added and removed, never changed."""

_DELETED = """
ALTER TABLE session ADD COLUMN deleted REAL;
CREATE TABLE deleted_turn(
  session TEXT NOT NULL REFERENCES session(id) ON DELETE CASCADE, ordinal INTEGER NOT NULL, position INTEGER NOT NULL,
  turn TEXT NOT NULL, PRIMARY KEY(session, ordinal));
"""
"""What was deleted can be brought back."""

_CALLS = """
ALTER TABLE turn ADD COLUMN calls TEXT NOT NULL DEFAULT '';
ALTER TABLE turn ADD COLUMN called TEXT NOT NULL DEFAULT '';
ALTER TABLE version ADD COLUMN calls TEXT NOT NULL DEFAULT '';
ALTER TABLE version ADD COLUMN called TEXT NOT NULL DEFAULT '';
DROP TRIGGER turn_added;
DROP TRIGGER turn_removed;
DROP TRIGGER turn_changed;
DROP TRIGGER version_added;
DROP TRIGGER version_removed;
DROP TABLE turn_text;
DROP TABLE version_text;
CREATE VIRTUAL TABLE turn_text
  USING fts5(prompt, reply, called, content='turn', content_rowid='number', tokenize='trigram');
CREATE TRIGGER turn_added AFTER INSERT ON turn BEGIN
  INSERT INTO turn_text(rowid, prompt, reply, called) VALUES (new.number, new.prompt, new.reply, new.called);
END;
CREATE TRIGGER turn_removed AFTER DELETE ON turn BEGIN
  INSERT INTO turn_text(turn_text, rowid, prompt, reply, called)
    VALUES ('delete', old.number, old.prompt, old.reply, old.called);
END;
CREATE TRIGGER turn_changed AFTER UPDATE OF prompt, reply, called ON turn BEGIN
  INSERT INTO turn_text(turn_text, rowid, prompt, reply, called)
    VALUES ('delete', old.number, old.prompt, old.reply, old.called);
  INSERT INTO turn_text(rowid, prompt, reply, called) VALUES (new.number, new.prompt, new.reply, new.called);
END;
CREATE VIRTUAL TABLE version_text
  USING fts5(prompt, reply, called, content='version', content_rowid='number', tokenize='trigram');
CREATE TRIGGER version_added AFTER INSERT ON version BEGIN
  INSERT INTO version_text(rowid, prompt, reply, called) VALUES (new.number, new.prompt, new.reply, new.called);
END;
CREATE TRIGGER version_removed AFTER DELETE ON version BEGIN
  INSERT INTO version_text(version_text, rowid, prompt, reply, called)
    VALUES ('delete', old.number, old.prompt, old.reply, old.called);
END;
INSERT INTO turn_text(turn_text) VALUES ('rebuild');
INSERT INTO version_text(version_text) VALUES ('rebuild');
"""
"""Calls of tools: as JSON in `calls`, and in `called` what a search looks for."""

MIGRATIONS = (_SESSIONS, _SEARCH, _THINKING_AND_DRAFT, _OWNERS, _VERSIONS, _DELETED, _CALLS)


def open_database(path: Path | None) -> tuple[sqlite3.Connection, str | None]:
    """Open the database at `path` (None: in memory) at the newest version; returns it and what there is to say.

    A file that is no database is set aside under another name, with a note. The connection is in autocommit mode.
    Raises `StoreError` if the file cannot be used at all.
    """
    if path is None:
        return _migrated(sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False)), None
    try:
        make_private(path.parent)
        return _connect(path), None
    except sqlite3.DatabaseError as exc:
        if isinstance(exc, sqlite3.OperationalError):
            raise StoreError(f"Sessions cannot be kept in {display_safe(str(path))}: {exc}.") from exc
        aside = path.with_name(f"{path.stem}.damaged-{int(time.time())}{path.suffix}")
        try:
            for suffix in ("-wal", "-shm"):
                path.with_name(path.name + suffix).unlink(missing_ok=True)
            path.rename(aside)
            return _connect(path), f"The sessions' file was damaged and is kept as {display_safe(str(aside))}."
        except (OSError, sqlite3.Error) as again:
            raise StoreError(f"The sessions' file {display_safe(str(path))} is damaged: {again}.") from again
    except OSError as exc:
        raise StoreError(
            f"Sessions cannot be kept in {display_safe(str(path.parent))}: {exc.strerror or exc}."
        ) from exc


def _connect(path: Path) -> sqlite3.Connection:
    new = not path.exists()
    # the store's one thread uses it; only closing happens elsewhere
    connection = sqlite3.connect(path, timeout=5.0, isolation_level=None, check_same_thread=False)
    try:
        _write_ahead(connection)
        connection.execute("PRAGMA synchronous=NORMAL")  # a killed process loses nothing; a power cut the last moment
        connection.execute(f"PRAGMA cache_size=-{CACHE_KIB}")
        if new:
            path.chmod(0o600)
        return _migrated(connection)
    except BaseException:
        connection.close()
        raise


def _write_ahead(connection: sqlite3.Connection) -> None:
    """Turn the write-ahead log on; where the file system cannot, SQLite keeps another journal."""
    for _ in range(50):
        try:
            connection.execute("PRAGMA journal_mode=WAL")
        except sqlite3.OperationalError as exc:
            if "locked" not in str(exc):
                raise
            time.sleep(0.1)  # another process is turning it on, which SQLite does not wait for by itself
        else:
            return


def _migrated(connection: sqlite3.Connection) -> sqlite3.Connection:
    connection.execute("BEGIN IMMEDIATE")  # so that two applications started at once do not both migrate
    (done,) = connection.execute("PRAGMA user_version").fetchone()
    if done > len(MIGRATIONS):
        connection.execute("ROLLBACK")
        raise StoreError("The sessions were written by a newer version of this program; update it to see them.")
    for script in MIGRATIONS[done:]:
        for statement in statements(script):
            connection.execute(statement)
    connection.execute(f"PRAGMA user_version={len(MIGRATIONS)}")
    connection.execute("COMMIT")
    connection.execute("PRAGMA foreign_keys=ON")
    return connection


def statements(script: str) -> Iterator[str]:
    """Split SQL into statements, each of which may hold semicolons of its own, as triggers do."""
    begun = ""
    for piece in script.split(";"):
        begun += piece + ";"
        if sqlite3.complete_statement(begun):
            yield begun
            begun = ""
