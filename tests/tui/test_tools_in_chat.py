"""Tools in the application: shown, asked about, folded, kept, searched, stopped, listed."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from mcp_support import entry, write_config
from openai_server import Server, serving
from test_app import say, shown, state, until
from textual.containers import VerticalScroll
from textual.pilot import Pilot
from textual.widgets import Button, OptionList

from nanochat_tui.browser import COMMANDS_VARIABLE
from nanochat_tui.chat.remote import RemoteBackend
from nanochat_tui.chat.store import Store
from nanochat_tui.chat.tools.approvals import Approvals
from nanochat_tui.chat.tools.config import read_servers
from nanochat_tui.chat.tools.toolbox import Limits, Toolbox
from nanochat_tui.cli.tui import chat_tools
from nanochat_tui.tui.app import NanochatApp
from nanochat_tui.tui.chat.call_row import CallRow
from nanochat_tui.tui.chat.tool_slot import ToolSlot
from nanochat_tui.tui.chat.tools_screen import ToolsScreen
from nanochat_tui.tui.widgets.dialogs import Decide

pytest.importorskip("mcp")


@pytest.fixture(autouse=True)
def _keys_count_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Decide, "QUIET", 0.0)


@pytest.fixture
def marks(tmp_path: Path) -> Path:
    return tmp_path / "marks"


@contextmanager
def slot(tmp_path: Path, **servers: Any) -> Iterator[ToolSlot]:
    """A toolbox on the tests' server whose decisions are kept in a file."""
    servers = servers or {"t": entry(env={"MARKS": str(tmp_path / "marks")})}
    entries = read_servers(write_config(tmp_path / "mcp.json", **servers))
    made = Toolbox(entries, Approvals(tmp_path / "tools.json"), Limits())
    for server in made.servers.all:  # so that a busy machine does not make a reply continue without them
        made.servers.start(server)
    made.servers.wait(120, threading.Event())
    try:
        yield ToolSlot(made)
    finally:
        made.close()


def rows(app: NanochatApp) -> list[CallRow]:
    return list(app.chat.query(CallRow))


async def asked(pilot: Pilot[None], app: NanochatApp, text: str = "go") -> None:
    """Send a message and wait for the question about its call."""
    app.chat.prompt.text = text
    await pilot.press("enter")
    await until(pilot, lambda: isinstance(app.screen, Decide))


def ready(app: NanochatApp) -> Callable[[], bool]:
    return lambda: state(app) == "ready" and app.chat.replies.generation is None


def script(server: Server, *said: Any) -> None:
    server.script = list(said)


async def test_a_call_is_shown_asked_about_folded_and_kept(tmp_path: Path) -> None:
    with serving() as server, slot(tmp_path) as tools:
        app = NanochatApp(RemoteBackend(server.url), store=Store(tmp_path / "s.db"), tools=tools)
        async with app.run_test(size=(110, 40)) as pilot:
            await until(pilot, lambda: state(app) == "ready")
            script(server, [("t__echo", {"text": "zebra"})], "It said so.")
            await asked(pilot, app)
            (row,) = rows(app)
            assert row.record.state == "waiting"
            assert "zebra" in str(app.screen.query_one(".details").render())
            await pilot.press("o")
            await until(pilot, ready(app))
            assert row.record.state == "done"
            assert "t.echo" in str(row.render())
            assert "echo: zebra" not in str(row.render()), "the result is folded"
            assert "It said so." in shown(app)
            app.chat.transcript.focus()
            await pilot.press("x")
            assert "echo: zebra" in str(row.render())
            await pilot.press("x")
            assert "echo: zebra" not in str(row.render())
            # the next message brings the call and its result along
            script(server, "Yes.")
            app.chat.prompt.focus()
            await say(pilot, app, "really?")
            roles = [message["role"] for message in server.requests[-1]["messages"]]
            assert roles == ["user", "assistant", "tool", "assistant", "user"]
            hits = app.chat.session.store.search("echo: zebra").result(60)
            assert [hit.position for hit in hits] == [0]
            assert [hit.position for hit in app.chat.session.store.search("t.echo").result(60)] == [0]
        # and it is there again next time
        app = NanochatApp(RemoteBackend(server.url), store=Store(tmp_path / "s.db"))
        async with app.run_test(size=(110, 40)) as pilot:
            await until(pilot, lambda: state(app) == "ready" and bool(rows(app)))
            (row,) = rows(app)
            assert (row.record.state, row.record.result) == ("done", "echo: zebra")
            script(server, "Again.")
            await say(pilot, app, "and now?")
            assert [m["role"] for m in server.requests[-1]["messages"]].count("tool") == 1


