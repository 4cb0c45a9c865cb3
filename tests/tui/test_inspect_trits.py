"""The trit microscope: by keys, by mouse, without colours."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from inspect_app import SIZES, microscope, text, until
from support import TINY, write_model
from textual.color import Color
from textual.filter import monochrome_style
from textual.theme import BUILTIN_THEMES
from textual.widgets import Static

from nanochat_tui.formats.gguf import read_gguf
from nanochat_tui.tui.inspect.colours import LEAST_GREY, colours_of, grey, told_apart
from nanochat_tui.tui.inspect.layer_grid import _bar
from nanochat_tui.tui.inspect.trit_view import TritView
from nanochat_tui.tui.theme import THEMES

ALL_THEMES = [*THEMES, *(theme for name, theme in BUILTIN_THEMES.items() if not name.startswith("ansi"))]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("trits") / "model.gguf", TINY)


@pytest.mark.parametrize("size", SIZES)
async def test_the_microscope_shows_the_trits(model: Path, size: tuple[int, int]) -> None:
    async with microscope(model, size) as (pilot, _app, pane):
        view = pane.view
        await until(pilot, lambda: view.reader is not None)
        await pilot.press("t")
        with read_gguf(model) as file:
            trits = np.sign(file.array("blk.0.attn_q.weight")).astype(int)
        _, columns = view.cells
        drawn = "".join(segment.text for segment in view.render_line(3))
        assert [{"−": -1, "·": 0, "+": 1}[c] for c in drawn[::2].rstrip()] == trits[3, :columns].tolist()
        await pilot.press("o", "end")
        assert view.view.column == max(0, 128 - view.cells[1])
        await pilot.press("G")
        assert view.view.row == max(0, 128 - view.cells[0])
        await pilot.press("f")
        height, width = view.cells
        assert height * view.weights >= 128 and width * view.weights >= 128
        await pilot.press("g", "o", "L", "J")
        assert (view.view.row, view.view.column) == ((1, 1) if size == (80, 24) else (1, 0))
        await pilot.press("n")
        await until(pilot, lambda: pane.choice.value == "blk.0.attn_k.weight")
        await pilot.press("p", "p")
        await until(pilot, lambda: pane.choice.value == "blk.1.ffn_down.weight")


async def test_the_microscope_by_mouse(model: Path) -> None:
    async with microscope(model) as (pilot, app, pane):
        view = pane.view
        await pilot.hover(TritView, offset=(11, 4))
        await until(pilot, lambda: "row 8, column 11" in text(app, "#trit-status"))
        with read_gguf(model) as file:
            value = float(file.array("blk.0.attn_q.weight")[8, 11])
        assert f"= {value:+.5g}" in text(app, "#trit-status")
        await pilot.mouse_down(TritView, offset=(40, 12))
        await pilot.hover(TritView, offset=(30, 7))
        await pilot.mouse_up(TritView, offset=(30, 7))
        assert (view.view.row, view.view.column) == (10, 10)
        view._zoom_at(1, 0.0, 0.0)
        assert view.view.zoom == 2
        view._zoom_at(-1, 0.0, 0.0)
        view._zoom_at(-1, 0.0, 0.0)
        assert view.view.zoom == 0
        await pilot.press("minus", "minus", "m")
        await until(pilot, lambda: "density" in text(app, "#trit-status"))


async def test_a_large_picture_is_made_in_a_thread(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nanochat_tui.tui.inspect.trit_view.AT_ONCE", 100)
    async with microscope(model) as (pilot, _app, pane):
        await pilot.press("f")
        await until(pilot, lambda: pane.job("picture") is None and pane.view.view.zoom == 4)
        with read_gguf(model) as file:
            trits = np.sign(file.array("blk.0.attn_q.weight"))
        assert pane.view.mean_at(0, 0) == pytest.approx(trits[:4, :4].mean())


@pytest.mark.parametrize("theme", ALL_THEMES, ids=lambda theme: theme.name)
def test_trits_differ_without_colours_in_every_theme(theme: object) -> None:
    variables = theme.to_color_system().generate()  # type: ignore[attr-defined]
    zero = Color.parse(variables["surface-lighten-1"])
    minus, plus = told_apart(Color.parse(variables["secondary"]), Color.parse(variables["primary"]), zero)
    greys = sorted(grey(colour) for colour in (minus, zero, plus))
    assert greys[1] - greys[0] >= LEAST_GREY - 0.02 and greys[2] - greys[1] >= LEAST_GREY - 0.02, greys


async def test_the_map_its_legend_and_the_bars_are_drawn_with_those(model: Path) -> None:
    async with microscope(model) as (pilot, app, pane):
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
    async with microscope(model) as (pilot, app, pane):
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
