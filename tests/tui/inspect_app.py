"""The inspect mode alone, how to wait for it, and what it shows."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from textual.app import App
from textual.pilot import Pilot
from textual.widgets import Static

from nanochat_tui.tui.inspect.microscope import MicroscopePane
from nanochat_tui.tui.inspect.pane import Pane
from nanochat_tui.tui.inspect.screen import InspectScreen
from nanochat_tui.tui.messages import ChatWith
from nanochat_tui.tui.theme import NANOCHAT

SIZES = [(80, 24), pytest.param((200, 60), marks=pytest.mark.slow)]


class Host(App[None]):
    """Only the inspect mode."""

    def __init__(self, path: Path | None) -> None:
        super().__init__()
        self.inspector = InspectScreen(path)
        self.chats: list[Path] = []
        self.said: list[dict[str, str]] = []
        self.register_theme(NANOCHAT)
        self.theme = NANOCHAT.name

    def on_mount(self) -> None:
        self.push_screen(self.inspector)

    def on_chat_with(self, event: ChatWith) -> None:
        self.chats.append(event.path)

    def session_messages(self) -> list[dict[str, str]]:
        return self.said


async def until(pilot: Pilot[None], done: Callable[[], object]) -> None:
    for _ in range(400):
        if done():
            return
        await pilot.pause(0.01)
    raise AssertionError("it did not happen")


async def opened(pilot: Pilot[None], app: Host) -> None:
    screen = app.inspector
    await until(pilot, lambda: screen.opened is not None or screen.error is not None)
    await pilot.pause()


async def tab(pilot: Pilot[None], app: Host, name: str) -> Pane:
    app.inspector.go_to(name)
    await until(pilot, lambda: app.inspector.pane.id == f"pane-{name}" and app.inspector.pane.opened is not None)
    pane = app.inspector.pane
    await until(pilot, lambda: not pane.is_working)
    await pilot.pause()
    return pane


def text(app: Host, selector: str) -> str:
    return str(app.inspector.query_one(selector, Static).visual)


def screen_text(app: Host) -> str:
    strips = app.screen._compositor.render_strips()
    return "\n".join("".join(segment.text for segment in strip) for strip in strips)


@asynccontextmanager
async def microscope(
    model: Path, size: tuple[int, int] = (80, 24)
) -> AsyncIterator[tuple[Pilot[None], Host, MicroscopePane]]:
    """The trits of a model's first tensor, drawn."""
    app = Host(model)
    async with app.run_test(size=size) as pilot:
        await opened(pilot, app)
        pane = await tab(pilot, app, "trits")
        assert isinstance(pane, MicroscopePane)
        yield pilot, app, pane
