"""The end of what a server writes to its standard error: the reason, when it does not start."""

from __future__ import annotations

import contextlib
import os
import threading
from typing import TextIO

from nanochat_tui.text import display_safe

KEPT = 4096
"""Bytes kept; a server may write for days."""


class Tail:
    """A pipe that is read to its end by a thread. `file` is given to the child, and closed here once it has it."""

    def __init__(self) -> None:
        source, target = os.pipe()
        self.file: TextIO = os.fdopen(target, "w", encoding="utf-8")
        self._held = b""
        self._thread = threading.Thread(target=self._read, args=(source,), name="mcp-stderr", daemon=True)
        self._thread.start()

    def _read(self, source: int) -> None:
        with contextlib.suppress(OSError), os.fdopen(source, "rb", buffering=0) as pipe:
            while piece := pipe.read(KEPT):
                self._held = (self._held + piece)[-KEPT:]

    def handed_over(self) -> None:
        """The child has its end, so that the pipe is over when the child is."""
        with contextlib.suppress(OSError):
            self.file.close()

    def last_line(self) -> str:
        """Return the last line that says something, in words for a terminal; '' if there is none."""
        self._thread.join(0.3)  # what a child that has just died wrote may still be in the pipe
        lines = [line for line in self._held.decode("utf-8", "replace").splitlines() if line.strip()]
        return display_safe(lines[-1].strip(), 160) if lines else ""
