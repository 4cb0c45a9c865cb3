"""The real application behind the page's pipes: impossible sizes, and pipes that vanish."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from support import TINY, write_model

from nanochat_tui.web.visitor import Visitor

pytestmark = pytest.mark.slow


@asynccontextmanager
async def application(folder: Path, *options: str) -> AsyncIterator[tuple[Visitor, bytearray]]:
    """Start the application as the server does, and collect what it draws."""
    model = write_model(folder / "m.gguf", TINY)
    variables = {**os.environ, "NANOCHAT_WEB_COMMANDS": "off"}
    variables |= {f"NANOCHAT_{kind}_DIR": str(folder / kind) for kind in ("CONFIG", "DATA", "STATE")}
    visitor = await Visitor.start([sys.executable, "-m", "nanochat_tui", "tui", str(model)], (100, 30), variables)
    drawn = bytearray()

    async def collect() -> None:
        async for kind, payload in visitor.packets():
            drawn.extend(payload if kind == "D" else b"")

    collecting = asyncio.create_task(collect())
    try:
        yield visitor, drawn
    finally:
        collecting.cancel()
        await asyncio.gather(collecting, return_exceptions=True)
        await visitor.end()
    assert not list(folder.rglob("crash-*.txt"))


async def until(drawn: bytearray, part: bytes) -> None:
    async with asyncio.timeout(60):
        while part not in drawn:
            await asyncio.sleep(0.05)


async def test_sizes_that_no_terminal_has_are_not_taken(tmp_path: Path) -> None:
    async with application(tmp_path) as (visitor, drawn):
        await until(drawn, b"ready")
        for width, height in ((0, 0), (-1, 10), (20_000, 20_000), (None, 3), ("x", 2), (1.5, 2)):
            await visitor.tell(type="resize", width=width, height=height)
        await visitor.tell(type="resize")
        await visitor.resize(120, 36)
        drawn.clear()
        await visitor.type("\x1bOS")  # F4
        await until(drawn, b"Dashboard")


@pytest.mark.parametrize("pipe", ["input", "output"])
async def test_it_ends_by_itself_when_a_pipe_is_gone(tmp_path: Path, pipe: str) -> None:
    async with application(tmp_path) as (visitor, drawn):
        await until(drawn, b"ready")
        process = visitor._process
        if pipe == "input":
            visitor._stdin.close()
        else:
            visitor._process._transport.get_pipe_transport(1).close()  # type: ignore[attr-defined]
            await visitor.type("hello")  # which it draws
        async with asyncio.timeout(30):
            assert await process.wait() == 0
