"""What the program says about itself while it works: on stderr, and only to people or when it takes long."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Self

from nanochat_tui.chat.backend import NOTE, WARNING
from nanochat_tui.text import printable

SLOW = 2.0
"""Seconds of silence after which even a log deserves to know what is going on."""


STAYING = (NOTE, WARNING, "memory: ")
"""How a step begins that stays on the screen and is in every log."""


class Narration:
    """Shows the current step of a long start on one line of a terminal, erased when done; notes stay.

    Where stderr is not a terminal, steps are printed as lines, and only once `SLOW` seconds have passed.
    """

    def __init__(self) -> None:
        self._terminal = sys.stderr.isatty()
        self._began = time.monotonic()
        self._last = ""
        self._showing = False

    def __call__(self, step: str) -> None:
        """Say what is being done now; may be called from any thread."""
        if step == self._last:
            return
        self._last = step
        if step.startswith(STAYING):
            erase = "\r\x1b[2K" if self._showing else ""
            sys.stderr.write(f"{erase}{printable(step)}\n")
            self._showing = False
        elif self._terminal:
            sys.stderr.write(f"\r\x1b[2K\x1b[2m{step} …\x1b[0m")
            self._showing = True
        elif time.monotonic() - self._began > SLOW:
            sys.stderr.write(f"{step} …\n")
        sys.stderr.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._showing:
            sys.stderr.write("\r\x1b[2K")
            sys.stderr.flush()
