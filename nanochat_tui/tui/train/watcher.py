"""The thread that reads runs: a directory on another machine may let a read wait, and the screen must not.

It looks at most four times a second, by default once, and only while the open run is alive and the screen is on show.
While nothing is alive it only searches now and then, because runs are also started and ended elsewhere.
"""

from __future__ import annotations

import contextvars
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from textual.message import Message

from nanochat_tui.runs.compare import RunFigures, read_settings
from nanochat_tui.runs.discovery import find_runs
from nanochat_tui.runs.watch import RunWatch
from nanochat_tui.tui.chat.generation import explain
from nanochat_tui.tui.train.messages import RunsCompared, RunSeen, RunsFound, WatchFailed
from nanochat_tui.tui.train.panels import make_panels

LOOK_SECONDS = 1.0
SEARCH_SECONDS = 10.0
"""Time between searches for runs, while one of those found is alive."""
IDLE_SEARCH_SECONDS = 30.0
"""The same while none is."""
COMPARE_SECONDS = 5.0


class Watcher:
    """Reads the open run, the folder of runs and the compared runs; posts what it finds."""

    def __init__(self, root: Path, post: Callable[[Message], object], *, look_seconds: float = LOOK_SECONDS) -> None:
        self.root = root
        self.search_seconds = (SEARCH_SECONDS, IDLE_SEARCH_SECONDS)
        """Time between searches while a run is alive, and while none is."""
        self._post = post
        self._look_seconds = max(0.25, look_seconds)
        self._wake = threading.Condition()
        self._closed = self._paused = False
        self._asked = {"search"}
        self._watch: RunWatch | None = None
        self._compared: list[RunWatch] = []
        self._mhc_value = "alpha"
        self._starting_until = 0.0
        context = contextvars.copy_context()
        self._thread = threading.Thread(target=lambda: context.run(self._run), name="run-watcher", daemon=True)
        self.looks = 0
        """Looks at the open run so far, for the tests of idleness."""

    def start(self) -> None:
        """Begin with a search."""
        self._thread.start()

    def close(self) -> None:
        """End the thread at its next step, without waiting for a read that hangs."""
        with self._wake:
            self._closed = True
            self._wake.notify()

    def pause(self, paused: bool) -> None:
        """Sleep while nobody sees the screen."""
        with self._wake:
            self._paused = paused
            if not paused:
                self._asked |= {"search", "look", "compare"}
            self._wake.notify()

    def search(self) -> None:
        """Search for runs and look at the open ones now."""
        with self._wake:
            self._asked |= {"search", "look", "compare"}
            self._wake.notify()

    def expect_life(self, seconds: float = 120.0) -> None:
        """Keep looking for a while although the run is not alive: something was just started there."""
        with self._wake:
            self._starting_until = time.monotonic() + seconds
            self._asked |= {"search", "look"}
            self._wake.notify()

    def open(self, path: Path, name: str | None = None) -> None:
        """Follow this run from now on."""
        with self._wake:
            self._watch = RunWatch(path, name)
            self._asked |= {"look"}
            self._wake.notify()

    def compare(self, runs: Sequence[tuple[Path, str]]) -> None:
        """Read these runs for a comparison, and again while the open one is alive."""
        with self._wake:
            known = {watch.path: watch for watch in self._compared}
            self._compared = [known.get(path) or RunWatch(path, name) for path, name in runs]
            self._asked |= {"compare"}
            self._wake.notify()

    def show_mhc(self, value: str) -> None:
        """Draw alpha, p or q of the mHC records."""
        with self._wake:
            self._mhc_value = value
            self._asked |= {"look", "draw"}
            self._wake.notify()

    # the thread

    def _run(self) -> None:
        alive = listed_alive = False
        due = {"search": 0.0, "compare": 0.0}
        drawn: tuple[Path, int] | None = None
        while True:
            with self._wake:
                now = time.monotonic()
                lively = alive or now < self._starting_until
                next_search = due["search"] + self.search_seconds[not (alive or listed_alive)]
                if self._paused:
                    self._wake.wait()
                elif not self._asked:
                    until_search = max(0.0, next_search - now)
                    self._wake.wait(min(self._look_seconds, until_search) if lively else until_search)
                if self._closed:
                    return
                if self._paused:
                    continue
                asked, self._asked = self._asked, set()
                watch, compared, value = self._watch, list(self._compared), self._mhc_value
            now = time.monotonic()
            try:
                if "search" in asked or now >= next_search:
                    due["search"] = now
                    found = find_runs(self.root)
                    listed_alive = any(run.state.alive for run in found)
                    if watch is not None and any(run.path == watch.path and run.state.alive for run in found):
                        asked.add("look")  # perhaps it was resumed elsewhere
                    self._post(RunsFound(found))
                if watch is not None and (lively or asked):
                    snapshot = watch.look()
                    self.looks += 1
                    alive = snapshot.state.alive
                    revision = (watch.path, snapshot.revision)
                    panels = make_panels(snapshot.series, value) if revision != drawn or "draw" in asked else None
                    drawn = revision
                    self._post(RunSeen(snapshot, panels))
                if compared and ("compare" in asked or (alive and now - due["compare"] > COMPARE_SECONDS)):
                    due["compare"] = now
                    self._post(RunsCompared([self._figures(w) for w in compared]))
            except Exception as error:
                # a directory may go away under our hands; and whatever else it is, a thread that dies silently would
                # leave a picture on the screen that looks alive
                alive = listed_alive = False
                self._post(WatchFailed(explain(error)))

    def _figures(self, watch: RunWatch) -> RunFigures:
        return RunFigures(watch.name, watch.look().series, {} if watch.is_log else read_settings(watch.path))
