"""Using the chat page in a browser as people do."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from servers import Running, wait_for
from test_streams import Scripted

CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
CHROMIUM = CHROMIUM or shutil.which("google-chrome")

Pages = Callable[..., Any]
"""Opens a page in a fresh browser context: the address, then options of the context."""


def chromium() -> Iterator[Any]:
    """Start Chromium; without it, or without Playwright's Python package (which brings none), the test is left out."""
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if CHROMIUM is None:
        pytest.skip("no Chromium here: set CHROMIUM or install the package chromium")
    with api.sync_playwright() as play:
        made = play.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield made
        made.close()


def opening(browser: Any) -> Iterator[Pages]:
    """Open pages; in the end none may have asked another server, complained or thrown."""
    opened = []

    def page(url: str, **options: Any) -> Any:
        context = browser.new_context(**{"viewport": {"width": 1000, "height": 800}, **options})
        made = context.new_page()
        asked: list[str] = []
        wrong: list[str] = []
        made.on("request", lambda request: asked.append(request.url))
        made.on("console", lambda message: wrong.append(message.text) if message.type == "error" else None)
        made.on("pageerror", lambda error: wrong.append(str(error)))
        made.complaints, made.asked = wrong, asked
        opened.append((url, made))
        made.goto(url)
        until(made, "server.known")
        return made

    yield page
    for url, made in opened:
        assert all(one.startswith((url, "data:", "blob:")) for one in made.asked), made.asked
        assert not made.complaints, made.complaints
        made.context.close()


def until(page: Any, expression: str) -> None:
    """Wait for an expression of the page to be true."""
    # Playwright's own waiting evaluates strings inside the page, which the page's policy forbids
    wait_for(lambda: page.evaluate(f"Boolean({expression})"), 120)


def finished(page: Any) -> None:
    """Wait for the end of the reply."""
    until(page, "running === null")


def settings(page: Any, **values: object) -> None:
    """Fill fields of the settings."""
    page.click("#open")
    for name, value in values.items():
        page.fill(f"#{name}", str(value))
    page.click("#close")


def send(page: Any, text: str) -> None:
    """Write a message and send it."""
    page.fill("#text", text)
    page.press("#text", "Enter")


def scripted(running: Running, monkeypatch: pytest.MonkeyPatch, pieces: list[str], pause: float = 0.0) -> None:
    """Let the server's engine say these pieces, with pauses of so many seconds."""
    monkeypatch.setattr(running.service, "submit", lambda *_, **__: Scripted(list(pieces), pause))


def answering(page: Any, *chunks: dict[str, Any], end: str = "data: [DONE]\n\n") -> None:
    """Let the page's next requests be answered by a stream of these choices, whatever the server would say."""
    body = "".join(f"data: {json.dumps({'choices': [chunk]})}\n\n" for chunk in chunks) + end
    page.unroute_all()
    page.route("**/v1/*completions", lambda route: route.fulfill(content_type="text/event-stream", body=body))
    page.route("**/v1/chat/completions", lambda route: route.fulfill(content_type="text/event-stream", body=body))
