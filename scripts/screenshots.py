"""Take the screenshots of the README from the real application on a real model.

    cd ~/models && python scripts/screenshots.py [MODEL] [--only chat,inspect] [--other FILE] [--runs DIR]
        [--server URL] [--evaluations DIR]

Writes SVG, and PNG next to it where a Chromium is installed. What the model says is not picked: seed and prompts are
fixed below, and the pictures show whatever comes. `--other` is a second file of the same model, such as an earlier
checkpoint, for the pictures of a comparison; `--runs` is a folder of training runs, the first of which is opened (it is
only read); `--server` is a server of the same model, for the parity mode; `--evaluations` is a folder of that name
with two or more of the same problems. Without them those pictures are not taken.
Paths show in pictures, so run it from a neutral folder.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from pathlib import Path

from textual.pilot import Pilot
from textual.widgets import DataTable

from nanochat_tui.chat.local import LocalBackend
from nanochat_tui.errors import UserError
from nanochat_tui.model.shipped import shipped_model
from nanochat_tui.tui.app import NanochatApp
from nanochat_tui.tui.chat.parity_screen import ParityScreen
from nanochat_tui.tui.evaluate.screen import EvaluateScreen
from nanochat_tui.tui.inspect.compare import ComparePane
from nanochat_tui.tui.inspect.screen import InspectScreen
from nanochat_tui.tui.train.checkpoints_view import CheckpointsView
from nanochat_tui.tui.train.screen import TrainScreen

SEED = 20
PATIENCE = 300.0
"""Seconds for one reply; a first start may compile kernels."""


async def wait(pilot: Pilot[None], app: NanochatApp, done: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE
    while not done():
        if app.chat.status.state == "failed":
            raise UserError("The application could not load the model; run nanochat-tui inspect on it.")
        if time.monotonic() > end:
            raise UserError(f"Nothing came within {PATIENCE:g} seconds; is the machine busy?")
        await pilot.pause(0.05)
    await pilot.pause(0.3)


async def say(pilot: Pilot[None], app: NanochatApp, text: str) -> None:
    app.chat.prompt.text = text
    before = app.chat.replies.runs
    await pilot.press("enter")
    await wait(pilot, app, lambda: app.chat.replies.runs > before and app.chat.status.state == "ready")


async def completion(pilot: Pilot[None], app: NanochatApp) -> None:
    app.chat.session.max_tokens = 160
    await say(pilot, app, "/// A point in the plane.\n#[derive(Debug, Clone, Copy, PartialEq)]\npub struct Point {")


async def writing(pilot: Pilot[None], app: NanochatApp) -> None:
    app.chat.prompt.text = "impl fmt::Display for Point {\n    fn fmt("
    await pilot.press("enter")
    said = app.chat.session.conversation
    await wait(pilot, app, lambda: said.document.count("\n") > 8 or app.chat.status.state == "ready")


async def sampling(pilot: Pilot[None], app: NanochatApp) -> None:
    app.chat.session.max_tokens = 96
    await say(pilot, app, "fn main() {")
    await pilot.press("ctrl+s")
    await pilot.pause(0.3)


async def inspector(pilot: Pilot[None], app: NanochatApp, tab: str) -> InspectScreen:
    await pilot.press("f3")
    await wait(pilot, app, lambda: isinstance(app.screen, InspectScreen) and app.screen.opened is not None)
    screen = app.screen
    assert isinstance(screen, InspectScreen)
    screen.go_to(tab)
    await wait(pilot, app, lambda: not screen.pane.is_working)
    return screen


def inspecting(tab: str, *keys: str) -> Callable[[Pilot[None], NanochatApp], Awaitable[None]]:
    async def play(pilot: Pilot[None], app: NanochatApp) -> None:
        screen = await inspector(pilot, app, tab)
        await pilot.press(*keys)
        await wait(pilot, app, lambda: not screen.pane.is_working)

    return play


def comparing(other: Path) -> Callable[[Pilot[None], NanochatApp], Awaitable[None]]:
    async def play(pilot: Pilot[None], app: NanochatApp) -> None:
        pane = (await inspector(pilot, app, "compare")).pane
        assert isinstance(pane, ComparePane)
        pane.compare_with(other)
        await wait(pilot, app, lambda: pane.found is not None)
        pane.focus_first()
        await pilot.pause(0.3)

    return play


async def lens(pilot: Pilot[None], app: NanochatApp) -> None:
    app.chat.session.max_tokens = 48
    await say(pilot, app, "fn largest(values: &[i32]) -> Option<i32> {")
    await pilot.press("f5")
    ribbon = app.chat.lens.ribbon
    assert ribbon is not None
    await wait(pilot, app, lambda: bool(ribbon.choices) and all(token.top for token in ribbon.tokens))
    await pilot.press(*["right"] * 8, "down")
    await pilot.pause(0.3)


def parity(server: str) -> Callable[[Pilot[None], NanochatApp], Awaitable[None]]:
    async def play(pilot: Pilot[None], app: NanochatApp) -> None:
        app.chat.session.max_tokens = 64
        await say(pilot, app, "fn largest(values: &[i32]) -> Option<i32> {")
        app.chat.prompt.text = f"/parity {server}"
        await pilot.press("enter")
        await wait(pilot, app, lambda: isinstance(app.screen, ParityScreen) and app.screen.parity is not None)

    return play


async def live(pilot: Pilot[None], app: NanochatApp) -> None:
    app.chat.session.max_tokens = 96
    await pilot.press("ctrl+l")
    await say(pilot, app, "impl Iterator for Counter {\n    type Item = u32;\n")
    await wait(
        pilot, app, lambda: "decided" in "\n".join(strip.text for strip in app.screen._compositor.render_strips())
    )


async def palette(pilot: Pilot[None], app: NanochatApp) -> None:
    await completion(pilot, app)
    await pilot.press("ctrl+p")
    await pilot.pause(1.0)


async def preferences(pilot: Pilot[None], app: NanochatApp) -> None:
    await pilot.press("f9")
    await pilot.pause(1.0)
    await pilot.press("right")
    await pilot.pause(0.5)


async def training(pilot: Pilot[None], app: NanochatApp) -> TrainScreen:
    await pilot.press("f4")
    await wait(pilot, app, lambda: isinstance(app.screen, TrainScreen) and app.screen.runs.table.row_count > 0)
    screen = app.screen
    assert isinstance(screen, TrainScreen)
    return screen


def in_training(tab: str, *keys: str) -> Callable[[Pilot[None], NanochatApp], Awaitable[None]]:
    async def play(pilot: Pilot[None], app: NanochatApp) -> None:
        screen = await training(pilot, app)
        if tab == "compare":
            for _ in range(screen.runs.table.row_count):
                await pilot.press("space", "down")
        elif tab not in {"runs", "new"}:
            screen.runs.query_one(DataTable).action_cursor_up()
            await pilot.press("enter")
            await wait(pilot, app, lambda: screen.seen is not None)
        screen.tabs.active = tab
        await pilot.pause(2.5)
        await pilot.press(*keys)
        await pilot.pause(1.0)

    return play


async def launching(pilot: Pilot[None], app: NanochatApp) -> None:
    python, sys.executable = sys.executable, "python"  # the command line is shown, and this machine's path says nothing
    try:
        await in_training("new")(pilot, app)
        await pilot.pause(1.0)
    finally:
        sys.executable = python


async def scrubbing(pilot: Pilot[None], app: NanochatApp) -> None:
    await in_training("checkpoints")(pilot, app)
    assert isinstance(app.screen, TrainScreen)
    view = app.screen.query_one(CheckpointsView)
    view.action_scrub()
    await wait(pilot, app, lambda: len(view.done) + len(view.errors) == len(view.checkpoints))


def evaluating(tab: str) -> Callable[[Pilot[None], NanochatApp], Awaitable[None]]:
    async def play(pilot: Pilot[None], app: NanochatApp) -> None:
        await pilot.press("f6")
        await wait(pilot, app, lambda: isinstance(app.screen, EvaluateScreen) and len(app.screen.list.kept) > 1)
        screen = app.screen
        assert isinstance(screen, EvaluateScreen)
        if tab == "samples":
            await pilot.press("enter")
            await wait(pilot, app, lambda: screen.samples.count > 0)
        elif tab == "compare":
            await pilot.press("space", "down", "space")
        screen.tabs.active = tab
        await pilot.pause(3.0)

    return play


@dataclass(frozen=True)
class Shot:
    name: str
    size: tuple[int, int]
    play: Callable[[Pilot[None], NanochatApp], Awaitable[None]]


INSPECT = (
    Shot("inspect", (100, 30), inspecting("overview")),
    Shot("inspect-metadata", (100, 30), inspecting("metadata", "down", "down")),
    Shot("inspect-tensors", (110, 34), inspecting("tensors", "slash", *"b3fd", "enter")),
    Shot("inspect-weights", (110, 30), inspecting("weights", "m", "down", "down")),
    Shot("inspect-trits", (100, 34), inspecting("trits")),
    Shot("inspect-trits-far", (160, 48), inspecting("trits", "p", "minus", "minus")),
    Shot("inspect-mhc", (100, 30), inspecting("mhc", "down", "down", "down")),
    Shot("inspect-tokens", (90, 24), inspecting("tokens")),
)
"""The inspect mode; the model needs not be loaded for it."""

SHOTS = (
    Shot("chat", (100, 34), completion),
    Shot("chat-writing", (80, 24), writing),
    Shot("chat-sampling", (110, 30), sampling),
    Shot("chat-lens", (100, 34), lens),
    Shot("chat-live", (120, 40), live),
    Shot("chat-palette", (100, 30), palette),
    Shot("preferences", (100, 24), preferences),
)
TRAIN = (
    Shot("train-runs", (110, 20), in_training("runs")),
    Shot("train", (160, 48), in_training("dashboard")),
    Shot("train-small", (80, 24), in_training("dashboard")),
    Shot("train-checkpoints", (110, 30), scrubbing),
    Shot("train-compare", (110, 30), in_training("compare")),
    Shot("train-new", (110, 40), launching),
)
"""The train mode; needs runs to look at."""
EVALUATE = (
    Shot("evaluate", (110, 20), evaluating("kept")),
    Shot("evaluate-samples", (110, 34), evaluating("samples")),
    Shot("evaluate-compare", (110, 24), evaluating("compare")),
)
"""The evaluate mode; needs evaluations to look at."""


async def take(shot: Shot, model: Path, out: Path, runs: Path | None) -> Path:
    app = NanochatApp(LocalBackend(model), runs=runs)
    async with app.run_test(size=shot.size, notifications=True) as pilot:
        if not shot.name.startswith(("inspect", "train", "evaluate")):
            await wait(pilot, app, lambda: app.chat.model.ready)
            app.chat.session.sampling = replace(app.chat.session.sampling, seed=SEED)
        await shot.play(pilot, app)
        return Path(app.save_screenshot(f"{shot.name}.svg", path=str(out)))


def to_png(svg: Path) -> Path | None:
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if browser is None:
        return None
    box = re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', svg.read_text(encoding="utf-8"))
    if box is None:
        return None
    png = svg.with_suffix(".png")
    width, height = (int(float(value)) + 1 for value in box.groups())
    command = [browser, "--headless", "--disable-gpu", "--hide-scrollbars", "--default-background-color=00000000"]
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        command.append("--no-sandbox")  # Chromium refuses to run as root with it, as in a container
    command += [f"--window-size={width},{height}", f"--screenshot={png}", svg.resolve().as_uri()]
    subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, timeout=120, check=False)
    return png if png.exists() else None


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", type=Path, help="a GGUF file; left out, the shipped model")
    parser.add_argument("--out", type=Path, default=Path(__file__).resolve().parent.parent / "screenshots")
    parser.add_argument("--only", default="", help="beginnings of names, with commas: which pictures to take")
    parser.add_argument("--other", type=Path, help="a second file of the same model, to compare with")
    parser.add_argument("--runs", type=Path, help="a folder of training runs")
    parser.add_argument("--server", help="address of a server of the same model, to compare replies with")
    parser.add_argument("--evaluations", type=Path, help="a folder of evaluations of the same problems")
    arguments = parser.parse_args()
    model = arguments.model or shipped_model()
    if model is None or not model.is_file():
        print("error: there is no model to show; give the path of a GGUF file.", file=sys.stderr)
        return 2
    arguments.out.mkdir(parents=True, exist_ok=True)
    shots = [*SHOTS, *INSPECT]
    if arguments.other is not None:
        shots.append(Shot("inspect-compare", (110, 34), comparing(arguments.other)))
    if arguments.server is not None:
        shots.append(Shot("chat-parity", (110, 30), parity(arguments.server)))
    if arguments.runs is not None:
        shots.extend(TRAIN)
    if arguments.evaluations is not None:
        os.environ["NANOCHAT_DATA_DIR"] = str(arguments.evaluations.parent)
        shots.extend(EVALUATE)
    wanted = tuple(filter(None, arguments.only.split(",")))
    for shot in shots:
        if wanted and not shot.name.startswith(wanted):
            continue
        try:
            svg = asyncio.run(take(shot, model, arguments.out, arguments.runs))
        except UserError as exc:
            print(f"error: {exc}", file=sys.stderr)
            return exc.exit_code
        png = to_png(svg)
        print(svg, png or "(no Chromium, so no PNG)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
