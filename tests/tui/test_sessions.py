"""Sessions in the application: kept, listed, searched, renamed, deleted, forked, resumed."""

from __future__ import annotations

import contextlib
import sqlite3
from pathlib import Path

import pytest
from scripted import ScriptedBackend
from test_app import say, shown, state, until
from textual.widgets import Input

from nanochat_tui.chat.store import Store
from nanochat_tui.tui.app import NanochatApp
from nanochat_tui.tui.messages import SessionAction
from nanochat_tui.tui.widgets.dialogs import Ask, Confirm


def app_on(path: Path, *replies: str, is_chat: bool = False) -> NanochatApp:
    return NanochatApp(ScriptedBackend(*replies, is_chat=is_chat), store=Store(path))


async def test_what_was_said_is_there_again_next_time(tmp_path: Path) -> None:
    app = app_on(tmp_path / "s.db", "alpha", "beta", is_chat=True)
    async with app.run_test(size=(100, 30)) as pilot:
        await until(pilot, lambda: state(app) == "ready")
        await say(pilot, app, "first question")
        await say(pilot, app, "second question")
        app.chat.prompt.text = "half a thought"
        await until(pilot, lambda: app.chat.session.draft.saved == "half a thought")
    app = app_on(tmp_path / "s.db", "gamma", is_chat=True)
    async with app.run_test(size=(100, 30)) as pilot:
        await until(pilot, lambda: state(app) == "ready" and "beta" in shown(app))
        assert "first question" in shown(app)
        assert app.chat.prompt.text == "half a thought"
        await until(pilot, lambda: app.chat.status.stats is not None)
        assert app.chat.status.stats is not None
        assert app.chat.status.stats.context_used == 4, "what the last reply had used is known at once"
        await say(pilot, app, "third")
        request = app.chat.model.backend.requests[0]  # type: ignore[attr-defined]
        assert [m.content for m in request.messages] == ["first question", "alpha", "second question", "beta", "third"]


async def test_the_list_opens_searches_renames_forks_and_deletes(tmp_path: Path) -> None:
    app = app_on(tmp_path / "s.db", "one HashMap here", "two", "three")
    async with app.run_test(size=(120, 30)) as pilot:
        await until(pilot, lambda: state(app) == "ready")
        await say(pilot, app, "about maps")
        await pilot.press("ctrl+n")
        await until(pilot, lambda: not app.chat.session.conversation.turns)
        await say(pilot, app, "about traits")
        await pilot.press("ctrl+o")
        options = app.chat.sessions.options
        await until(pilot, lambda: options.option_count == 2)
        options.clear_options()
        await app.chat.flow.list_changed()  # what the end of a reply does
        await until(pilot, lambda: options.option_count == 2)
        assert app.focused is app.chat.sessions.query_one(Input), "what is typed searches"

        await pilot.press(*"hashm")
        await until(pilot, lambda: options.option_count == 1)
        await pilot.press("enter")
        await until(pilot, lambda: "one HashMap here" in shown(app))
        assert app.chat.session.conversation.turns[0].prompt == "about maps"
        assert app.chat.transcript.chosen is app.chat.session.conversation.turns[0], "the turn that was found is shown"

        app.chat.sessions.query_one(Input).value = ""
        await until(pilot, lambda: options.option_count == 2)
        options.focus()
        options.highlighted = 1
        await pilot.press("r")
        await until(pilot, lambda: len(app.screen_stack) == 2)
        app.screen.query_one(Input).value = "Maps of Rust"
        await pilot.press("enter")
        await until(pilot, lambda: app.chat.session.info is not None and app.chat.session.info.title == "Maps of Rust")

        parent = app.chat.session.info
        await pilot.press("f")
        await until(pilot, lambda: app.chat.session.info is not None and app.chat.session.info.parent is not None)
        assert app.chat.session.info is not None
        assert parent is not None
        assert app.chat.session.info.parent == parent.id
        await until(pilot, lambda: options.option_count == 3)
        assert app.chat.session.info.title == "Maps of Rust (fork)"

        options.focus()
        highlighted = options.session
        await pilot.press("d")
        await until(pilot, lambda: len(app.screen_stack) == 2)
        await pilot.press("y")
        await until(pilot, lambda: options.option_count == 2)
        stored = app.chat.session.store.sessions().result(120)
        assert highlighted not in {info.id for info in stored}
        await pilot.press("escape")
        assert not app.chat.sessions.display


