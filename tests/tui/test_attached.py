"""The application on a real server: attaching, dying servers, the lens by logprobs."""

from __future__ import annotations

from openai_server import WORDS, serving
from test_app import say, shown, state, until

from nanochat_tui.chat.remote import RemoteBackend
from nanochat_tui.tui.app import NanochatApp


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
            assert "Ctrl+R tries again" in shown(app)
            server.die_after = None
            await pilot.press("ctrl+r")
            await until(pilot, lambda: app.chat.conversation.turns[1].reply == "".join(WORDS) and state(app) == "ready")


async def test_attach_by_command_and_a_lens_from_logprobs() -> None:
    from scripted import ScriptedBackend

    with serving(owner="vllm") as server:
        app = NanochatApp(ScriptedBackend("x", is_chat=True))
        async with app.run_test(size=(100, 30)) as pilot:
            await until(pilot, lambda: state(app) == "ready")
            app.chat.prompt.text = f"/attach {server.url}"
            await pilot.press("enter")
            await until(pilot, lambda: app.chat.backend.name == "tiny" and state(app) == "ready")
            await say(pilot, app, "hi")
            await pilot.press("f5")
            await until(pilot, lambda: app.chat.ribbon is not None)
            assert "Ctrl+R asks again" in app.chat._lens_note
            await pilot.press("ctrl+r")
            await until(
                pilot, lambda: state(app) == "ready" and bool(app.chat.ribbon and app.chat.ribbon.tokens[0].top)
            )
            ribbon = app.chat.ribbon
            assert ribbon is not None
            ribbon.focus()
            await pilot.press("home", "right", "down", "enter")
            await until(pilot, lambda: server.requests[-1]["messages"][-1]["role"] == "assistant")
            assert server.requests[-1]["messages"][-1]["content"] == "Hello other"


async def test_branching_is_not_offered_where_the_server_cannot() -> None:
    with serving() as server:
        app = NanochatApp(RemoteBackend(server.url))
        async with app.run_test(size=(100, 30), notifications=True) as pilot:
            await until(pilot, lambda: state(app) == "ready")
            await say(pilot, app, "hi")
            await pilot.press("f5")
            await until(pilot, lambda: app.chat.ribbon is not None)
            count = len(server.requests)
            await pilot.press("ctrl+r")
            await until(pilot, lambda: len(server.requests) > count and state(app) == "ready")
            assert app.chat.ribbon is not None
            app.chat.ribbon.focus()
            count = len(server.requests)
            await pilot.press("home", "down", "enter")
            await until(pilot, lambda: any("no branching here" in n.message for n in app._notifications))
            assert len(server.requests) == count


async def test_no_server_is_a_welcome_with_ways_on() -> None:
    app = NanochatApp(RemoteBackend("http://127.0.0.1:9"))
    async with app.run_test(size=(80, 24)) as pilot:
        await until(pilot, lambda: state(app) == "failed", 20)
        assert "There is no server" in shown(app)
        assert "Ctrl+G" in shown(app)
