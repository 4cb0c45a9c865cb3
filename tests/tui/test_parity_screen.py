"""Parity with the project's own server, on the same file: the same tokens, and no divergence to speak of."""

from __future__ import annotations

from pathlib import Path

import pytest
from openai_server import serving
from support import TINY, write_model
from test_app import say, state, until

from nanochat_tui.chat.local import LocalBackend
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
            app.chat.max_tokens = 8
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
