"""Waiting for other threads without keeping the screen waiting."""

from __future__ import annotations

import asyncio
from concurrent.futures import Future
from typing import TypeVar

from textual.dom import DOMNode

from nanochat_tui.errors import UserError

T = TypeVar("T")


async def answer_of(node: DOMNode, future: Future[T]) -> T | None:
    """Return what a thread answers; an error a person can act on is shown as a notification and gives None."""
    try:
        return await asyncio.wrap_future(future)
    except UserError as exc:
        node.app.notify(str(exc), severity="error", timeout=8, markup=False)
        return None
