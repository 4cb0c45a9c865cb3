"""Texts that name a key name the one a person chose."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from scripted import ScriptedBackend
from test_app import say, shown, state, until
from textual.widgets import Markdown

import nanochat_tui.tui
from nanochat_tui.tui.app import NanochatApp
from nanochat_tui.tui.key_owners import key_owners
from nanochat_tui.tui.keys import NAMED, KeyNames, remappable, written
from nanochat_tui.tui.preferences import Preferences

KNOWN = {one.id: one.default for one in remappable([NanochatApp, *key_owners()])}
LOOKS_LIKE_A_KEY = re.compile(r"\b(?:(?:Ctrl|Alt|Shift)\+\w+|F(?:[1-9]|1[0-2]))\b")
LETTER_DOES = re.compile(
    r"(?:^|[;.(·] +)([a-zA-Z/]) (?:opens|chooses|starts|shows|takes|goes|ends|leaves|searches|unfolds|resumes|continues"
    r"|computes|brings|writes|stops)\b"
)
FIXED = {"Ctrl+C", "Ctrl+Page"}
"""Keys that cannot be changed: the terminal's copy, and a second key of a binding."""


def texts() -> Iterator[tuple[str, str]]:
    """Every text of the application's code that is not a docstring, with its place."""
    for path in sorted(Path(nanochat_tui.tui.__path__[0]).rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        docstrings = {
            id(node.body[0].value)
            for node in ast.walk(tree)
            if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef))
            and node.body
            and isinstance(node.body[0], ast.Expr)
        }
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings:
                yield f"{path.name}:{node.lineno}", node.value


def test_every_key_in_a_text_is_one_that_exists_and_is_called_as_it_is() -> None:
    count = 0
    for place, text in texts():
        for binding, default in NAMED.findall(text):
            count += 1
            assert binding in KNOWN, f"{place}: there is no binding {binding}"
            names = {written(key) for key in KNOWN[binding].split(",")}
            assert default in names, f"{place}: {binding} has {names}, not {default}"
    assert count > 150


def test_no_text_names_a_key_that_could_be_another_one() -> None:
    found = [
        f"{place}: {key}"
        for place, text in texts()
        for pattern in (LOOKS_LIKE_A_KEY, LETTER_DOES)
        for key in pattern.findall(NAMED.sub("", text))
        if key not in FIXED
    ]
    assert not found


@pytest.mark.parametrize("owner", [owner for owner in key_owners() if owner.__dict__.get("HELP")])
def test_the_help_of_a_widget_names_its_own_keys(owner: type) -> None:
    own = {written(key) for one in remappable([owner]) for key in one.default.split(",")}
    bold = re.findall(r"\*\*([^*]+)\*\*", owner.HELP)  # type: ignore[attr-defined]
    plain = {token for group in bold for token in NAMED.sub("", group).split() if token in own}
    assert not plain - {"Enter"}, "these stand in the text as they are"


@pytest.mark.parametrize(
    ("keys", "name"),
    [
        ("ctrl+r", "Ctrl+R"),
        ("escape,f2", "Esc"),
        ("f12", "F12"),
        ("ctrl+shift+left", "Ctrl+Shift+←"),
        ("G", "G"),
        ("g", "g"),
        ("slash", "/"),
        ("pagedown", "PageDown"),
        ("space", "Space"),
        ("ctrl+page_up", "Ctrl+Page up"),
    ],
)
def test_how_keys_are_written(keys: str, name: str) -> None:
    assert written(keys) == name


def test_names_are_put_into_texts() -> None:
    names = KeyNames({"chat.again": "ctrl+t"})
    text = "{chat.again|Ctrl+R} writes again, {chat.new|Ctrl+N} starts over; {not a key|x} {chat.again}"
    assert names(text) == "Ctrl+T writes again, Ctrl+N starts over; {not a key|x} {chat.again}"


async def test_notes_help_and_palette_follow_the_chosen_keys() -> None:
    keys = {"chat.again": "ctrl+t", "chat.sessions": "f6", "prompt.send": "ctrl+e", "turn.thoughts": "w"}
    app = NanochatApp(ScriptedBackend("!gone", "fine", is_chat=True), preferences=Preferences(keys=keys))
    async with app.run_test(size=(120, 40)) as pilot:
        await until(pilot, lambda: state(app) == "ready")
        assert "press Ctrl+E" in shown(app)
        assert "F6 shows earlier sessions" in shown(app)
        app.chat.prompt.text = "one"
        await pilot.press("ctrl+e")
        await until(pilot, lambda: "Ctrl+T to retry" in shown(app))
        await pilot.press("ctrl+t")
        await until(pilot, lambda: state(app) == "ready" and "fine" in shown(app))
        helps = [text for _, text, _ in app.chat.palette_commands()]
        assert "Replace the last reply by a new one (Ctrl+T)" in helps
        await pilot.press("f1")
        await until(pilot, lambda: bool(app.screen.query("#widget-help")))
        source = lambda: app.screen.query_one("#widget-help", Markdown).source  # noqa: E731
        await until(pilot, lambda: "**Ctrl+T** writes it again" in source())
        assert "{" not in source()


async def test_a_key_chosen_while_the_application_runs_is_named_at_once() -> None:
    app = NanochatApp(ScriptedBackend("fine", is_chat=True))
    async with app.run_test(size=(120, 40)) as pilot:
        await until(pilot, lambda: state(app) == "ready")
        app.apply_preferences(Preferences(keys={"chat.sessions": "f7"}))
        await pilot.press("ctrl+n")
        await until(pilot, lambda: "F7 shows earlier sessions" in shown(app))
        await say(pilot, app, "one")
