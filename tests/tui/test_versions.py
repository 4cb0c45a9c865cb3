"""No key loses text for good: what is written again, edited or deleted can be brought back, also by the next start."""

from __future__ import annotations

import sqlite3
from dataclasses import replace
from pathlib import Path

import pytest
from scripted import ScriptedBackend
from test_app import say, shown, state, until
from textual.widgets import Input

from nanochat_tui.chat.exchange import from_json, from_markdown, to_json, to_markdown
from nanochat_tui.chat.store import Store
from nanochat_tui.chat.store.records import SessionSettings, StoredSession, StoredTurn, new_session
from nanochat_tui.chat.store.schema import MIGRATIONS, statements
from nanochat_tui.tui.app import NanochatApp
from nanochat_tui.tui.widgets.dialogs import Choose, Confirm


def app_on(path: Path, *replies: str, is_chat: bool = True) -> NanochatApp:
    return NanochatApp(ScriptedBackend(*replies, is_chat=is_chat), store=Store(path))


def stored(app: NanochatApp) -> tuple[StoredTurn, ...]:
    assert app.chat.session.info is not None
    return app.chat.session.store.load(app.chat.session.info.id).result(120).turns


@pytest.mark.parametrize("is_chat", [True, False])
async def test_a_reply_that_is_written_again_is_kept_and_comes_back(tmp_path: Path, is_chat: bool) -> None:
    app = app_on(tmp_path / "s.db", "Captain Rennie", "second", "third", is_chat=is_chat)
    async with app.run_test(size=(100, 30)) as pilot:
        await until(pilot, lambda: state(app) == "ready")
        await say(pilot, app, "who")
        for reply in ("second", "third"):
            await pilot.press("ctrl+r")
            await until(pilot, lambda reply=reply: state(app) == "ready" and reply in shown(app))  # type: ignore[misc]
        marks = lambda: shown(app) + str(app.chat.query(".turn").first().border_subtitle)  # noqa: E731
        assert "3/3" in marks()
        await pilot.press("alt+left")
        await until(pilot, lambda: "second" in shown(app) and "2/3" in marks())
        await pilot.press("alt+left")
        await until(pilot, lambda: "Captain Rennie" in shown(app) and "1/3" in marks())
        await pilot.press("alt+left")
        assert "1/3" in marks()
        (turn,) = stored(app)
        assert (turn.reply, turn.place) == ("Captain Rennie", 0)
        assert [version.reply for version in turn.versions] == ["second", "third"]
        hits = app.chat.session.store.search("third").result(120)
        assert [(hit.position, hit.earlier) for hit in hits] == [(0, True)]
        await pilot.press("alt+right", "alt+right")
        await until(pilot, lambda: "third" in shown(app))
        app.chat.prompt.text = "/undo"
        await pilot.press("enter")
        await until(pilot, lambda: "second" in shown(app))
    app = app_on(tmp_path / "s.db", "fourth", is_chat=is_chat)
    async with app.run_test(size=(100, 30)) as pilot:
        await until(pilot, lambda: state(app) == "ready" and "second" in shown(app))
        app.chat.transcript.focus()
        await pilot.press("left")
        await until(pilot, lambda: "Captain Rennie" in shown(app))
        app.chat.prompt.focus()
        await say(pilot, app, "and then")
        request = app.chat.model.backend.requests[0]  # type: ignore[attr-defined]
        assert "Captain Rennie" in (request.prompt or request.messages[1].content), "the model gets what is shown"


async def test_editing_the_last_turn_keeps_the_old_one(tmp_path: Path) -> None:
    app = app_on(tmp_path / "s.db", "A", "B")
    async with app.run_test(size=(100, 30)) as pilot:
        await until(pilot, lambda: state(app) == "ready")
        await say(pilot, app, "one")
        app.chat.transcript.focus()
        await pilot.press("e")
        await say(pilot, app, "uno")
        (turn,) = stored(app)
        assert (turn.prompt, turn.reply, turn.place) == ("uno", "B", 1)
        assert [(v.prompt, v.reply) for v in turn.versions] == [("one", "A")]
        app.chat.transcript.focus()
        await pilot.press("u")
        await until(pilot, lambda: app.chat.session.conversation.turns[0].prompt == "one")
        assert "one" in shown(app)
        assert "uno" not in shown(app)
        app.chat.prompt.text = "/versions"
        app.chat.prompt.focus()
        await pilot.press("enter")
        await until(pilot, lambda: isinstance(app.screen, Choose))
        await pilot.press("down", "enter")
        await until(pilot, lambda: app.chat.session.conversation.turns[0].prompt == "uno")