async def test_edit_delete_and_regenerate_change_what_is_kept(tmp_path: Path) -> None:
    app = app_on(tmp_path / "s.db", "A", "B", "C", "D", is_chat=True)
    async with app.run_test(size=(100, 30)) as pilot:
        await until(pilot, lambda: state(app) == "ready")
        for text in ("one", "two"):
            await say(pilot, app, text)
        assert app.chat.session.info is not None
        session = app.chat.session.info.id
        app.chat.transcript.focus()
        await pilot.press("K", "K", "e")
        assert app.chat.prompt.text == "one"
        assert "in a fork (1 later turn stays here)" in str(app.chat.prompt.border_subtitle)
        await pilot.press("escape")
        assert app.chat.session.draft.editing is None
        assert app.chat.prompt.text == ""
        app.chat.transcript.focus()
        await pilot.press("K", "K", "e")
        await say(pilot, app, "uno")
        assert app.chat.session.info is not None
        fork = app.chat.session.info.id
        assert app.chat.session.info.parent == session
        old = app.chat.session.store.load(session).result(120)
        assert [t.prompt for t in old.turns] == ["one", "two"], "nothing is lost"
        assert old.info.draft == ""
        kept = app.chat.session.store.load(fork).result(120)
        assert [(t.prompt, t.reply) for t in kept.turns] == [("uno", "C")]
        await say(pilot, app, "due")
        app.chat.transcript.focus()
        await pilot.press("e")
        await say(pilot, app, "dos")
        assert app.chat.session.info.id == fork, "the last turn is sent again where it stands"
        app.chat.transcript.focus()
        await pilot.press("d")
        await until(pilot, lambda: len(app.chat.session.conversation.turns) == 1)
        assert len(app.chat.session.store.load(fork).result(120).turns) == 1
        assert "dos" not in shown(app)


async def test_a_deleted_turn_can_be_brought_back(tmp_path: Path) -> None:
    app = app_on(tmp_path / "s.db", "A", "B", "C", is_chat=True)
    async with app.run_test(size=(100, 30), notifications=True) as pilot:
        await until(pilot, lambda: state(app) == "ready")
        for text in ("one", "two", "three"):
            await say(pilot, app, text)
        assert app.chat.session.info is not None
        session = app.chat.session.info.id
        app.chat.transcript.focus()
        await pilot.press("K", "K", "d")
        await until(pilot, lambda: len(app.chat.session.conversation.turns) == 2)
        assert any("/undo brings it back" in n.message for n in app._notifications)
        await pilot.press("u")
        await until(pilot, lambda: len(app.chat.session.conversation.turns) == 3)
        kept = app.chat.session.store.load(session).result(120).turns
        assert [(t.prompt, t.reply) for t in kept] == [("one", "A"), ("two", "B"), ("three", "C")]
        await pilot.press("i")
        for line in ("/remove", "/remove", "/undo", "/undo"):
            app.chat.prompt.text = line
            await pilot.press("enter")
            await until(pilot, lambda: app.chat.prompt.text == "")
        await until(pilot, lambda: len(app.chat.session.conversation.turns) == 3)
        assert [t.prompt for t in app.chat.session.store.load(session).result(120).turns] == ["one", "two", "three"]
        assert not app.chat.session.undoable


def refuse_forks(path: Path) -> None:
    """Let the database itself refuse every session that comes from another."""
    with contextlib.closing(sqlite3.connect(path)) as db:
        db.execute(
            "CREATE TRIGGER refused BEFORE INSERT ON session WHEN new.parent IS NOT NULL "
            "BEGIN SELECT RAISE(ABORT, 'database or disk is full'); END"
        )
        db.commit()


