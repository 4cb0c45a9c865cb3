"""Sessions on a real disk: kept, found, forked, migrated, and alive after what kills a process or fills a disk."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from nanochat_tui.chat.backend import Stats
from nanochat_tui.chat.store import Store
from nanochat_tui.chat.store import schema as store_schema
from nanochat_tui.chat.store.records import SessionInfo, SessionSettings, StoredTurn, named, new_session, title_of
from nanochat_tui.chat.store.schema import MIGRATIONS, StoreError
from nanochat_tui.chat.store.writer import DELAY
from nanochat_tui.chat.tools.records import CallRecord
from nanochat_tui.request import SamplingParams

SETTINGS = SessionSettings("be brief", SamplingParams(temperature=0.25, seed=7), None)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    made = Store(tmp_path / "deep" / "sessions.db")
    yield made
    made.close()


def add(store: Store, *turns: tuple[str, str], model: str = "d20") -> SessionInfo:
    info = replace(new_session(model, is_chat=False, settings=SETTINGS), title=title_of(turns[0][0]))
    store.save_session(info)
    for position, (prompt, reply) in enumerate(turns):
        store.save_turn(info.id, position, StoredTurn(prompt, (reply,), reason="stop"))
    return info


def test_what_is_saved_comes_back_in_another_process_of_the_same_file(tmp_path: Path) -> None:
    store = Store(tmp_path / "s.db")
    info = add(store, ("fn main() {", "}"))
    turn = StoredTurn("a", ("one ", "two"), "hm", "length", Stats(1.0, 2.5, 3, 4, 5, 0.1))
    store.save_turn(info.id, 1, turn)
    store.save_session(replace(info, draft="half a thought"))
    assert store.close()
    again = Store(tmp_path / "s.db")
    loaded = again.load(info.id).result(120)
    assert loaded.turns == (StoredTurn("fn main() {", ("}",), reason="stop"), turn)
    assert loaded.info.settings == SETTINGS
    assert (loaded.info.title, loaded.info.draft, loaded.info.turns) == ("fn main() {", "half a thought", 2)
    assert (tmp_path / "s.db").stat().st_mode & 0o077 == 0, "other people must not read it"
    again.close()


def test_a_growing_reply_is_kept_at_its_newest(store: Store) -> None:
    info = add(store, ("p", ""))
    for length in range(200):
        store.save_turn(info.id, 0, StoredTurn("p", ("x" * length,)))
    assert store.load(info.id).result(120).turns[0].reply == "x" * 199
    store.keep_turns(info.id, 0)
    store.save_turn(info.id, 0, StoredTurn("q", ("y",)))
    assert [turn.prompt for turn in store.load(info.id).result(120).turns] == ["q"]


def test_listing_sorts_and_leaves_out_what_is_empty(store: Store) -> None:
    first = add(store, ("zebra", "1"), ("more", "2"))
    time.sleep(0.01)
    second = add(store, ("apple", "1"))
    store.save_session(new_session("m", is_chat=True, settings=SETTINGS))
    assert [s.id for s in store.sessions().result(120)] == [second.id, first.id]
    assert [s.title for s in store.sessions("title").result(120)] == ["apple", "zebra"]
    assert [s.turns for s in store.sessions("turns").result(120)] == [2, 1]
    assert [s.id for s in store.sessions("created").result(120)] == [second.id, first.id]


def test_rename_and_delete(store: Store) -> None:
    info = add(store, ("a", "b"))
    store.save_session(named(info, "  a better\n name "))
    (found,) = store.sessions().result(120)
    assert (found.title, found.titled) == ("a better name", True)
    store.delete(info.id)
    store.save_turn(info.id, 1, StoredTurn("late", ("words",)))  # a reply that still runs
    assert store.sessions().result(120) == []
    with pytest.raises(StoreError, match="does not exist any more"):
        store.load(info.id).result(120)
    assert [s.id for s in store.deleted().result(120)] == [info.id]
    store.restore(info.id)
    assert [t.prompt for t in store.load(info.id).result(120).turns] == ["a", "late"]
    store.delete(info.id)
    assert store.purge().result(120) == 1
    store.restore(info.id)
    assert store.sessions().result(120) == []
    with pytest.raises(Exception, match="needs a name"):
        named(info, " \n ")


def test_a_fork_is_independent_and_survives_its_parent(store: Store) -> None:
    info = add(store, ("a", "1"), ("b", "2"), ("c", "3"))
    fork = store.fork(info.id, 2).result(120)
    assert [turn.reply for turn in fork.turns] == ["1", "2"]
    assert fork.info.parent == info.id
    assert fork.info.title == "a (fork)"
    store.save_turn(fork.info.id, 1, StoredTurn("b", ("other",)))
    assert store.load(info.id).result(120).turns[1].reply == "2"
    store.delete(info.id)
    store.purge().result(120)
    assert store.load(fork.info.id).result(120).info.parent is None


def test_search_finds_parts_of_words_in_prompts_replies_and_titles(store: Store) -> None:
    info = add(store, ("use std::collections::HashMap;", "let m: HashMap<u32, String> = HashMap::new();"))
    other = add(store, ("fn fib(n: u64)", "  100% done_now"))
    hits = store.search("hashma").result(120)
    assert {hit.session for hit in hits} == {info.id}
    assert any("⟦" in hit.snippet for hit in hits)
    assert [hit.session for hit in store.search("hash new()").result(120)] == [info.id], "every word, in any place"
    assert {hit.position for hit in store.search("fib").result(120)} == {None, 0}, "the title and the turn"
    assert [hit.session for hit in store.search("u3").result(120)] == [info.id], "shorter than a trigram"
    assert store.search("% d").result(120)[0].session == other.id
    assert store.search("_n").result(120)[0].session == other.id
    assert store.search('"unclosed OR (').result(120) == []
    assert store.search("   ").result(120) == []
    store.keep_turns(info.id, 0)
    assert all(hit.position is None for hit in store.search("HashMap").result(120)), (
        "the index forgets what was deleted"
    )


def test_search_finds_what_tools_were_asked_and_answered(store: Store) -> None:
    call = CallRecord("1", "t__look", "t", "look", '{"word": "Straße"}', "done", "a zebra\nin the garden", 0.5)
    info = new_session("m", is_chat=True, settings=SessionSettings())
    store.save_session(info)
    store.save_turn(info.id, 0, StoredTurn("where?", ("there",), calls=(call,)))
    store.save_turn(info.id, 0, StoredTurn("where?", ("there it is",), calls=(call,)))
    for words in ("zebra", "t.look", "Straße", "garden where", "in"):
        assert [hit.position for hit in store.search(words).result(120)] == [0], words
    assert store.load(info.id).result(120).turns[0].calls == (call,)
    store.save_turn(info.id, 0, StoredTurn("where?", ("here",), versions=(StoredTurn("x", ("y",), calls=(call,)),)))
    assert [hit.earlier for hit in store.search("zebra").result(120)] == [True]
    fork = store.fork(info.id).result(120)
    assert fork.turns[0].versions[0].calls == (call,)


def test_history_of_prompts(store: Store) -> None:
    add(store, ("one", ""), ("two", ""))
    add(store, ("three", ""))
    assert store.prompts().result(120) == ["one", "two", "three"]
    assert store.prompts(2).result(120) == ["two", "three"]


@pytest.mark.parametrize("version", range(len(MIGRATIONS)))
def test_every_older_version_is_brought_up_to_date(tmp_path: Path, version: int) -> None:
    path = tmp_path / "old.db"
    old = sqlite3.connect(path, isolation_level=None)
    for script in MIGRATIONS[:version]:
        old.executescript(script)
    old.execute(f"PRAGMA user_version = {version}")
    if version:
        old.execute("INSERT INTO session(id, title, model, is_chat, created, updated) VALUES ('s', 't', 'm', 1, 1, 2)")
        old.execute("INSERT INTO turn(session, position, prompt, reply, cuts) VALUES ('s', 0, 'needle', 'r', '[1]')")
    old.close()
    store = Store(path)
    if version:
        assert store.load("s").result(120).turns == (StoredTurn("needle", ("r",)),)
        assert [hit.session for hit in store.search("needle").result(120)] == ["s"]
    add(store, ("new", "one"))
    assert store.saves
    store.close()


def test_a_newer_file_is_left_alone_and_the_session_goes_on_unsaved(tmp_path: Path) -> None:
    path = tmp_path / "new.db"
    newer = sqlite3.connect(path)
    newer.execute("PRAGMA user_version = 999")
    newer.close()
    said: list[str] = []
    store = Store(path, said.append)
    info = add(store, ("a", "b"))
    assert store.load(info.id).result(120).turns
    assert not store.saves
    assert "newer version" in said[0]
    assert "unsaved" in said[0]
    store.close()


def test_a_home_that_cannot_be_written_to_is_said_once_and_nothing_breaks(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    store = Store(tmp_path / "file" / "sessions.db")
    info = add(store, ("a", "b"))
    assert len(store.search("a b").result(120)) == 1
    assert store.load(info.id).result(120).turns[0].reply == "b"
    said: list[str] = []
    store.listen(said.append)
    assert len(said) == 1
    assert "goes on unsaved" in said[0]
    store.close()


def test_a_damaged_file_is_set_aside(tmp_path: Path) -> None:
    path = tmp_path / "s.db"
    path.write_bytes(b"this was never a database, and it is long enough to be taken for one" * 20)
    said: list[str] = []
    store = Store(path, said.append)
    add(store, ("a", "b"))
    assert len(store.sessions().result(120)) == 1
    assert "damaged" in said[0]
    assert list(tmp_path.glob("s.damaged-*.db"))
    store.close()


def test_a_full_disk_is_reported_once_and_made_up_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SQLite's own limit of pages gives the very error of a full disk."""
    monkeypatch.setattr("nanochat_tui.chat.store.writer.PATIENCE", 0.05)
    said: list[str] = []
    limits: list[sqlite3.Connection] = []
    original = store_schema.open_database

    def limited(path: Path | None) -> tuple[sqlite3.Connection, str | None]:
        db, note = original(path)
        db.execute("PRAGMA max_page_count = 40")
        limits.append(db)
        return db, note

    monkeypatch.setattr("nanochat_tui.chat.store.writer.open_database", limited)
    store = Store(tmp_path / "s.db", said.append)
    info = add(store, ("a", "b"))
    assert store.flush().result(120)
    store.save_turn(info.id, 1, StoredTurn("long", ("x" * 400_000,)))
    store.save_turn(info.id, 2, StoredTurn("more", ("after",)))
    assert not store.flush().result(120)
    assert not store.flush().result(120)
    assert len(said) == 1
    assert "full" in said[0]
    assert not store.saves
    assert len(store.load(info.id).result(120).turns) == 1, "what was saved before is still there"
    limits[0].execute("PRAGMA max_page_count = 100000")
    assert store.flush().result(120)
    assert said[1:] == ["Sessions are being saved again."]
    assert store.saves
    assert [len(turn.reply) for turn in store.load(info.id).result(120).turns] == [1, 400_000, 5]
    store.close()