@pytest.mark.parametrize("end", ["error", "stopped", "left"])
async def test_a_retry_of_which_nothing_comes_leaves_the_reply_as_it_was(tmp_path: Path, end: str) -> None:
    app = app_on(tmp_path / "s.db", "kept", *(["!the server is gone"] * 3 if end == "error" else ["new words"]))
    backend = app.chat.model.backend
    assert isinstance(backend, ScriptedBackend)
    async with app.run_test(size=(100, 30)) as pilot:
        await until(pilot, lambda: state(app) == "ready")
        await say(pilot, app, "one")
        before = stored(app)
        if end != "error":
            backend.hold_first = True
            backend.gate.clear()
        for _ in range(3):
            await pilot.press("ctrl+r")
            await until(pilot, lambda: len(backend.requests) > 1)
            if end == "stopped":
                await pilot.press("escape")
            elif end == "left":
                await pilot.press("ctrl+n")
                break
            await until(pilot, lambda: state(app) == "ready")
        if end == "error":
            assert shown(app).count("the server is gone") == 1, "one note, however often it failed"
            assert "broken off" not in shown(app)
        if end != "left":
            assert "kept" in shown(app)
            assert stored(app) == before
    (info,) = Store(tmp_path / "s.db").sessions().result(120)
    assert Store(tmp_path / "s.db").load(info.id).result(120).turns == before


async def test_an_error_says_what_the_keys_can_do_and_goes_with_the_next_reply(tmp_path: Path) -> None:
    app = app_on(tmp_path / "s.db", "!gone", "fine")
    async with app.run_test(size=(100, 30)) as pilot:
        await until(pilot, lambda: state(app) == "ready")
        await say(pilot, app, "one")
        assert "gone\nCtrl+R to retry." in shown(app), "nothing came that could go on"
        assert "broken off" not in shown(app)
        await pilot.press("ctrl+r")
        await until(pilot, lambda: state(app) == "ready" and "fine" in shown(app))
        assert "gone" not in shown(app)


async def test_a_deleted_turn_comes_back_after_a_restart(tmp_path: Path) -> None:
    app = app_on(tmp_path / "s.db", "A", "B", "C")
    async with app.run_test(size=(100, 30)) as pilot:
        await until(pilot, lambda: state(app) == "ready")
        await say(pilot, app, "one")
        await pilot.press("ctrl+r")
        await until(pilot, lambda: state(app) == "ready" and "B" in shown(app))
        await say(pilot, app, "two")
        before = stored(app)
        app.chat.transcript.focus()
        await pilot.press("up", "d", "d")
        await until(pilot, lambda: not app.chat.session.conversation.turns)
    app = app_on(tmp_path / "s.db", "D")
    async with app.run_test(size=(100, 30)) as pilot:
        await until(pilot, lambda: state(app) == "ready")
        sessions = app.chat.session.store.sessions().result(120)
        if not sessions:
            pytest.fail("a session whose turns were deleted is still listed")
        await app.chat.flow.open(sessions[0].id)
        app.chat.transcript.focus()
        await pilot.press("u", "u")
        await until(pilot, lambda: len(app.chat.session.conversation.turns) == 2)
        assert stored(app) == before


async def test_a_deleted_session_can_be_restored(tmp_path: Path) -> None:
    app = app_on(tmp_path / "s.db", "A")
    async with app.run_test(size=(100, 30)) as pilot:
        await until(pilot, lambda: state(app) == "ready")
        await say(pilot, app, "one")
        identity = app.chat.session.info.id if app.chat.session.info else ""
        app.chat.prompt.text = "half a thought"
        app.chat.changes._delete_this()
        await until(pilot, lambda: isinstance(app.screen, Confirm))
        await pilot.press("y")
        await until(pilot, lambda: app.chat.session.info is None and app.screen is app.chat)
        store = app.chat.session.store
        assert store.sessions().result(120) == []
        assert store.search("one").result(120) == []
        assert store.prompts().result(120) == []
        app.chat.prompt.text = "/restore"
        await pilot.press("enter")
        await until(pilot, lambda: isinstance(app.screen, Choose))
        await pilot.press("enter")
        await until(pilot, lambda: app.chat.session.info is not None and app.chat.session.info.id == identity)
        assert app.chat.session.conversation.turns[0].reply == "A"
        assert app.chat.prompt.text == "half a thought"
        app.chat.changes._delete_this()
        await until(pilot, lambda: isinstance(app.screen, Confirm))
        await pilot.press("y")
        await until(pilot, lambda: app.chat.session.info is None and app.screen is app.chat)
        app.chat.changes.empty_trash()
        await until(pilot, lambda: isinstance(app.screen, Confirm))
        await pilot.press("y")
        await until(pilot, lambda: app.screen is app.chat)
        assert store.deleted().result(120) == []


