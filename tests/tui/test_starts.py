"""A start survives whatever a session holds and whatever state the model is in; so does every key without a model."""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from scripted import ScriptedBackend
from test_app import shown, state, until

from nanochat_tui.chat.restoring import RestoreNote
from nanochat_tui.chat.store import Store
from nanochat_tui.chat.store.records import SessionSettings, StoredTurn, new_session
from nanochat_tui.tui.app import NanochatApp
from nanochat_tui.tui.chat import commands
from nanochat_tui.tui.chat.conversation import Turn

SESSIONS: dict[str, tuple[str, bool, tuple[StoredTurn, ...]]] = {
    "draft of a completion": ("fn main", False, ()),
    "draft of a conversation": ("half a thought", True, ()),
    "conversation": ("", True, (StoredTurn("question", ("answer",), "thought"),)),
    "completion": ("more", False, (StoredTurn("fn a", ("() {}", "\n}")),)),
    "no reply": ("", True, (StoredTurn("question"),)),
    "large": ("line\n" * 5000, True, (StoredTurn("x\n" * 3000, ("y" * 50_000,)),)),
    "controls": ("\x1b]0;title\x07\x1b[31m\x00\r", True, (StoredTurn("\x1b[2J", ("\x9b31m\u202e",)),)),
}


def kept(path: Path, draft: str, is_chat: bool, turns: tuple[StoredTurn, ...]) -> str:
    store = Store(path)
    info = new_session("scripted-rust", is_chat=is_chat, settings=SessionSettings("be brief" * is_chat))
    store.save_session(replace(info, draft=draft))
    for position, turn in enumerate(turns):
        store.save_turn(info.id, position, turn)
    assert store.close()
    return info.id


def backend_in(condition: str) -> ScriptedBackend:
    backend = ScriptedBackend(
        "reply", is_chat=condition != "base", fail="no such file" if condition == "failed" else None
    )
    if condition == "loading":
        backend.load_gate.clear()
    return backend


@pytest.mark.parametrize("session", SESSIONS)
@pytest.mark.parametrize("condition", ["loading", "failed", "base", "chat"])
async def test_a_start_survives_every_session(tmp_path: Path, session: str, condition: str) -> None:
    draft, is_chat, turns = SESSIONS[session]
    identity = kept(tmp_path / "s.db", draft, is_chat, turns)
    backend = backend_in(condition)
    app = NanochatApp(backend, store=Store(tmp_path / "s.db"))
    wanted = {"base": "ready", "chat": "ready"}.get(condition, condition)
    async with app.run_test(size=(80, 24)) as pilot:
        other = is_chat and condition == "base" and bool(turns)  # such a model begins a session of its own
        await until(pilot, lambda: state(app) == wanted and (app.chat.session.info is None) == other)
        assert app.chat.prompt.full_text == draft
        assert not (tmp_path / "s.db.restoring").exists()
        backend.load_gate.set()
        await until(pilot, lambda: state(app) in ("ready", "failed"))
        if is_chat == (condition in ("loading", "chat")):
            assert app.chat.session.info is not None
            assert app.chat.session.info.id == identity
    again = Store(tmp_path / "s.db").load(identity).result(120)
    assert again.info.draft == draft
    assert again.turns == turns


@pytest.mark.parametrize("session", ["draft of a completion", "conversation", "completion"])
@pytest.mark.parametrize("condition", ["loading", "failed"])
async def test_no_key_and_no_command_needs_a_model(tmp_path: Path, session: str, condition: str) -> None:
    kept(tmp_path / "s.db", *SESSIONS[session])
    (tmp_path / "text").write_text("fn main")
    app = NanochatApp(backend_in(condition), store=Store(tmp_path / "s.db"))
    async with app.run_test(size=(100, 30)) as pilot:
        await until(pilot, lambda: app.chat.session.info is not None and state(app) == condition)
        keys = ["ctrl+r", "ctrl+y", "ctrl+s", "ctrl+o", "ctrl+l", "f5", "ctrl+n", "enter", "alt+left", "alt+right"]
        for key in keys:
            await pilot.press(key)
            await pilot.press("escape")
        app.chat.transcript.focus()
        for key in "jkgGJKeiurdycfpt":
            await pilot.press(key)
            while len(app.screen_stack) > 1:
                await pilot.press("escape")
            app.chat.transcript.focus()
        given = {"FILE": str(tmp_path / "text"), "URL": "http://127.0.0.1:9", "NAME": "n", "WORDS": "w", "TEXT": "t"}
        left_out = ("quit", "attach", "model", "preferences", "log", "help", "inspect")
        for command in commands.COMMANDS:
            if command.name in left_out:
                continue
            await app.chat.commands.run(command, given.get(command.argument, command.argument))
            await pilot.pause()
            while len(app.screen_stack) > 1:
                await pilot.press("escape")
        assert state(app) in (condition, "waiting", "failed"), "Esc gives up a model that loads"


@pytest.mark.parametrize("condition", ["loading", "failed"])
async def test_a_session_deleted_or_left_without_a_model_leaves_the_welcome(tmp_path: Path, condition: str) -> None:
    kept(tmp_path / "s.db", *SESSIONS["conversation"])
    app = NanochatApp(backend_in(condition), store=Store(tmp_path / "s.db"))
    async with app.run_test(size=(100, 30)) as pilot:
        await until(pilot, lambda: app.chat.session.info is not None and state(app) == condition)
        app.chat.transcript.focus()
        await pilot.press("d")
        await until(pilot, lambda: not app.chat.session.conversation.turns)
        assert ("no such file" if condition == "failed" else "compiling") in shown(app)
        await pilot.press("ctrl+n")
        await until(pilot, lambda: app.chat.session.info is None)
        assert state(app) == condition


