"""Textual's web driver, made to end with its page and to survive what a page may send."""

from __future__ import annotations

import os
import signal
import threading

from textual.drivers.web_driver import WebDriver

from nanochat_tui.tui.log import logger

LEAVE_SECONDS = 10.0
"""Time for the application to save and end once its page is gone; after that the process leaves by itself."""
LARGEST = (1000, 500)


class BrowserDriver(WebDriver):
    """Draws for `nanochat_tui.web`, over pipes whose other end may vanish at any moment."""

    def __init__(self, *arguments: object, **options: object) -> None:
        super().__init__(*arguments, **options)  # type: ignore[arg-type]
        self._gone = False
        self._write = self._write_all  # type: ignore[assignment]  # a partial of os.write, which may write a part

    def _write_all(self, data: bytes) -> int:
        rest = memoryview(data)
        try:
            while rest and not self._gone:
                rest = rest[os.write(self.fileno, rest) :]
        except OSError:
            self._leave()
        return len(data)

    def _leave(self) -> None:
        """End the application: there is no page to draw on. Nothing is said of it, for it is no failure."""
        if self._gone:
            return
        self._gone = True
        logger.info("the page is gone")
        timer = threading.Timer(LEAVE_SECONDS, os._exit, (128 + getattr(signal, "SIGHUP", 1),))
        timer.daemon = True
        timer.start()
        self.on_meta("quit", {})

    def run_input_thread(self) -> None:
        """Read what the page sends; its end is the end of the application."""
        super().run_input_thread()
        if not self.exit_event.is_set():
            self._leave()

    def on_meta(self, packet_type: str, payload: dict[str, object]) -> None:
        """Obey a message; a size that no terminal can have is not taken."""
        if packet_type == "resize":
            width, height = payload.get("width"), payload.get("height")
            if not (isinstance(width, int) and isinstance(height, int)):
                return
            if not (1 <= width <= LARGEST[0] and 1 <= height <= LARGEST[1]):
                return
        super().on_meta(packet_type, payload)
