"""The inspect mode without a mouse and without colours."""

from pathlib import Path

import pytest
from scripted import ScriptedBackend
from support import TINY, write_model
from test_inspect import Host, opened, tab, text, until
from textual.color import Color
from textual.filter import monochrome_style
from textual.theme import BUILTIN_THEMES
from textual.widgets import HelpPanel, Input, Static

from nanochat_tui.formats.gguf import read_gguf
from nanochat_tui.tui.app import NanochatApp
from nanochat_tui.tui.inspect.colours import LEAST_GREY, colours_of, grey, told_apart
from nanochat_tui.tui.inspect.layer_grid import _bar
from nanochat_tui.tui.inspect.microscope import MicroscopePane
from nanochat_tui.tui.inspect.trit_view import TritView
from nanochat_tui.tui.theme import THEMES
from nanochat_tui.tui.widgets.key_line import KeyLine

ALL_THEMES = [*THEMES, *(theme for name, theme in BUILTIN_THEMES.items() if not name.startswith("ansi"))]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("keys") / "tiny.gguf", TINY.with_(group_size=128))


@pytest.mark.parametrize("theme", ALL_THEMES, ids=lambda theme: theme.name)
def test_trits_differ_without_colours_in_every_theme(theme: object) -> None:
    variables = theme.to_color_system().generate()  # type: ignore[attr-defined]
    zero = Color.parse(variables["surface-lighten-1"])
    minus, plus = told_apart(Color.parse(variables["secondary"]), Color.parse(variables["primary"]), zero)
    greys = sorted(grey(colour) for colour in (minus, zero, plus))
    assert greys[1] - greys[0] >= LEAST_GREY - 0.02 and greys[2] - greys[1] >= LEAST_GREY - 0.02, greys


async def test_the_map_its_legend_and_the_bars_are_drawn_with_those(model: Path) -> None:
    app = Host(model)
    async with app.run_test(size=(80, 24)) as pilot:
        await opened(pilot, app)
        pane = await tab(pilot, app, "trits")
        assert isinstance(pane, MicroscopePane)
        await pilot.press("t")
        view, colours = pane.view, colours_of(app)
        drawn: dict[str, set[float]] = {"−": set(), "·": set(), "+": set()}
        for segment in view.render_line(3):
            symbol = segment.text.strip()
            style = None if segment.style is None else monochrome_style(segment.style)
            if symbol in drawn and style is not None and style.bgcolor is not None:
                drawn[symbol].add(grey(Color.from_rich_color(style.bgcolor)))
        assert all(len(found) == 1 for found in drawn.values())
        minus, zero, plus = (found.pop() for found in drawn.values())
        assert min(abs(minus - zero), abs(plus - zero), abs(plus - minus)) >= LEAST_GREY - 0.02
        legend = [str(span.style) for span in pane.query_one("#trit-status", Static).render().spans]  # type: ignore[union-attr]
        for colour in (colours.minus, colours.zero, colours.plus):
            assert any(style.endswith(f"on {colour.hex6}") for style in legend)
        bar = _bar((0.25, 0.5, 0.25), 8, colours)
        shades = {grey(Color.from_rich_color(s.style.bgcolor)) for s in bar if s.style and s.style.bgcolor}
        assert {grey(c) for c in (colours.minus, colours.zero, colours.plus)} <= shades


async def test_a_weight_is_read_by_keys(model: Path) -> None:
    app = Host(model)
    async with app.run_test(size=(80, 24)) as pilot:
        await opened(pilot, app)
        pane = await tab(pilot, app, "trits")
        assert isinstance(pane, MicroscopePane)
        view = pane.view
        with read_gguf(model) as file:
            values = file.array("blk.0.attn_q.weight")
        assert "x, or the mouse, reads" in text(app, "#trit-status")
        await pilot.press("g", "x")
        assert view.pointed is not None
        row, column = view.pointed
        await pilot.press("down", "down", "right", "K")
        await until(pilot, lambda: f"row {row - 6}, column {column + 1}" in text(app, "#trit-status"))
        assert f"= {float(values[row - 6, column + 1]):+.5g}" in text(app, "#trit-status")
        assert (view.view.row, view.view.column) == (0, 0)
        # it is drawn where it is, in a colour that no weight has
        line = view.render_line((row - 6) // 2).crop(column + 1, column + 2)
        style = next(iter(line)).style
        assert style is not None and colours_of(app).pointer.rich_color in (style.color, style.bgcolor)
        # the window follows it, at every zoom
        for zoom in ("o", "t", "f"):
            await pilot.press(zoom, "g", *["J"] * 20, *["L"] * 20)
            assert view.pointed is not None
            assert view.pointed[0] >= 128 - view.weights and view.pointed[1] >= 128 - view.weights
            y, x = (
                (at - start) // view.weights
                for at, start in zip(view.pointed, (view.view.row, view.view.column), strict=True)
            )
            assert 0 <= y < view.cells[0] and 0 <= x < view.cells[1]
            for y in range(view.size.height):
                assert view.render_line(y).cell_length in (view.size.width, view._shades.shape[1])
        await pilot.press("n")  # another tensor keeps it
        await until(pilot, lambda: view.pointed == (0, 0))
        await pilot.press("escape")
        assert not view.aiming and view.pointed is None
        assert app.inspector.pane is pane


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
