"""Commands and keys of the chat that no other test drives: through the input and the palette, as a person would."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from openai_server import serving
from scripted import ScriptedBackend
from test_app import say, shown, state, until
from textual.binding import Binding
from textual.pilot import Pilot
from textual.widgets import OptionList, Static

from nanochat_tui.chat.remote import RemoteBackend
from nanochat_tui.chat.store import Store
from nanochat_tui.chat.store.records import SessionSettings, StoredSession, StoredTurn, new_session
from nanochat_tui.tui.app import NanochatApp
from nanochat_tui.tui.chat.commands import BY_NAME
from nanochat_tui.tui.chat.screen import ChatScreen
from nanochat_tui.tui.chat.transcript import WINDOW, Transcript
from nanochat_tui.tui.widgets.dialogs import Choose, Confirm


async def command(pilot: Pilot[None], app: NanochatApp, line: str) -> None:
    app.chat.prompt.focus()
    app.chat.prompt.text = line
    await pilot.press("enter")
    await until(pilot, lambda: app.chat.prompt.text == "")


def palette(app: NanochatApp) -> set[str]:
    return {title for title, _, _ in app.chat.palette_commands()}


async def test_models_lets_another_model_of_the_server_be_chosen() -> None:
    with serving() as server:
        app = NanochatApp(RemoteBackend(server.url))
        async with app.run_test(size=(100, 30)) as pilot:
            await until(pilot, lambda: state(app) == "ready")
            assert app.chat.model.backend.name == "tiny"
            await command(pilot, app, "/models")
            await until(pilot, lambda: isinstance(app.screen, Choose))
            app.screen.query_one(OptionList).focus()
            await pilot.press("j", "enter")
            await until(pilot, lambda: app.chat.model.backend.name == "other" and state(app) == "ready")
            await say(pilot, app, "hi")
            assert server.requests[-1]["model"] == "other"


async def test_complete_changes_between_answers_and_raw_text() -> None:
    backend = ScriptedBackend("x", is_chat=True)
    app = NanochatApp(backend)
    async with app.run_test(size=(100, 30)) as pilot:
        await until(pilot, lambda: state(app) == "ready")
        await command(pilot, app, "/complete")
        await until(pilot, lambda: not app.chat.session.conversation.is_chat)
        assert app.chat.prompt.border_title == "Text to continue"
        await say(pilot, app, "fn ")
        assert (backend.requests[0].prompt, backend.requests[0].messages) == ("fn ", ())
        await command(pilot, app, "/complete")
        await until(pilot, lambda: app.chat.session.conversation.is_chat)
        assert not app.chat.session.conversation.turns, "a new session"
        await say(pilot, app, "hello")
        assert [m.content for m in backend.requests[1].messages] == ["hello"]


async def test_continue_lets_the_last_reply_go_on() -> None:
    backend = ScriptedBackend("one", " two", is_chat=True)
    app = NanochatApp(backend)
    async with app.run_test(size=(100, 30)) as pilot:
        await until(pilot, lambda: state(app) == "ready")
        await say(pilot, app, "count")
        await command(pilot, app, "/continue")
        await until(pilot, lambda: len(backend.requests) == 2 and state(app) == "ready")
        assert backend.requests[1].prefix == "one"
        assert app.chat.session.conversation.turns[0].parts == ["one", " two"]


async def test_search_sort_and_delete_by_command(tmp_path: Path) -> None:
    app = NanochatApp(ScriptedBackend("about lifetimes", "about traits"), store=Store(tmp_path / "s.db"))
    async with app.run_test(size=(120, 30)) as pilot:
        await until(pilot, lambda: state(app) == "ready")
        for text in ("zebra", "apple"):
            await say(pilot, app, text)
            if text == "zebra":
                await command(pilot, app, "/new")
        await command(pilot, app, "/search lifetimes")
        options = app.chat.sessions.options
        await until(pilot, lambda: options.option_count == 1)
        await pilot.press("enter", "enter")
        await until(pilot, lambda: app.chat.session.conversation.turns[0].prompt == "zebra")
        app.chat.sessions.query_one("#session-search").value = ""  # type: ignore[attr-defined]
        await until(pilot, lambda: options.option_count == 2)

        options.focus()
        for name in ("newest", "by name", "longest"):
            await pilot.press("s")
            await until(pilot, lambda name=name: name in hint(app))  # type: ignore[misc]
            if name == "by name":
                assert "apple" in str(options.get_option_at_index(0).prompt)
        assert "Sort sessions" in palette(app)
        await command(pilot, app, "/sort")
        await until(pilot, lambda: "last used" in hint(app))

        session = app.chat.session.info
        assert session is not None
        for key, left in (("n", 2), ("y", 1)):
            await command(pilot, app, "/delete")
            await until(pilot, lambda: isinstance(app.screen, Confirm))
            await pilot.press(key)
            await until(pilot, lambda left=left: len(app.chat.session.store.sessions().result(120)) == left)  # type: ignore[misc]
        assert app.chat.session.info is None


def hint(app: NanochatApp) -> str:
    return str(app.chat.query_one("#session-hint", Static).render())


async def test_thoughts_unfold_by_key_and_by_command() -> None:
    with serving(thoughts=["a secret ", "thought"]) as server:
        app = NanochatApp(RemoteBackend(server.url))
        async with app.run_test(size=(100, 30)) as pilot:
            await until(pilot, lambda: state(app) == "ready")
            assert "Unfold or fold thoughts" not in palette(app)
            await say(pilot, app, "hi")
            assert "a secret thought" not in shown(app)
            app.chat.transcript.focus()
            await pilot.press("t")
            await until(pilot, lambda: "a secret thought" in shown(app))
            assert "Unfold or fold thoughts" in palette(app)
            await command(pilot, app, "/thoughts")
            await until(pilot, lambda: "a secret thought" not in shown(app))


async def test_half_pages_and_earlier_turns() -> None:
    app = NanochatApp(ScriptedBackend("x", is_chat=True))
    async with app.run_test(size=(80, 24)) as pilot:
        await until(pilot, lambda: state(app) == "ready")
        info = new_session("scripted-rust", is_chat=True, settings=SessionSettings())
        await app.chat.flow.show(
            StoredSession(info, tuple(StoredTurn(f"question {i}", (f"answer {i}",)) for i in range(WINDOW + 10)))
        )
        transcript = app.chat.transcript
        transcript.focus()
        await until(pilot, lambda: transcript.max_scroll_y > 0 and transcript.scroll_y == transcript.max_scroll_y)
        end, half = transcript.scroll_y, transcript.size.height // 2
        await pilot.press("ctrl+u")
        await until(pilot, lambda: transcript.scroll_y == end - half)
        await pilot.press("ctrl+u", "ctrl+d")
        await until(pilot, lambda: transcript.scroll_y == end - half)
        assert "10 earlier turns" in shown(app)
        assert "question 3\n" not in shown(app) + "\n"
        await pilot.press("g", "g")
        await until(pilot, lambda: len(transcript.views) == WINDOW + 10)
        assert "earlier turns" not in shown(app)
        assert transcript.views[0].turn.prompt == "question 0"


@pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGKILL")
async def test_a_server_killed_in_mid_reply_leaves_what_came_and_a_way_on(tmp_path: Path) -> None:
    program = (
        "import sys, time\nsys.path.insert(0, sys.argv[1])\nfrom openai_server import serving\n"
        "with serving(words=[f'word{i} ' for i in range(5000)], owner='vllm') as server:\n"
        "    print(server.url, flush=True)\n    time.sleep(60)\n"
    )
    tests = str(Path(__file__).parents[1])
    with subprocess.Popen([sys.executable, "-c", program, tests], stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            app = NanochatApp(RemoteBackend(process.stdout.readline().strip()), store=Store(tmp_path / "s.db"))
            async with app.run_test(size=(100, 30)) as pilot:
                await until(pilot, lambda: state(app) == "ready")
                app.chat.session.max_tokens = None
                app.chat.prompt.text = "hi"
                await pilot.press("enter")
                said, replies = app.chat.session.conversation, app.chat.replies
                await until(pilot, lambda: replies.runs > 0 and "word30 " in said.turns[0].reply)
                os.kill(process.pid, signal.SIGKILL)
                await until(pilot, lambda: state(app) == "ready")
                assert "Ctrl+R to retry" in shown(app)
                assert app.chat.session.info is not None
                (turn,) = app.chat.session.store.load(app.chat.session.info.id).result(120).turns
                assert turn.reply.startswith("word0 word1 ")
                assert "word30 " in turn.reply
                await pilot.press("ctrl+r")
                await until(pilot, lambda: "There is no server" in shown(app), 20)
                await until(pilot, lambda: state(app) == "ready")
                assert app.chat.session.conversation.turns[0].reply == turn.reply, "trying again costs nothing"
                assert "word30 " in shown(app)
                (kept,) = app.chat.session.store.load(app.chat.session.info.id).result(120).turns
                assert kept.reply == turn.reply
        finally:
            process.kill()


def test_every_command_and_every_key_does_something() -> None:
    screen = ChatScreen(ScriptedBackend("x"))
    assert set(BY_NAME) <= screen.commands.names
    bound = re.compile(r"(?:screen\.)?command\('(\w+)'\)")
    bindings = [b for owner in (ChatScreen, Transcript) for b in owner.BINDINGS if isinstance(b, Binding)]
    named = {found[1] for b in bindings if (found := bound.fullmatch(b.action))}
    assert len(named) > 15
    assert named <= screen.commands.names
    assert screen.commands.names <= set(BY_NAME) | named, "what nothing stands for"


async def test_the_lens_goes_with_the_turn_it_looks_at(tmp_path: Path) -> None:
    app = NanochatApp(ScriptedBackend("x y z"), store=Store(tmp_path / "s.db"))
    async with app.run_test(size=(100, 34)) as pilot:
        await until(pilot, lambda: state(app) == "ready")
        await say(pilot, app, "a")
        first = app.chat.session.id
        for leave in ("ctrl+n", "open", "/remove"):
            if leave == "open":
                await app.chat.flow.open(first or "")
                continue
            await pilot.press("f5")
            await until(pilot, lambda: app.chat.lens.ribbon is not None and app.chat.lens.display)
            app.chat.prompt.focus()
            if leave.startswith("/"):
                app.chat.prompt.text = leave
            await pilot.press("enter" if leave.startswith("/") else leave)
            await until(pilot, lambda: not app.chat.lens.display and app.chat.lens.turn is None)
