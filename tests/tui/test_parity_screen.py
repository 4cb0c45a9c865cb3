"""Parity with the project's own server, on the same file: the same tokens, and no divergence to speak of."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from openai_server import serving
from support import TINY, write_model
from test_app import say, state, until

from nanochat_tui.chat.local import LocalBackend
from nanochat_tui.chat.remote import RemoteBackend
from nanochat_tui.tui.app import NanochatApp
from nanochat_tui.tui.chat.parity_screen import ParityScreen


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("parity") / "random.gguf", TINY.with_(context_length=256))


async def test_a_server_that_says_something_else(model: Path) -> None:
    with serving() as server:
        app = NanochatApp(LocalBackend(model, threads=1))
        async with app.run_test(size=(120, 40)) as pilot:
            await until(pilot, lambda: state(app) == "ready", 120)
            app.chat.session.max_tokens = 8
            await say(pilot, app, "fn main() {")
            app.chat.prompt.text = f"/parity {server.url}"
            await pilot.press("enter")
            await until(pilot, lambda: isinstance(app.screen, ParityScreen) and app.screen.parity is not None, 30)
            assert isinstance(app.screen, ParityScreen)
            found = app.screen.parity
            assert found is not None
            assert not found.same
            assert found.common == 0
            sent = server.requests[-1]
            assert (sent["prompt"], sent["temperature"]) == ("fn main() {", 0.0)
            await pilot.press("escape")
            assert app.screen is app.chat


async def test_our_own_server_on_the_same_file_agrees_and_lets_replies_branch(model: Path) -> None:
    pytest.importorskip("fastapi")
    with own_server(model) as url:
        app = NanochatApp(LocalBackend(model, threads=1))
        async with app.run_test(size=(120, 40)) as pilot:
            await until(pilot, lambda: state(app) == "ready", 120)
            app.chat.session.max_tokens = 24
            await say(pilot, app, "fn main() {")
            app.chat.prompt.text = f"/parity {url}"
            await pilot.press("enter")
            await until(pilot, lambda: isinstance(app.screen, ParityScreen) and app.screen.parity is not None, 30)
            assert isinstance(app.screen, ParityScreen)
            found = app.screen.parity
            assert found is not None
            assert found.same
            assert found.common >= 20
            assert found.divergence == pytest.approx(0.0, abs=1e-6)
        app = NanochatApp(RemoteBackend(url))
        async with app.run_test(size=(120, 40)) as pilot:
            await until(pilot, lambda: state(app) == "ready", 30)
            assert not app.chat.session.conversation.is_chat, "the server says that the model has no template"
            assert app.chat.status.context_size == 256
            app.chat.session.max_tokens = 8
            await say(pilot, app, "fn main() {")
            await pilot.press("f5", "ctrl+r")
            await until(
                pilot, lambda: state(app) == "ready" and bool(app.chat.lens.ribbon and app.chat.lens.ribbon.tokens)
            )
            ribbon = app.chat.lens.ribbon
            assert ribbon is not None
            ribbon.focus()
            await pilot.press("home", "right")
            await until(pilot, lambda: ribbon.cursor == 1)
            place = next(i for i, c in enumerate(ribbon.choices) if c.text.strip() and i != ribbon.choice)
            expected = ribbon.tokens[0].text + ribbon.choices[place].text
            ribbon.choice = place
            await pilot.press("enter")
            await until(pilot, lambda: len(app.chat.session.conversation.turns[0].parts) == 2 and state(app) == "ready")
            assert app.chat.session.conversation.turns[0].parts[0] == expected


async def test_two_servers_are_compared() -> None:
    with (
        serving(logprobs=True, words=["a", " b", " c"]) as ours,
        serving(logprobs=True, words=["a", " b", " d"]) as other,
    ):
        app = NanochatApp(RemoteBackend(ours.url))
        async with app.run_test(size=(120, 40)) as pilot:
            await until(pilot, lambda: state(app) == "ready", 30)
            offered = [title for title, _, _ in app.chat.palette_commands()]
            assert "Compare with a server" in offered
            await say(pilot, app, "hi")
            app.chat.prompt.text = f"/parity {other.url}"
            await pilot.press("enter")
            await until(pilot, lambda: isinstance(app.screen, ParityScreen) and app.screen.parity is not None, 30)
            assert isinstance(app.screen, ParityScreen)
            assert app.screen.parity is not None
            assert app.screen.parity.common == 2
            assert [request["temperature"] for request in (ours.requests[-1], other.requests[-1])] == [0.0, 0.0]
            titles = [str(box.border_title) for box in app.screen.query("VerticalScroll")]
            assert ours.url in titles[0]
            assert other.url in titles[1], "two servers are told apart by their addresses"
            await pilot.press("r")
            await until(pilot, lambda: len(ours.requests) == 3 and app.screen.parity is not None, 30)  # type: ignore[attr-defined]
            backend = app.screen._backends[1]
            assert isinstance(backend, RemoteBackend)
            await pilot.press("escape")
            assert app.screen is app.chat
            assert backend._http is not None
            assert backend._http.is_closed, "no connection outlives the screen"
            await say(pilot, app, "again")


@contextmanager
def own_server(path: Path) -> Iterator[str]:
    from nanochat_tui.serve.loading import ModelFiles, loader
    from nanochat_tui.serve.runner import Server, bind
    from nanochat_tui.serve.service import Service
    from nanochat_tui.serve.settings import Settings

    listening = bind("127.0.0.1", 0)
    service = Service(loader(ModelFiles(path, threads=1)), Settings("tiny", log=lambda _: None))
    server = Server(service)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    end = time.monotonic() + 60
    while not server.started or service.state == "loading":
        assert time.monotonic() < end
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(120)