async def test_always_and_never_are_kept_and_once_is_not(tmp_path: Path, marks: Path) -> None:
    with serving() as server, slot(tmp_path) as tools:
        app = NanochatApp(RemoteBackend(server.url), tools=tools)
        async with app.run_test(size=(110, 40)) as pilot:
            await until(pilot, lambda: state(app) == "ready")
            for key, outcome in (("o", "done"), ("escape", "denied"), ("a", "done")):
                script(server, [("t__echo", {"text": key})], "So.")
                await asked(pilot, app)
                await pilot.press(key)
                await until(pilot, ready(app))
                assert rows(app)[-1].record.state == outcome
            script(server, [("t__echo", {"text": "unasked"})], "So.")
            await say(pilot, app, "go")
            assert rows(app)[-1].record.state == "done"
            script(server, [("t__shifting", {})], "So.")
            await asked(pilot, app)
            await pilot.press("n")
            await until(pilot, ready(app))
            assert rows(app)[-1].record.state == "denied"
            script(server, "So.")
            await say(pilot, app, "go")
            names = [tool["function"]["name"] for tool in server.requests[-1]["tools"]]
            assert "t__echo" in names
            assert "t__shifting" not in names
        assert marks.read_text() == "echo o\necho a\necho unasked\n"


async def test_text_before_and_after_calls_stands_where_it_was_said(tmp_path: Path) -> None:
    with serving() as server, slot(tmp_path) as tools:
        app = NanochatApp(RemoteBackend(server.url), tools=tools)
        async with app.run_test(size=(110, 40)) as pilot:
            await until(pilot, lambda: state(app) == "ready")
            turn_before = b'data: {"choices": [{"delta": {"content": "Let me look."}}]}\n\n'
            function = {"name": "t__echo", "arguments": '{"text": "a"}'}
            calls = [{"index": index, "id": f"c{index}", "function": function} for index in range(2)]
            chunk = json.dumps({"choices": [{"delta": {"tool_calls": calls}}]})
            server.raw = [turn_before, f"data: {chunk}\n\n".encode(), b"data: [DONE]\n\n"]
            await asked(pilot, app)
            script(server, "There it is.")
            await pilot.press("a")
            await until(pilot, ready(app))
            turn = app.chat.session.conversation.turns[0]
            assert [(s.text, len(s.calls)) for s in turn.segments] == [("Let me look.", 2), ("There it is.", 0)]
            text = shown(app)
            assert text.index("Let me look.") < text.index("t.echo") < text.index("There it is.")
            await app.chat.transcript.redraw(turn)
            text = shown(app)
            assert text.index("Let me look.") < text.index("t.echo") < text.index("There it is.")
            server.raw = None
            script(server, "Other.")
            await pilot.press("ctrl+r")
            await until(pilot, lambda: ready(app)() and "Other." in shown(app))
            assert not rows(app)
            await pilot.press("alt+left")
            await until(pilot, lambda: len(rows(app)) == 2)


async def test_the_key_that_stops_a_reply_stops_a_tool(tmp_path: Path, marks: Path) -> None:
    with serving() as server, slot(tmp_path) as tools:
        app = NanochatApp(RemoteBackend(server.url), tools=tools)
        async with app.run_test(size=(110, 40)) as pilot:
            await until(pilot, lambda: state(app) == "ready")
            script(server, [("t__slow", {"seconds": 600})], "Never.")
            await asked(pilot, app)
            await pilot.press("o")
            await until(pilot, marks.exists)
            assert rows(app)[0].record.state == "running"
            await pilot.press("escape")
            await until(pilot, ready(app))
            assert rows(app)[0].record.state == "cancelled"
            script(server, "Fine.")
            await say(pilot, app, "go on")
            assert "Fine." in shown(app)


async def test_typing_does_not_answer_the_question(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, marks: Path
) -> None:
    monkeypatch.setattr(Decide, "QUIET", 3600.0)
    with serving() as server, slot(tmp_path) as tools:
        app = NanochatApp(RemoteBackend(server.url), tools=tools)
        async with app.run_test(size=(110, 40)) as pilot:
            await until(pilot, lambda: state(app) == "ready")
            script(server, [("t__echo", {"text": "x"})], "So.")
            await asked(pilot, app)
            await pilot.press(*"a long noun", "enter")
            assert isinstance(app.screen, Decide)
            assert not marks.exists()
            monkeypatch.setattr(Decide, "QUIET", 0.0)
            await pilot.press("escape")
            await until(pilot, ready(app))
            assert not marks.exists()


