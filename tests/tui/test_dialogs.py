"""The questions over every screen: one look, the same keys."""

from __future__ import annotations

import pytest
from textual.app import App
from textual.screen import Screen
from textual.widgets import Input, Static

from nanochat_tui.errors import UserError
from nanochat_tui.tui.widgets.dialogs import Ask, Choose, Confirm, Field

NOTHING = object()


class Host(App[None]):
    def __init__(self, dialog: Screen[object]) -> None:
        super().__init__()
        self.dialog = dialog
        self.answer: object = NOTHING

    def on_mount(self) -> None:
        self.push_screen(self.dialog, self.take)

    def take(self, answer: object) -> None:
        self.answer = answer


@pytest.mark.parametrize(
    ("keys", "answer"),
    [
        ("y", True),
        ("n", False),
        ("enter", False),
        ("escape", False),
        ("tab enter", True),
        ("right enter", True),
        ("right left enter", False),
        ("tab tab enter", False),
    ],
)
async def test_a_yes_or_no_by_letters_or_buttons(keys: str, answer: bool) -> None:
    app = Host(Confirm("Drop it?", "It is lost.", yes="Drop it", no="Keep it"))
    async with app.run_test(size=(100, 30)) as pilot:
        await pilot.press(*keys.split())
        assert app.answer is answer


@pytest.mark.parametrize("button", ["yes", "no"])
async def test_a_yes_or_no_by_mouse(button: str) -> None:
    app = Host(Confirm("Drop it?"))
    async with app.run_test(size=(100, 30)) as pilot:
        await pilot.click(f"#{button}")
        assert app.answer is (button == "yes")


@pytest.mark.parametrize("keys", [["enter"], ["tab", "tab", "enter"]])
async def test_lines_of_text_are_checked_and_stay_to_be_corrected(keys: list[str]) -> None:
    def check(values: list[str]) -> None:
        if not values[1].isdigit():
            raise UserError("a number, not \x1b[31m letters")

    app = Host(Ask("Resume", [Field("  a path ", "checkpoint"), Field("", "length", "no limit")], check=check))
    async with app.run_test(size=(100, 30)) as pilot:
        first, second = app.screen.query(Input)
        assert (first.value, second.placeholder) == ("  a path ", "no limit")
        assert app.focused is first
        problem = app.screen.query_one(".problem", Static)
        for text in ("x", "12"):
            second.value = text
            first.focus()
            await pilot.press(*keys)
            await pilot.pause()
            if text == "x":
                assert app.answer is NOTHING
                assert "a number, not \\x1b[31m letters" in str(problem.render())
        assert app.answer == ["a path", "12"]


async def test_escape_answers_nothing() -> None:
    for dialog in (Ask("Name", [Field("x")]), Choose("Which?", [("a", "first"), ("b", "")])):
        app = Host(dialog)  # type: ignore[arg-type]
        async with app.run_test(size=(100, 30)) as pilot:
            await pilot.press("escape")
            assert app.answer is None


async def test_one_of_several() -> None:
    app = Host(Choose("Which?", [("a", "first"), ("b", "")]))
    async with app.run_test(size=(100, 30)) as pilot:
        await pilot.press("j", "k", "j", "enter")
        assert app.answer == 1
