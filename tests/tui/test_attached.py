"""The application on a real server: attaching, dying servers, the lens by logprobs."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
from openai_server import WORDS, serving
from support import write_model
from test_app import say, shown, state, until
from textual.widgets import OptionList

from nanochat_tui.chat.remote import RemoteBackend
from nanochat_tui.chat.store import Store
from nanochat_tui.tui.app import NanochatApp


def keys_of(app: NanochatApp) -> set[str]:
    """What the line of keys offers."""
    return {binding.description for _, binding, _, _ in app.screen.active_bindings.values() if binding.show}


async def test_a_conversation_with_a_server_and_its_death_in_mid_reply() -> None:
    with serving() as server:
        app = NanochatApp(RemoteBackend(server.url))
        async with app.run_test(size=(100, 30)) as pilot:
            await until(pilot, lambda: state(app) == "ready")
            assert app.chat.status.model == "tiny"
            await say(pilot, app, "hi")
            assert "Hello there, dear reader!" in shown(app)
            assert app.chat.status.stats is not None
            assert app.chat.status.stats.decode_tps is not None
            server.die_after = 2
            await say(pilot, app, "again")
            assert "Hello there" in shown(app)
            assert "broke off in mid-reply" in shown(app)
            assert "Ctrl+R to retry" in shown(app)
            server.die_after = None
            await pilot.press("ctrl+r")
            second = app.chat.session.conversation.turns[1]
            await until(pilot, lambda: second.reply == "".join(WORDS) and state(app) == "ready")


async def test_a_key_over_plain_http_is_warned_of_in_the_application(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nanochat_tui.chat.remote.keys.is_loopback", lambda host: False)  # as a server elsewhere
    with serving() as server:
        app = NanochatApp(RemoteBackend(server.url, api_key="sk-1"))
        async with app.run_test(size=(100, 30), notifications=True) as pilot:
            await until(pilot, lambda: state(app) == "ready")
            await until(pilot, lambda: any("unencrypted" in note.message for note in app._notifications))


async def test_attach_by_command_and_a_lens_from_logprobs() -> None:
    from scripted import ScriptedBackend

    with serving(owner="vllm") as server:
        app = NanochatApp(ScriptedBackend("x", is_chat=True))
        async with app.run_test(size=(100, 30)) as pilot:
            await until(pilot, lambda: state(app) == "ready")
            app.chat.prompt.text = f"/attach {server.url}"
            await pilot.press("enter")
            await until(pilot, lambda: app.chat.model.backend.name == "tiny" and state(app) == "ready")
            await say(pilot, app, "hi")
            assert server.requests[-1]["top_logprobs"] == 8, "they cannot be had later"
            await pilot.press("f5")
            await until(pilot, lambda: bool(app.chat.lens.ribbon and app.chat.lens.ribbon.tokens[0].top))
            assert app.chat.lens.note == ""
            assert "Branch here" in keys_of(app)
            ribbon = app.chat.lens.ribbon
            assert ribbon is not None
            ribbon.focus()
            await pilot.press("home", "right", "down", "enter")
            await until(pilot, lambda: server.requests[-1]["messages"][-1]["role"] == "assistant")
            assert server.requests[-1]["messages"][-1]["content"] == "Hello other"


async def test_branching_is_not_offered_where_the_server_cannot() -> None:
    with serving() as server:
        app = NanochatApp(RemoteBackend(server.url))
        async with app.run_test(size=(100, 30)) as pilot:
            await until(pilot, lambda: state(app) == "ready")
            await say(pilot, app, "hi")
            await pilot.press("f5")
            await until(pilot, lambda: app.chat.lens.ribbon is not None)
            assert app.chat.lens.ribbon is not None
            assert app.focused is app.chat.lens.ribbon
            assert "Branch here" not in keys_of(app)
            count, session = len(server.requests), app.chat.session.info
            await pilot.press("home", "down", "enter")
            await pilot.pause(0.1)
            assert len(server.requests) == count
            assert app.chat.session.info is session


async def test_what_can_go_on_is_known_without_asking_from_the_event_loop() -> None:
    with serving(meta={"chat_template": False}) as server:
        app = NanochatApp(RemoteBackend(server.url))
        async with app.run_test(size=(100, 30)) as pilot:
            await until(pilot, lambda: state(app) == "ready")
            await say(pilot, app, "fn ")
            count = len(server.headers)
            assert app.chat.model.backend.can_continue(chat=False)
            assert not app.chat.model.backend.can_continue(chat=True)
            assert len(server.headers) == count, "nothing was sent"
            await pilot.press("f5")
            await until(pilot, lambda: app.chat.lens.ribbon is not None)
            assert "Branch here" in keys_of(app)
    with serving(meta={"chat_template": False}, completions=False) as server:
        backend = RemoteBackend(server.url)
        backend.load()
        assert not backend.can_continue(chat=False)


async def test_probabilities_of_another_day_were_not_kept_and_that_is_said(tmp_path: Path) -> None:
    with serving() as server:
        for visit in range(2):
            app = NanochatApp(RemoteBackend(server.url), store=Store(tmp_path / "s.db"))
            async with app.run_test(size=(100, 30)) as pilot:
                await until(pilot, lambda app=app: state(app) == "ready")  # type: ignore[misc]
                if visit == 0:
                    await say(pilot, app, "hi")
                    continue
                await until(pilot, lambda app=app: bool(app.chat.session.conversation.turns))  # type: ignore[misc]
                await pilot.press("f5")
                await until(pilot, lambda app=app: app.chat.lens.ribbon is not None)  # type: ignore[misc]
                assert "were not kept" in app.chat.lens.note
                server.logprobs = False
                await pilot.press("ctrl+r")
                await until(pilot, lambda: len(server.requests) == 2)
                await until(pilot, lambda app=app: state(app) == "ready")  # type: ignore[misc]
                await pilot.press("f5", "f5")
                await until(pilot, lambda app=app: "sent no probabilities" in app.chat.lens.note)  # type: ignore[misc]


async def test_no_server_is_a_welcome_with_ways_on() -> None:
    app = NanochatApp(RemoteBackend("http://127.0.0.1:9"))
    async with app.run_test(size=(80, 24)) as pilot:
        await until(pilot, lambda: state(app) == "failed", 20)
        assert "There is no server" in shown(app)
        assert "Ctrl+G" in shown(app)


async def test_models_of_a_server_are_listed_with_their_state_and_switched(tmp_path: Path) -> None:
    from nanochat_tui.serve.listed import find_files
    from nanochat_tui.serve.loading import ModelFiles
    from nanochat_tui.serve.runner import Server, bind
    from nanochat_tui.serve.settings import Settings
    from nanochat_tui.serve.several import SeveralModels

    for seed, name in enumerate(("first", "second")):
        write_model(tmp_path / f"{name}.gguf", seed=seed)
    files = ModelFiles(tmp_path, threads=1, max_sequences=2, kv_tokens=96)
    server = Server(SeveralModels(lambda: find_files(tmp_path), files, Settings("")))
    listening = bind("127.0.0.1", 0)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    try:
        app = NanochatApp(RemoteBackend(f"http://127.0.0.1:{listening.getsockname()[1]}"))
        async with app.run_test(size=(100, 30)) as pilot:
            await until(pilot, lambda: state(app) == "ready")
            assert app.chat.status.model == "first"
            await say(pilot, app, "fn main")  # which loads it
            app.chat.prompt.text = "/models"
            await pilot.press("enter")
            await until(pilot, lambda: app.screen is not app.chat and bool(app.screen.query(OptionList)))
            options = app.screen.query_one(OptionList)
            lines = [str(options.get_option_at_index(place).prompt) for place in range(options.option_count)]
            assert [line.split()[0] for line in lines] == ["first", "second"]
            assert "context 96, loaded" in lines[0] and "context 96, unloaded" in lines[1]
            await pilot.press("down", "enter")
            await until(pilot, lambda: app.chat.status.model == "second" and state(app) == "ready")
            await say(pilot, app, "let")
    finally:
        server.should_exit = True
        thread.join(120)
