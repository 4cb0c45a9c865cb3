"""Take the screenshots of the README from the real application on a real model.

    python scripts/screenshots.py [MODEL] [--out screenshots] [--only chat,inspect] [--other FILE]

Writes SVG, and PNG beside it where a Chromium is installed. What the model says is not picked: seed and prompts are
fixed below, and the pictures show whatever comes. `--other` is a second file of the same model, such as an earlier
checkpoint, for the picture of a comparison; without it that picture is not taken.
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

from nanochat_tui.chat.local import LocalBackend
from nanochat_tui.errors import UserError
from nanochat_tui.model.shipped import shipped_model
from nanochat_tui.tui.app import NanochatApp
from nanochat_tui.tui.inspect.compare import ComparePane
from nanochat_tui.tui.inspect.screen import InspectScreen

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
    before = app.chat._runs
    await pilot.press("enter")
    await wait(pilot, app, lambda: app.chat._runs > before and app.chat.status.state == "ready")


async def completion(pilot: Pilot[None], app: NanochatApp) -> None:
    app.chat.max_tokens = 160
    await say(pilot, app, "/// A point in the plane.\n#[derive(Debug, Clone, Copy, PartialEq)]\npub struct Point {")


async def writing(pilot: Pilot[None], app: NanochatApp) -> None:
    app.chat.prompt.text = "impl fmt::Display for Point {\n    fn fmt("
    await pilot.press("enter")
    await wait(pilot, app, lambda: app.chat.conversation.document.count("\n") > 8 or app.chat.status.state == "ready")


async def sampling(pilot: Pilot[None], app: NanochatApp) -> None:
    app.chat.max_tokens = 96
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
)


async def take(shot: Shot, model: Path, out: Path) -> Path:
    app = NanochatApp(LocalBackend(model))
    async with app.run_test(size=shot.size, notifications=True) as pilot:
        if not shot.name.startswith("inspect"):
            await wait(pilot, app, lambda: app.chat.ready)
            app.chat.sampling = replace(app.chat.sampling, seed=SEED)
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
    arguments = parser.parse_args()
    model = arguments.model or shipped_model()
    if model is None or not model.is_file():
        print("error: there is no model to show; give the path of a GGUF file.", file=sys.stderr)
        return 2
    arguments.out.mkdir(parents=True, exist_ok=True)
    shots = [*SHOTS, *INSPECT]
    if arguments.other is not None:
        shots.append(Shot("inspect-compare", (110, 34), comparing(arguments.other)))
    wanted = tuple(filter(None, arguments.only.split(",")))
    for shot in shots:
        if wanted and not shot.name.startswith(wanted):
            continue
        try:
            svg = asyncio.run(take(shot, model, arguments.out))
        except UserError as exc:
            print(f"error: {exc}", file=sys.stderr)
            return exc.exit_code
        png = to_png(svg)
        print(svg, png or "(no Chromium, so no PNG)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
