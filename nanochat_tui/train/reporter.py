"""What the trainer writes into its run directory on the way; a full disk delays it and never ends a training."""

from __future__ import annotations

import sys
import time
from typing import Any

from nanochat_tui.errors import WriteError, plain_reason
from nanochat_tui.runs.directory import Json, RunDirectory
from nanochat_tui.text import display_safe

HEARTBEAT_SECONDS = 10.0


class Reporter:
    """Log lines, rows and status of one run. Only checkpoints are written elsewhere."""

    def __init__(self, run: RunDirectory, *, silent: bool = False) -> None:
        """`silent`: another process of the training writes."""
        self.run, self.silent = run, silent
        self._waiting: list[tuple[str, Json]] = []
        self._said: set[str] = set()
        self._last_status = 0.0

    def log(self, text: str) -> None:
        """Print a line and append it to log.txt."""
        if self.silent:
            return
        try:
            print(text, flush=True)
        except OSError:  # the reader of the output is gone, or its file is full: the run continues
            self._say("standard output", None)
        try:
            self.run.path.mkdir(parents=True, exist_ok=True)
            with (self.run.path / "log.txt").open("a", encoding="utf-8") as file:
                file.write(text + "\n")
        except OSError as error:
            self._say("log.txt", error)

    def append(self, name: str, row: Json) -> None:
        """Append a row; while the disk refuses, rows wait in memory and keep their order."""
        if self.silent:
            return
        self._waiting.append((name, row))
        while self._waiting:
            try:
                self.run.append(*self._waiting[0])
            except OSError as error:
                self._say(self._waiting[0][0], error)
                return
            del self._waiting[0]

    def status(self, **fields: Any) -> None:
        """Replace status.json, if the system lets it."""
        self._last_status = time.monotonic()
        if self.silent:
            return
        try:
            self.run.write_status(**fields)
        except WriteError as error:
            self._say("status.json", error.__cause__)

    @property
    def is_late(self) -> bool:
        """Whether the last status is older than watchers should see."""
        return time.monotonic() - self._last_status > HEARTBEAT_SECONDS

    def _say(self, what: str, error: BaseException | None) -> None:
        if what in self._said:
            return
        self._said.add(what)
        reason = f": {plain_reason(error)}" if isinstance(error, OSError) else ""
        try:
            print(f"note: {display_safe(what)} cannot be written{reason}; the training continues", file=sys.stderr)
        except OSError:
            return
