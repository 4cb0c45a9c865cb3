"""The train mode alone, and how to wait for it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path

from textual.pilot import Pilot

from nanochat_tui.tui.key_order import KeysInOrder
from nanochat_tui.tui.messages import ChatWith
from nanochat_tui.tui.theme import NANOCHAT
from nanochat_tui.tui.train.launch_form import LaunchForm
from nanochat_tui.tui.train.overview import RunOverview
from nanochat_tui.tui.train.screen import TrainScreen


class TrainApp(KeysInOrder):
    """Shows the screen and keeps what it asks of the chat."""

    def __init__(self, root: Path) -> None:
        super().__init__()
        self.train = TrainScreen(root)
        self.talks: list[ChatWith] = []
        self.said: list[str] = []

    def on_mount(self) -> None:
        self.register_theme(NANOCHAT)
        self.theme = NANOCHAT.name
        self.push_screen(self.train)

    def on_chat_with(self, event: ChatWith) -> None:
        self.talks.append(event)

    def notify(self, message: str, **options: object) -> None:  # type: ignore[override]
        self.said.append(message)
        super().notify(message, **options)  # type: ignore[arg-type]


async def until(pilot: Pilot[None], predicate: Callable[[], object], seconds: float = 120.0) -> None:
    end = time.monotonic() + seconds
    while not predicate():
        assert time.monotonic() < end, "waited in vain"
        await asyncio.sleep(0.02)
    await pilot.pause()


async def found(pilot: Pilot[None], app: TrainApp, count: int = 1) -> None:
    await until(pilot, lambda: len(app.train.query("RunList")) and len(app.train.runs.runs) >= count)


def overview(app: TrainApp) -> str:
    return str(app.train.query_one(RunOverview).render())


def inside(app: TrainApp) -> None:
    """Nothing on show reaches over the edge of the terminal; the footer scrolls its keys."""
    for widget in app.screen.query("*").exclude("FooterKey"):
        if widget.is_on_screen and widget.region.area:
            assert widget.region.x >= 0 and widget.region.right <= app.size.width, widget


async def launch_form(pilot: Pilot[None], app: TrainApp) -> LaunchForm:
    """Open the form of a new run by its key."""
    await until(pilot, lambda: app.train.is_mounted)
    await pilot.press("n")
    await until(pilot, lambda: app.train.query(LaunchForm))
    return app.train.query_one(LaunchForm)