WRITER = """
import sys, time
from pathlib import Path
from nanochat_tui.chat.store.records import *
from nanochat_tui.chat.store import Store
store = Store(Path(sys.argv[1]))
info = new_session("m", is_chat=False, settings=SessionSettings())
store.save_session(info)
for count in range(10_000):
    store.save_turn(info.id, 0, StoredTurn("p", ("x" * count,)))
    print(count, flush=True)
    time.sleep(0.01)
"""


def test_killed_in_mid_reply_what_was_flushed_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "s.db"
    with subprocess.Popen([sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout is not None
        for line in writer.stdout:
            if int(line) % 20 == 0 and (kept := _length(path)) > 100:
                os.kill(writer.pid, signal.SIGKILL)
                break
        assert int(line) < 9_000, "it is on the disk before the reply has ended"
    store = Store(path)
    (info,) = store.sessions().result(120)
    assert len(store.load(info.id).result(120).turns[0].reply) >= kept
    store.close()
    assert DELAY <= 0.5, "seconds between two flushes"


def _length(path: Path) -> int:
    """Return how many characters of a reply are on the disk, as another process sees it."""
    if not path.exists():
        return 0
    with closing(sqlite3.connect(path)) as db:
        try:
            return max((len(reply) for (reply,) in db.execute("SELECT reply FROM turn")), default=0)
        except sqlite3.OperationalError:  # the other process has not made its table yet
            return 0


def test_two_applications_share_the_file(tmp_path: Path) -> None:
    one, two = Store(tmp_path / "s.db"), Store(tmp_path / "s.db")
    a, b = add(one, ("from one", "x")), add(two, ("from two", "y"))
    assert one.flush().result(120)
    assert two.flush().result(120)
    assert {s.id for s in one.sessions().result(120)} == {a.id, b.id}
    one.close()
    two.close()


def test_a_session_that_lives_in_another_window_is_not_taken(tmp_path: Path) -> None:
    path = tmp_path / "s.db"
    first, second = Store(path), Store(path)
    info = add(first, ("p", "r"))
    first.hold(info.id)
    assert first.flush().result(120)
    assert first.take(info.id).result(120), "one's own"
    assert not second.take(info.id).result(120)
    assert not second.is_free(info.id).result(120)
    first.hold(None)
    assert first.flush().result(120)
    assert second.take(info.id).result(120)
    assert not first.take(info.id).result(120)
    second.close()
    assert first.take(info.id).result(120), "a window that was closed holds nothing"
    first.close()


def test_a_killed_window_holds_nothing(tmp_path: Path) -> None:
    path = tmp_path / "s.db"
    program = (
        "import os, signal, sys\nfrom pathlib import Path\nfrom nanochat_tui.chat.store import Store\n"
        "store = Store(Path(sys.argv[1]))\nstore.hold('x')\nstore.flush().result(120)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    subprocess.run([sys.executable, "-c", program, str(path)], check=False, timeout=120)
    store = Store(path)
    assert store.take("x").result(120)
    store.close()


def test_the_page_cache_is_bounded(tmp_path: Path) -> None:
    db, _ = store_schema.open_database(tmp_path / "s.db")
    assert db.execute("PRAGMA cache_size").fetchone() == (-store_schema.CACHE_KIB,)
    db.close()