@pytest.mark.parametrize("key", ["r", "e"])
async def test_a_fork_that_fails_changes_nothing(tmp_path: Path, key: str) -> None:
    app = app_on(tmp_path / "s.db", "A", "B", is_chat=True)
    async with app.run_test(size=(100, 30), notifications=True) as pilot:
        await until(pilot, lambda: state(app) == "ready")
        for text in ("one", "two"):
            await say(pilot, app, text)
        before = app.chat.session.info
        assert before is not None
        refuse_forks(tmp_path / "s.db")
        app.chat.transcript.focus()
        await pilot.press("K", "K", key)
        if key == "e":
            app.chat.prompt.text = "uno"
            await pilot.press("enter")
        await until(pilot, lambda: any("disk is full" in n.message for n in app._notifications))
        assert app.chat.replies.generation is None
        kept = app.chat.session.store.load(before.id).result(120).turns
        assert [(t.prompt, t.reply) for t in kept] == [("one", "A"), ("two", "B")]
        assert [t.reply for t in app.chat.session.conversation.turns] == ["A", "B"]
        assert app.chat.prompt.text == ("uno" if key == "e" else ""), "what was typed stays"


async def test_an_export_asks_before_it_replaces_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "hi.md").write_text("somebody's notes")
    app = app_on(tmp_path / "s.db", "A", is_chat=True)
    async with app.run_test(size=(100, 30)) as pilot:
        await until(pilot, lambda: state(app) == "ready")
        await say(pilot, app, "hi")
        for answer in ("n", "y"):
            app.chat.prompt.text = "/export hi.md"
            await pilot.press("enter")
            await until(pilot, lambda: isinstance(app.screen, Confirm))
            assert (tmp_path / "hi.md").read_text() == "somebody's notes"
            await pilot.press(answer)
            await until(pilot, lambda: app.screen is app.chat)
        assert "## User" in (tmp_path / "hi.md").read_text()
        await pilot.press("ctrl+o")
        await until(pilot, lambda: app.chat.sessions.options.option_count == 1)
        await pilot.press("tab", "e")
        await until(pilot, lambda: isinstance(app.screen, Ask))
        assert app.screen.query_one(Input).value == "hi-2.md", "a name that is free"
        await pilot.press("enter")
        await until(pilot, (tmp_path / "hi-2.md").exists)


async def test_what_was_typed_in_a_base_model_comes_back_before_any_example(tmp_path: Path) -> None:
    app = app_on(tmp_path / "s.db", "A")
    async with app.run_test(size=(100, 30)) as pilot:
        await until(pilot, lambda: state(app) == "ready")
        await pilot.press("up")
        assert app.chat.prompt.text == "fn main() {", "an example, as there is nothing else"
        await say(pilot, app, "struct Mine;")
    app = app_on(tmp_path / "s.db", "B")
    async with app.run_test(size=(100, 30)) as pilot:
        await until(pilot, lambda: state(app) == "ready" and bool(app.chat.session.conversation.turns))
        await until(pilot, lambda: "struct Mine;" in app.chat.prompt.past.entries)
        app.chat.prompt.focus()
        await pilot.press("up")
        assert app.chat.prompt.text == "struct Mine;"


async def test_commands_and_settings_belong_to_the_session(tmp_path: Path) -> None:
    app = app_on(tmp_path / "s.db", "A", "B", is_chat=True)
    async with app.run_test(size=(100, 30)) as pilot:
        await until(pilot, lambda: state(app) == "ready")
        for line in ("/system be brief", "/set temperature 0.25"):
            app.chat.prompt.text = line
            await pilot.press("enter")
        await until(pilot, lambda: app.chat.session.sampling.temperature == 0.25)
        await say(pilot, app, "hi")
        request = app.chat.model.backend.requests[0]  # type: ignore[attr-defined]
        assert request.messages[0].content == "be brief"
        assert request.sampling.temperature == 0.25
        first = app.chat.session.info
        assert first is not None
        await pilot.press("ctrl+n")
        await until(pilot, lambda: app.chat.session.sampling.temperature == 0.8)
        await app.chat.flow.open(first.id)
        assert app.chat.session.settings.system == "be brief"

        app.chat.prompt.text = f"/export {tmp_path / 'out.md'}"
        await pilot.press("enter")
        await until(pilot, (tmp_path / "out.md").exists)
        app.chat.prompt.text = f"/import {tmp_path / 'out.md'}"
        await pilot.press("enter")
        await until(pilot, lambda: app.chat.session.info is not None and app.chat.session.info.id != first.id)
        assert app.chat.session.conversation.turns[0].reply == "A"

        app.chat.prompt.text = "/nonsense"
        await pilot.press("enter")
        assert app.chat.prompt.text == "/nonsense"
        app.chat.prompt.text = " /nonsense"
        await pilot.press("enter")
        await until(pilot, lambda: app.chat.session.conversation.turns[-1].prompt == " /nonsense")


