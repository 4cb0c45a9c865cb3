"""Commands and keys of the chat that no other test drives: through the input and the palette, as a person would."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from openai_server import serving
from scripted import ScriptedBackend
from test_app import say, shown, state, until
from textual.pilot import Pilot
from textual.widgets import OptionList, Static

from nanochat_tui.chat.records import SessionSettings, StoredSession, StoredTurn, new_session
from nanochat_tui.chat.remote import RemoteBackend
from nanochat_tui.chat.store import Store
from nanochat_tui.tui.app import NanochatApp
from nanochat_tui.tui.chat.transcript import WINDOW
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
            assert app.chat.backend.name == "tiny"
            await command(pilot, app, "/models")
            await until(pilot, lambda: isinstance(app.screen, Choose))
            app.screen.query_one(OptionList).focus()
            await pilot.press("j", "enter")
            await until(pilot, lambda: app.chat.backend.name == "other" and state(app) == "ready")
            await say(pilot, app, "hi")
            assert server.requests[-1]["model"] == "other"


async def test_complete_changes_between_answers_and_raw_text() -> None:
    backend = ScriptedBackend("x", is_chat=True)
    app = NanochatApp(backend)
    async with app.run_test(size=(100, 30)) as pilot:
        await until(pilot, lambda: state(app) == "ready")
        await command(pilot, app, "/complete")
        await until(pilot, lambda: not app.chat.conversation.is_chat)
        assert app.chat.prompt.border_title == "Text to continue"
        await say(pilot, app, "fn ")
        assert (backend.requests[0].prompt, backend.requests[0].messages) == ("fn ", ())
        await command(pilot, app, "/complete")
        await until(pilot, lambda: app.chat.conversation.is_chat)
        assert not app.chat.conversation.turns, "a new session"
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
        assert app.chat.conversation.turns[0].parts == ["one", " two"]


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
        await until(pilot, lambda: app.chat.conversation.turns[0].prompt == "zebra")
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

        session = app.chat.info
        assert session is not None
        for key, left in (("n", 2), ("y", 1)):
            await command(pilot, app, "/delete")
            await until(pilot, lambda: isinstance(app.screen, Confirm))
            await pilot.press(key)
            await until(pilot, lambda left=left: len(app.chat.store.sessions().result(5)) == left)  # type: ignore[misc]
        assert app.chat.info is None


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
        await app.chat.show_stored(
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
                app.chat.max_tokens = None
                app.chat.prompt.text = "hi"
                await pilot.press("enter")
                await until(
                    pilot, lambda: "word30 " in app.chat.conversation.turns[0].reply if app.chat._runs else False
                )
                os.kill(process.pid, signal.SIGKILL)
                await until(pilot, lambda: state(app) == "ready")
                assert "Ctrl+R tries again" in shown(app)
                assert app.chat.info is not None
                (turn,) = app.chat.store.load(app.chat.info.id).result(5).turns
                assert turn.reply.startswith("word0 word1 ")
                assert "word30 " in turn.reply
                await pilot.press("ctrl+r")
                await until(pilot, lambda: "There is no server" in shown(app), 20)
                await until(pilot, lambda: state(app) == "ready")
                assert app.chat.conversation.turns[0].reply == turn.reply, "trying again costs nothing"
                assert "word30 " in shown(app)
                (kept,) = app.chat.store.load(app.chat.info.id).result(5).turns
                assert kept.reply == turn.reply
        finally:
            process.kill()