async def test_what_is_typed_survives_an_edit_and_leaving_a_session(tmp_path: Path) -> None:
    app = app_on(tmp_path / "s.db", "A", "B")
    async with app.run_test(size=(100, 30)) as pilot:
        await until(pilot, lambda: state(app) == "ready")
        await say(pilot, app, "one")
        first = app.chat.session.info.id if app.chat.session.info else ""
        app.chat.prompt.text = "half a thought"
        app.chat.transcript.focus()
        await pilot.press("e")
        assert app.chat.prompt.text == "one"
        app.chat.prompt.text = "one, changed"
        await pilot.press("escape")
        assert app.chat.prompt.text == "half a thought"
        assert "one, changed" in app.chat.prompt.past.entries
        app.chat.transcript.focus()
        await pilot.press("e")
        await say(pilot, app, "uno")
        assert app.chat.prompt.text == "half a thought", "sending the edit leaves the draft"
        app.chat.transcript.focus()
        await pilot.press("e")
        app.chat.prompt.text = "changed again"
        await pilot.press("ctrl+q")
    info = Store(tmp_path / "s.db").load(first).result(120).info
    assert info.draft == "half a thought\n\nchanged again"


async def test_a_draft_that_was_never_saved_is_not_lost_by_opening_another_session(tmp_path: Path) -> None:
    app = app_on(tmp_path / "s.db", "A")
    async with app.run_test(size=(100, 30)) as pilot:
        await until(pilot, lambda: state(app) == "ready")
        await say(pilot, app, "one")
        first = app.chat.session.info.id if app.chat.session.info else ""
        await app.chat.flow.new()
        app.chat.prompt.text = "just typed"
        await app.chat.flow.open(first)
        drafts = [info.draft for info in app.chat.session.store.sessions().result(120)]
        assert "just typed" in drafts


async def test_a_file_given_to_the_model_leaves_the_draft_alone(tmp_path: Path) -> None:
    (tmp_path / "a.rs").write_text("fn a() {")
    app = app_on(tmp_path / "s.db", "}", is_chat=False)
    async with app.run_test(size=(100, 30)) as pilot:
        await until(pilot, lambda: state(app) == "ready")
        app.chat.prompt.text = "my draft"
        await app.chat.commands.do("file", str(tmp_path / "a.rs"))
        await until(pilot, lambda: state(app) == "ready" and bool(app.chat.session.conversation.turns))
        assert app.chat.prompt.text == "my draft"


OTHERS = (StoredTurn("q1", ("first",)), StoredTurn("q3", ("last",)))
TURN = StoredTurn("q2", ("shown",), "thought", "stop", None, OTHERS, 1)


def test_versions_are_exported_and_imported() -> None:
    info = new_session("m", is_chat=True, settings=SessionSettings())
    session = StoredSession(info, (StoredTurn("before", ("x",), reason="stop"), TURN))
    assert from_json(to_json(session)).turns == session.turns
    (_, turn) = from_markdown(to_markdown(session)).turns
    assert (turn.prompt, turn.reply, turn.place) == ("q2", "shown", 1)
    assert [(v.prompt, v.reply) for v in turn.versions] == [("q1", "first"), ("q3", "last")]
    prose = replace(info, is_chat=False)
    assert from_markdown(to_markdown(StoredSession(prose, (TURN,)))).turns[0].versions[1].reply == "last"


def test_a_fork_has_the_versions_too(tmp_path: Path) -> None:
    store = Store(tmp_path / "s.db")
    info = new_session("m", is_chat=True, settings=SessionSettings())
    store.save_session(info)
    store.save_turn(info.id, 0, TURN)
    store.save_turn(info.id, 1, StoredTurn("more"))
    assert store.fork(info.id, 1).result(120).turns == (TURN,)
    store.keep_turns(info.id, 0)
    assert store.search("last").result(120)[0].session != info.id, "what was dropped is no longer found"
    assert store.close()


def test_a_database_of_the_version_before_is_migrated(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "s.db") as db:
        for script in MIGRATIONS[:4]:
            for statement in statements(script):
                db.execute(statement)
        db.execute("PRAGMA user_version=4")
        db.execute("INSERT INTO session(id, title, model, is_chat, created, updated) VALUES ('a', 't', 'm', 1, 1, 1)")
        db.execute("INSERT INTO turn(session, position, prompt, reply, cuts) VALUES ('a', 0, 'old', 'reply', '[5]')")
    db.close()
    store = Store(tmp_path / "s.db")
    assert store.load("a").result(120).turns == (StoredTurn("old", ("reply",)),)
    store.save_turn("a", 0, TURN)
    assert store.load("a").result(120).turns == (TURN,)
    assert [hit.session for hit in store.search("first").result(120)] == ["a"]
    assert store.close()


async def test_searching_opens_the_turn_whose_other_version_holds_the_words(tmp_path: Path) -> None:
    app = app_on(tmp_path / "s.db", "Captain Rennie", "second")
    async with app.run_test(size=(100, 30)) as pilot:
        await until(pilot, lambda: state(app) == "ready")
        await say(pilot, app, "who")
        await pilot.press("ctrl+r")
        await until(pilot, lambda: state(app) == "ready" and "second" in shown(app))
        await pilot.press("ctrl+o")
        await until(pilot, lambda: app.focused is app.chat.sessions.query_one(Input))
        await pilot.press(*"rennie")
        await until(pilot, lambda: app.chat.sessions.options.option_count == 1)
        assert "another version" in str(app.chat.sessions.options.get_option_at_index(0).prompt)