async def test_five_hundred_turns_show_the_last_and_bring_the_others(tmp_path: Path) -> None:
    from nanochat_tui.chat.store.records import SessionSettings, StoredSession, StoredTurn, new_session

    app = app_on(tmp_path / "s.db", "A", is_chat=True)
    async with app.run_test(size=(100, 30)) as pilot:
        await until(pilot, lambda: state(app) == "ready")
        info = new_session("scripted-rust", is_chat=True, settings=SessionSettings())
        turns = tuple(StoredTurn(f"q{i}", (f"a{i}",)) for i in range(500))
        await app.chat.flow.show(StoredSession(info, turns))
        views = app.chat.transcript.views
        assert len(views) < 60
        assert views[-1].turn.prompt == "q499"
        await app.chat.transcript.reveal(400)
        assert app.chat.transcript.chosen is app.chat.session.conversation.turns[400]
        await say(pilot, app, "next")
        assert len(app.chat.model.backend.requests[0].messages) == 1001  # type: ignore[attr-defined]


async def test_a_large_paste_stays_small_in_the_input_and_is_sent_whole(tmp_path: Path) -> None:
    from textual.events import Paste

    app = app_on(tmp_path / "s.db", "A", is_chat=True)
    async with app.run_test(size=(100, 30)) as pilot:
        await until(pilot, lambda: state(app) == "ready")
        text = "\n".join(f"line {i}" for i in range(300))
        app.chat.prompt.post_message(Paste(text))
        await until(pilot, lambda: "pasted text 1: 300 lines" in app.chat.prompt.text)
        await pilot.press("enter")
        await until(pilot, lambda: bool(app.chat.session.conversation.turns) and state(app) == "ready")
        assert app.chat.session.conversation.turns[0].prompt == text


async def test_a_second_window_leaves_the_session_of_the_first_alone(tmp_path: Path) -> None:
    first = app_on(tmp_path / "s.db", "one", is_chat=True)
    async with first.run_test(size=(100, 30)) as pilot:
        await until(pilot, lambda: state(first) == "ready")
        await say(pilot, first, "of the first window")
        assert first.chat.session.info is not None
        original = first.chat.session.info.id
        first.chat.session.store.flush().result(120)

        second = app_on(tmp_path / "s.db", "two", is_chat=True)
        async with second.run_test(size=(100, 30), notifications=True) as other:
            await until(other, lambda: any("open in another window" in n.message for n in second._notifications))
            assert not second.chat.session.conversation.turns, "a new session, not the one that is being written"
            await say(other, second, "of the second window")
            assert second.chat.session.info is not None
            assert second.chat.session.info.id != original
            await second.chat.flow.open(original)
            assert second.chat.session.info.parent == original, "opened by hand, it is forked"
            await say(other, second, "goes on in the fork")
            second.chat.sessions.post_message(SessionAction("delete", original))
            await until(other, lambda: any("delete it there" in n.message for n in second._notifications))
        kept = first.chat.session.store.load(original).result(120)
        assert [turn.prompt for turn in kept.turns] == ["of the first window"]
        await say(pilot, first, "again")
        kept = first.chat.session.store.load(original).result(120)
        assert [turn.prompt for turn in kept.turns] == ["of the first window", "again"]
