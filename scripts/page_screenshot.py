"""Make screenshots/page.png: the server's chat page in Chromium, with the shipped model and with probabilities shown.

    python scripts/page_screenshot.py [--chromium PATH]

Needs the `test` extra and Chromium.
"""

from __future__ import annotations

import argparse
import shutil
import threading
import time
from pathlib import Path

from playwright.sync_api import sync_playwright

from nanochat_tui.model.shipped import shipped_model
from nanochat_tui.serve.loading import ModelFiles, loader
from nanochat_tui.serve.runner import Server, bind
from nanochat_tui.serve.service import Service
from nanochat_tui.serve.settings import Settings

FOLDER = Path(__file__).resolve().parents[1] / "screenshots"
PROMPT = """/// Returns the sum of all even numbers.
fn sum_even(numbers: &[i32]) -> i32 {
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--chromium", default=shutil.which("chromium"))
    options = parser.parse_args()
    model = shipped_model()
    assert model is not None, "the shipped model is missing"
    service = Service(loader(ModelFiles(model)), Settings(model.stem))
    server = Server(service)
    listening = bind("127.0.0.1", 0)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    try:
        while service.state == "loading":
            time.sleep(0.05)
        with sync_playwright() as play:
            browser = play.chromium.launch(executable_path=options.chromium, args=["--no-sandbox"])
            page = browser.new_page(viewport={"width": 1000, "height": 640}, color_scheme="light")
            page.goto(f"http://127.0.0.1:{listening.getsockname()[1]}/")
            page.get_by_text("continues text").wait_for()
            page.click("#open")
            for name, value in (("max_tokens", 72), ("seed", 4)):
                page.fill(f"#{name}", str(value))
            page.click("#close")
            page.fill("#text", PROMPT)
            page.press("#text", "Enter")
            page.locator(".stats").wait_for()
            page.click("text=Probabilities")
            page.locator(".tokens span").nth(12).hover()
            page.screenshot(path=FOLDER / "page.png")
            browser.close()
    finally:
        server.should_exit = True
        thread.join()


if __name__ == "__main__":
    main()