async def test_a_restore_that_fails_is_said_and_the_next_start_is_as_usual(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    identity = kept(tmp_path / "s.db", *SESSIONS["conversation"])

    def broken(self: Turn) -> str:
        raise KeyError("whatever a session may do to us")

    with monkeypatch.context() as patch:
        patch.setattr("nanochat_tui.tui.chat.transcript.Transcript.show", broken)
        app = NanochatApp(ScriptedBackend("x", is_chat=True), store=Store(tmp_path / "s.db"))
        async with app.run_test(size=(80, 24), notifications=True) as pilot:
            await until(pilot, lambda: state(app) == "ready")
            await until(pilot, lambda: any("cannot be shown" in n.message for n in app._notifications))
            assert app.chat.session.info is None
    assert Store(tmp_path / "s.db").load(identity).result(120).turns[0].reply == "answer"
    app = NanochatApp(ScriptedBackend("x", is_chat=True), store=Store(tmp_path / "s.db"))
    async with app.run_test(size=(80, 24)) as pilot:
        await until(pilot, lambda: "answer" in shown(app))


async def test_a_start_that_died_while_it_restored_is_not_repeated(tmp_path: Path) -> None:
    identity = kept(tmp_path / "s.db", *SESSIONS["conversation"])
    died = "import os, sys; from pathlib import Path; from nanochat_tui.chat.restoring import RestoreNote\n"
    died += "RestoreNote(Path(sys.argv[1])).begin(sys.argv[2]); os._exit(9)"
    subprocess.run([sys.executable, "-c", died, str(tmp_path / "s.db"), identity], check=False)
    app = NanochatApp(ScriptedBackend("x", is_chat=True), store=Store(tmp_path / "s.db"))
    async with app.run_test(size=(80, 24), notifications=True) as pilot:
        await until(pilot, lambda: state(app) == "ready")
        await until(pilot, lambda: any("Ctrl+O lists all sessions" in n.message for n in app._notifications))
        assert app.chat.session.info is None
    app = NanochatApp(ScriptedBackend("x", is_chat=True), store=Store(tmp_path / "s.db"))
    async with app.run_test(size=(80, 24)) as pilot:
        await until(pilot, lambda: "answer" in shown(app))


def test_a_window_that_restores_at_this_moment_left_nothing_behind(tmp_path: Path) -> None:
    note = RestoreNote(tmp_path / "s.db")
    assert not note.left_behind()
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        (tmp_path / "s.db.restoring").write_text(json.dumps({"session": "x", "pid": process.pid}))
        assert not note.left_behind()
    finally:
        process.kill()
        process.wait()
    assert note.left_behind()
    assert not note.left_behind()
    for text in ("", "[]", '{"pid": "x"}', "[" * 100_000):
        (tmp_path / "s.db.restoring").write_text(text)
        assert note.left_behind()
    RestoreNote(tmp_path / "missing" / "deeper" / "s.db").begin("x")
    (tmp_path / "file").write_text("")
    RestoreNote(tmp_path / "file" / "s.db").begin("x")
    RestoreNote(None).begin("x")
    assert not RestoreNote(None).left_behind()


def damaged(statement: str) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        with contextlib.closing(sqlite3.connect(path)) as db:
            db.execute("PRAGMA ignore_check_constraints=ON")
            db.execute(statement)
            db.commit()

    return damage


def overwritten(path: Path) -> None:
    size = path.stat().st_size
    with path.open("r+b") as file:
        for place in range(4096, size, 2048):
            file.seek(place)
            file.write(os.urandom(1500))


DAMAGES: dict[str, Callable[[Path], None]] = {
    "cuts": damaged("UPDATE turn SET cuts = '5'"),
    "cuts of text": damaged("UPDATE turn SET cuts = '[\"a\", null]'"),
    "stats": damaged('UPDATE turn SET stats = \'{"prompt_tps": "x", "decode_tps": [], "context_used": null}\''),
    "no stats": damaged("UPDATE turn SET stats = '[[['"),
    "settings": damaged("UPDATE session SET settings = '[1, 2]'"),
    "deep settings": damaged("UPDATE session SET settings = replace(hex(zeroblob(50000)), '0', '[')"),
    "bytes": damaged("UPDATE turn SET reply = x'ff00fe', thinking = x'80'"),
    "times": damaged("UPDATE session SET created = 'yesterday', updated = 'today'"),
    "pages": overwritten,
    "not a database": lambda path: path.write_bytes(os.urandom(9000)) and None,
}


@pytest.mark.parametrize("damage", DAMAGES)
async def test_a_damaged_store_lets_the_application_start_and_answer(tmp_path: Path, damage: str) -> None:
    kept(tmp_path / "s.db", *SESSIONS["conversation"])
    DAMAGES[damage](tmp_path / "s.db")
    app = NanochatApp(ScriptedBackend("fine", is_chat=True), store=Store(tmp_path / "s.db"))
    async with app.run_test(size=(80, 24)) as pilot:
        await until(pilot, lambda: state(app) == "ready")
        app.chat.session.store.sessions().exception(120)
        app.chat.prompt.text = "hello"
        await pilot.press("enter")
        await until(pilot, lambda: bool(app.chat.session.conversation.turns) and state(app) == "ready")
        assert app.chat.session.conversation.turns[-1].reply == "fine"
