"""The inspect mode without a mouse."""

from pathlib import Path

import pytest
from inspect_app import Host, opened, tab, until
from scripted import ScriptedBackend
from support import TINY, write_model
from textual.widgets import HelpPanel, Input

from nanochat_tui.tui.app import NanochatApp
from nanochat_tui.tui.inspect.trit_view import TritView
from nanochat_tui.tui.widgets.key_line import KeyLine


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("keys") / "tiny.gguf", TINY.with_(group_size=128))


async def test_keys_are_keys_on_the_tokens_tab(model: Path) -> None:
    app = Host(model)
    async with app.run_test(size=(80, 24)) as pilot:
        await opened(pilot, app)
        await tab(pilot, app, "tokens")
        field = app.inspector.query_one("#tokens-text", Input)
        await until(pilot, lambda: field.value)
        assert "] Next tab" in str(app.inspector.query_one(KeyLine).render())
        before = field.value
        await pilot.press("i")
        assert app.focused is field
        await pilot.press("end", "7", "slash")
        assert field.value == before + "7/"
        await pilot.press("escape", "slash")
        assert app.focused is app.inspector.query_one("#tokens-search", Input)
        await pilot.press("escape", "8")
        await until(pilot, lambda: app.inspector.pane.id == "pane-template")


async def test_hidden_keys_are_in_the_palette(model: Path, tmp_path: Path) -> None:
    app = Host(model)
    async with app.run_test(size=(80, 24)) as pilot:
        await opened(pilot, app)
        await tab(pilot, app, "compare")
        assert "Compare: Exchange" in {title for title, _, _ in app.inspector.palette_commands()}
        await tab(pilot, app, "trits")
        offers = {title: call for title, _, call in app.inspector.palette_commands()}
        assert "Trits: No crosshair" not in offers
        await offers["Trits: Read"]()  # type: ignore[misc]
        assert app.inspector.query_one(TritView).aiming
        assert "Trits: No crosshair" in {title for title, _, _ in app.inspector.palette_commands()}


async def test_help_is_scrolled_by_keys() -> None:
    app = NanochatApp(ScriptedBackend("x"))
    async with app.run_test(size=(80, 24)) as pilot:
        await pilot.press("alt+down")  # nothing to scroll
        await pilot.press("f1")
        await until(pilot, lambda: app.screen.query(HelpPanel))
        panel = app.screen.query_one(HelpPanel)
        await until(pilot, lambda: panel.max_scroll_y > 0)
        assert "Alt+↓ More help" in str(app.screen.query_one(KeyLine).render())
        focused = app.focused
        for _ in range(40):
            await pilot.press("alt+down")
        assert panel.scroll_y == panel.max_scroll_y
        keys = panel.query_one("#keys-help")
        assert keys.region.bottom <= panel.region.bottom + 1  # its last key was seen
        await pilot.press("alt+up")
        assert panel.scroll_y < panel.max_scroll_y and app.focused is focused
        await pilot.press("f1")
        await until(pilot, lambda: not app.screen.query(HelpPanel))
        await pilot.pause()
        assert "More help" not in str(app.screen.query_one(KeyLine).render())