async def test_long_arguments_can_be_read_to_their_end_on_a_small_terminal(tmp_path: Path) -> None:
    with serving() as server, slot(tmp_path) as tools:
        app = NanochatApp(RemoteBackend(server.url), tools=tools)
        async with app.run_test(size=(80, 24)) as pilot:
            await until(pilot, lambda: state(app) == "ready")
            script(server, [("t__echo", {"text": "word " * 1000})], "So.")
            await asked(pilot, app)
            details = app.screen.query_one(VerticalScroll)
            await until(pilot, lambda: details.max_scroll_y > 0)
            assert all(button.region.bottom < 24 for button in app.screen.query(Button)), "the answers are in view"
            before = details.scroll_y
            await pilot.press("pagedown")
            await until(pilot, lambda: details.scroll_y > before)
            await pilot.press("escape")
            await until(pilot, ready(app))


async def test_a_server_that_fails_is_a_note_and_the_chat_goes_on(tmp_path: Path) -> None:
    servers = {"bad": {"command": "no-such-program-anywhere"}}
    with serving(script=["Hello."]) as server, slot(tmp_path, **servers) as tools:
        app = NanochatApp(RemoteBackend(server.url), tools=tools)
        async with app.run_test(size=(110, 40), notifications=True) as pilot:
            await until(pilot, lambda: state(app) == "ready")
            await say(pilot, app, "hi")
            assert "Hello." in shown(app)
            assert any("The tools of bad are missing" in note.message for note in app._notifications)


async def test_tools_are_listed_turned_off_and_forgotten(tmp_path: Path) -> None:
    with serving() as server, slot(tmp_path) as tools:
        assert tools.toolbox is not None
        approvals = tools.toolbox.approvals
        echo = next(tool for tool in tools.toolbox.tools() if tool.name == "echo")
        approvals.decide(echo, "always")
        app = NanochatApp(RemoteBackend(server.url), tools=tools)
        async with app.run_test(size=(120, 40)) as pilot:
            await until(pilot, lambda: state(app) == "ready")
            app.chat.prompt.text = "/tools"
            await pilot.press("enter")
            await until(pilot, lambda: isinstance(app.screen, ToolsScreen))
            options = app.screen.query_one(OptionList)
            await until(pilot, lambda: options.option_count == 11)

            def line(at: int) -> str:
                return str(options.get_option_at_index(at).prompt)

            assert "ready · 10 tools" in line(0)
            assert "always allowed" in line(1)
            options.highlighted = 1
            await pilot.press("f")
            await until(pilot, lambda: "asks" in line(1))
            assert approvals.decision(echo) is None
            await pilot.press("space")
            await until(pilot, lambda: "off" in line(1))
            assert "echo" not in [tool.name for tool in tools.toolbox.tools()]
            options.highlighted = 0
            await pilot.press("space")
            await until(pilot, lambda: options.option_count == 1 and "off" in line(0))
            await pilot.press("space")
            await until(pilot, lambda: options.option_count == 11)
            await pilot.press("escape")
            await until(pilot, lambda: app.screen is app.chat)


@pytest.mark.parametrize("allowed", ["off", "on", None])
def test_tools_are_off_in_a_page_unless_commands_are_allowed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, allowed: str | None
) -> None:
    config = write_config(tmp_path / "mcp.json", t=entry())
    monkeypatch.setenv("NANOCHAT_CONFIG_DIR", str(tmp_path))
    if allowed is not None:
        monkeypatch.setenv(COMMANDS_VARIABLE, allowed)
    for given in (None, config):
        found, wrong = chat_tools(given, 8, 60.0)
        assert wrong == ""
        assert (found.toolbox is None) == (allowed == "off")
        assert ("--allow-commands" in found.reason) == (allowed == "off")


def test_a_file_of_ones_own_that_is_wrong_is_said_and_stops_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NANOCHAT_CONFIG_DIR", str(tmp_path))
    (tmp_path / "mcp.json").write_text("{")
    found, wrong = chat_tools(None, 8, 60.0)
    assert found.toolbox is None
    assert "is not JSON" in wrong


async def test_without_servers_the_command_says_where_to_write_them() -> None:
    with serving() as server:
        app = NanochatApp(RemoteBackend(server.url), tools=ToolSlot(None, "No servers of tools are configured; …"))
        async with app.run_test(size=(110, 40), notifications=True) as pilot:
            await until(pilot, lambda: state(app) == "ready")
            app.chat.prompt.text = "/tools"
            await pilot.press("enter")
            await until(pilot, lambda: any("No servers" in note.message for note in app._notifications))
