"""Keys that come all at once have the effect they would have one by one."""

import asyncio

import pytest
from textual import events
from textual.app import ComposeResult
from textual.binding import Binding
from textual.containers import Container, Vertical
from textual.screen import ModalScreen
from textual.widgets import Input, TextArea

from nanochat_tui.tui.key_order import KeysInOrder


class Fields(KeysInOrder):
    BINDINGS = [Binding("f5", "replace", "Replace")]  # noqa: RUF012 - typed by Textual

    def compose(self) -> ComposeResult:
        with Container(), Vertical(), Container():  # a field is as deep in the application's
            yield Input("nosuchprogram --x", id="first")
            yield Input("", id="second")
            yield TextArea("", id="area")

    async def action_replace(self) -> None:
        first = self.query_one("#first", Input)
        await first.remove()
        self.query_one("#area").focus()


class Question(ModalScreen[None]):
    BINDINGS = [Binding("escape", "dismiss(None)", "Close")]  # noqa: RUF012

    def compose(self) -> ComposeResult:
        yield Input()


def burst(app: KeysInOrder, *keys: str) -> None:
    """As a terminal delivers what was pasted or sent to it: with nothing between the keys."""
    for key in keys:
        name = {" ": "space", "-": "minus"}.get(key, key)
        app.post_message(events.Key(name, key if len(key) == 1 else None))


async def settled(app: KeysInOrder) -> None:
    for _ in range(500):
        await asyncio.sleep(0.01)
        if not app._keys_waiting and app._key_under_way is None:
            return
    raise AssertionError("keys are stuck")


@pytest.mark.parametrize("pause", [None, 0.0, 0.001])
async def test_text_behind_the_key_that_empties_the_field_stays(pause: float | None) -> None:
    app = Fields()
    async with app.run_test() as pilot:
        field = app.query_one("#first", Input)
        field.focus()
        await pilot.pause()
        for key in ("ctrl+a", "ctrl+k", *"ssh host10"):
            burst(app, key)
            if pause is not None:
                await asyncio.sleep(pause)
        await settled(app)
        assert field.value == "ssh host10"


async def test_text_goes_to_the_field_that_tab_went_to() -> None:
    app = Fields()
    async with app.run_test() as pilot:
        app.query_one("#first", Input).focus()
        await pilot.pause()
        burst(app, "end", *"ab", "tab", *"cd", "tab", *"ef", "left", *"x")
        app.post_message(events.Paste("pasted"))
        burst(app, "enter", "y")
        await settled(app)
        await pilot.pause()
        assert app.query_one("#first", Input).value == "nosuchprogram --xab"
        assert app.query_one("#second", Input).value == "cd"
        assert app.query_one("#area", TextArea).text == "expasted\nyf"


async def test_a_widget_that_goes_with_its_key_holds_nothing_up() -> None:
    app = Fields()
    async with app.run_test() as pilot:
        app.query_one("#first", Input).focus()
        await pilot.pause()
        burst(app, "f5", *"abc")
        await settled(app)
        await pilot.pause()
        assert app.query_one("#area", TextArea).text == "abc"
        await app.push_screen(Question())
        await pilot.pause()
        burst(app, *"xyz", "escape", *"de")
        await settled(app)
        await pilot.pause()
        assert app.query_one("#area", TextArea).text == "abcde"
