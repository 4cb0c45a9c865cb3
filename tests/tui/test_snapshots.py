"""Whole screens of 80x24 and 200x60 as text, compared with what a person looked at. `SNAPSHOTS=write` makes them anew:
look at the difference before it is committed.

Text and not pictures, because fonts differ. What a processor rounds its own way and what Textual animates is masked,
and under another minor version of Textual, which may draw its widgets anew, a difference is reported but fails nothing.
"""

from __future__ import annotations

import os
import re
import time
from pathlib import Path

import pytest
import textual
from run_support import recorded_run
from scripted import ScriptedBackend
from support import write_model
from test_app import say, state, until
from textual.pilot import Pilot

from nanochat_tui.tui.app import NanochatApp
from nanochat_tui.tui.inspect.screen import InspectScreen
from nanochat_tui.tui.messages import OpenFile
from nanochat_tui.tui.train.screen import TrainScreen

FOLDER = Path(__file__).with_name("snapshots")
MADE_WITH = "8.2"
"""Minor version of Textual the snapshots were made with."""


def text_of(app: NanochatApp) -> str:
    """The screen's rows, without the blanks at their ends."""
    rows = [strip.text.rstrip() for strip in app.screen._compositor.render_strips()]
    text = "\n".join(rows) + "\n"
    text = re.sub(r"\d\.\de-\d\d", "#.#e-##", text)  # rounding errors
    text = re.sub(r" +[▁-█]+( +[\d.]+ tok/s)", r" ~\1", text)  # speed, as it happened to be
    return re.sub("[╸╺]", "━", text)  # the line under the tabs glides to its place


async def same(pilot: Pilot[None], app: NanochatApp, name: str) -> None:
    """Compare the screen once it has settled: on a busy machine the last thing drawn may be some way off."""
    path = FOLDER / f"{name}.txt"
    if os.environ.get("SNAPSHOTS") == "write":
        await pilot.pause(1.0)
        FOLDER.mkdir(exist_ok=True)
        path.write_text(text_of(app), encoding="utf-8")
    expected = path.read_text(encoding="utf-8")
    end = time.monotonic() + 60
    while (text := text_of(app)) != expected and time.monotonic() < end:
        await pilot.pause(0.1)
    if text != expected and not textual.__version__.startswith(MADE_WITH + "."):
        pytest.skip(f"{name} looks different under Textual {textual.__version__}:\n{text}")
    assert text.splitlines() == expected.splitlines()


async def test_completion_and_lens() -> None:
    app = NanochatApp(ScriptedBackend("\n    let x = 1;\n    println!(x);\n}"))
    async with app.run_test(size=(80, 24)) as pilot:
        await until(pilot, lambda: state(app) == "ready")
        await same(pilot, app, "welcome")
        await say(pilot, app, "fn main() {")
        await pilot.pause(0.2)
        await same(pilot, app, "completion")
        await pilot.press("f5")
        await until(pilot, lambda: app.chat.lens.ribbon is not None and app.chat.lens.ribbon.region.area > 0)
        await pilot.pause(0.2)
        await same(pilot, app, "lens")


async def test_conversation() -> None:
    reply = "It **borrows**:\n\n```rust\nfn f(x: &str) {}\n```\n\n1. no copy\n2. no move"
    app = NanochatApp(ScriptedBackend(reply, is_chat=True))
    async with app.run_test(size=(80, 24)) as pilot:
        await until(pilot, lambda: state(app) == "ready")
        await say(pilot, app, "What does & mean?")
        await pilot.pause(0.2)
        await same(pilot, app, "conversation")


async def test_a_conversation_on_a_large_terminal() -> None:
    reply = "It **borrows**:\n\n```rust\nfn f(x: &str) {}\n```\n\n1. no copy\n2. no move"
    app = NanochatApp(ScriptedBackend(reply, is_chat=True))
    async with app.run_test(size=(200, 60)) as pilot:
        await until(pilot, lambda: state(app) == "ready")
        await say(pilot, app, "What does & mean?")
        await pilot.pause(0.2)
        await same(pilot, app, "conversation-large")


@pytest.mark.parametrize(("size", "name"), [((80, 24), "train"), ((200, 60), "train-large")])
async def test_train_dashboard(tmp_path: Path, size: tuple[int, int], name: str) -> None:
    app = NanochatApp(ScriptedBackend("x"), runs=recorded_run(tmp_path / "d20"))
    async with app.run_test(size=size) as pilot:
        await until(pilot, lambda: state(app) == "ready")
        await pilot.press("f4")
        await until(pilot, lambda: isinstance(app.screen, TrainScreen) and app.screen.seen is not None)
        await pilot.pause(0.5)
        await same(pilot, app, name)


async def test_inspector(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # the path stands on the screen
    write_model(Path("tiny.gguf"))
    app = NanochatApp(ScriptedBackend("x"))
    async with app.run_test(size=(80, 24)) as pilot:
        await until(pilot, lambda: state(app) == "ready")
        app.post_message(OpenFile(Path("tiny.gguf")))
        await until(pilot, lambda: isinstance(app.screen, InspectScreen) and app.screen.opened is not None)
        screen = app.screen
        assert isinstance(screen, InspectScreen)
        for tab in ("overview", "mhc"):
            screen.go_to(tab)
            await until(pilot, lambda: not screen.pane.is_working)
            await pilot.pause(0.5)
            await same(pilot, app, f"inspect-{tab}")
