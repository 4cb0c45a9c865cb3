"""The thread that reads runs: a directory on another machine may let a read wait, and the screen must not.

It looks at the open run up to four times a second, by default once, and only while that is alive and the mode is on
show. At the other runs it glances, which costs two or three `stat`s each, so that the list keeps up with them; while
another mode is on show it glances only at those that live, because their end is news everywhere.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from textual.message import Message

from nanochat_tui.runs.compare import RunFigures, read_settings
from nanochat_tui.runs.discovery import FoundRun, find_runs, look_again
from nanochat_tui.runs.state import ALIVE, RunState
from nanochat_tui.runs.watch import RunWatch
from nanochat_tui.tui.background import explain, start_thread
from nanochat_tui.tui.train.messages import RunEnded, RunsCompared, RunSeen, RunsFound, WatchFailed
from nanochat_tui.tui.train.panels import make_panels

LOOK_SECONDS = 1.0
GLANCE_SECONDS = 2.0
"""Time between glances at the runs that are known."""
AWAY_SECONDS = 5.0
"""The same while another mode is on show, at those that live."""
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
        self.glance_seconds = (GLANCE_SECONDS, AWAY_SECONDS)
        """Time between glances while the mode is on show, and while it is not."""
        self._post = post
        self._look_seconds = max(0.25, look_seconds)
        self._wake = threading.Condition()
        self._closed = self._paused = False
        self._asked = {"search"}
        self._watch: RunWatch | None = None
        self._extra: list[FoundRun] = []
        self._compared: list[RunWatch] = []
        self._mhc_value = "alpha"
        self._starting_until = 0.0
        self._known: dict[Path, FoundRun] = {}
        """What the thread found last, by path."""
        self._open_life = ""
        self.looks = 0
        """Looks at the open run so far, for the tests of idleness."""

    def start(self) -> None:
        """Begin with a search."""
        start_thread("run-watcher", self._run)

    def close(self) -> None:
        """End the thread at its next step, without waiting for a read that hangs."""
        with self._wake:
            self._closed = True
            self._wake.notify()

    def pause(self, paused: bool) -> None:
        """Look only for the ends of living runs while the screen is not on show."""
        with self._wake:
            if paused != self._paused:
                self._paused = paused
                if not paused:
                    self._asked |= {"search", "look", "compare"}
                self._wake.notify()

    def search(self) -> None:
        """Search for runs and look at the open ones now."""
        self._ask("search", "look", "compare")

    def expect_life(self, seconds: float = 120.0) -> None:
        """Keep looking for a while although the run is not alive: something was just started there."""
        self._starting_until = time.monotonic() + seconds
        self._ask("search", "look")

    def open(self, path: Path, name: str | None = None) -> None:
        """Follow this run from now on."""
        with self._wake:
            self._watch = RunWatch(path, name)
        self._ask("look")

    def add(self, run: FoundRun) -> None:
        """Keep up with a run outside the folder too."""
        with self._wake:
            self._extra = [r for r in self._extra if r.path != run.path] + [run]

    def compare(self, runs: Sequence[tuple[Path, str]]) -> None:
        """Read these runs for a comparison, and again while the open one is alive."""
        with self._wake:
            known = {watch.path: watch for watch in self._compared}
            self._compared = [known.get(path) or RunWatch(path, name) for path, name in runs]
        self._ask("compare")

    def show_mhc(self, value: str) -> None:
        """Draw alpha, p or q of the mHC records."""
        self._mhc_value = value
        self._ask("look", "draw")

    def _ask(self, *what: str) -> None:
        with self._wake:
            self._asked |= set(what)
            self._wake.notify()

    # the thread

    def _run(self) -> None:
        due = {"search": 0.0, "glance": 0.0, "look": 0.0, "compare": 0.0}
        drawn: tuple[Path, int] | None = None
        while True:
            with self._wake:
                while not self._closed and (self._paused or not self._asked):
                    seconds = self._until_next(due)
                    if seconds is not None and seconds <= 0:
                        break
                    self._wake.wait(seconds)
                if self._closed:
                    return
                paused = self._paused
                asked = set() if paused else self._asked
                if not paused:
                    self._asked = set()
                watch, compared, value = self._watch, list(self._compared), self._mhc_value
            now = time.monotonic()
            try:
                if paused or ("search" not in asked and now < due["search"]):
                    if now >= due["glance"]:
                        self._glance(only_alive=paused)
                else:
                    self._found({run.path: run for run in find_runs(self.root)})
                    due["search"] = now + self.search_seconds[not self._any_alive]
                due["glance"] = now + self.glance_seconds[paused]
                if paused:
                    continue
                if watch is not None and (asked or (self._lively and now >= due["look"])):
                    due["look"] = now + self._look_seconds
                    snapshot = watch.look()
                    self.looks += 1
                    self._open_life = snapshot.state.life
                    revision = (watch.path, snapshot.revision)
                    panels = make_panels(snapshot.series, value) if revision != drawn or "draw" in asked else None
                    drawn = revision
                    self._post(RunSeen(snapshot, panels))
                if compared and ("compare" in asked or (self._any_alive and now >= due["compare"])):
                    due["compare"] = now + COMPARE_SECONDS
                    self._post(RunsCompared([self._figures(w) for w in compared]))
            except Exception as error:
                # a directory may go away under our hands; and whatever else it is, a thread that dies silently would
                # leave a picture on the screen that looks alive
                self._open_life = ""
                self._known = {}
                due["search"] = now + self.search_seconds[1]
                self._post(WatchFailed(explain(error)))

    @property
    def _open_alive(self) -> bool:
        return self._open_life in ALIVE

    @property
    def _any_alive(self) -> bool:
        return self._open_alive or any(run.state.alive for run in self._known.values())

    @property
    def _lively(self) -> bool:
        return self._open_alive or time.monotonic() < self._starting_until

    def _until_next(self, due: dict[str, float]) -> float | None:
        """Seconds until there is something to do without being asked; None: nothing ever."""
        now = time.monotonic()
        if self._paused:
            return due["glance"] - now if self._any_alive else None
        times = [due["search"], due["glance"]] if self._known else [due["search"]]
        if self._watch is not None and self._lively:
            times.append(due["look"])
        return min(times) - now

    def _glance(self, *, only_alive: bool) -> None:
        """Look at those known runs of which something changed, or may have ended."""
        known = self._known
        again = {p: look_again(r) if r.state.alive or not only_alive else r for p, r in known.items()}
        if any(again[path] is not known[path] for path in again):
            self._found(again, searched=False)

    def _found(self, runs: dict[Path, FoundRun], *, searched: bool = True) -> None:
        """Post what is known of runs now, and which of them have ended."""
        before = self._known
        if searched:
            inside = {path.resolve() for path in runs}
            for run in self._extra:
                if run.path.resolve() not in inside:
                    runs[run.path] = look_again(before.get(run.path, run))
        self._known = runs
        ended = [run for path, run in runs.items() if path in before and _is_news(before[path].state, run.state)]
        watch = self._watch
        if watch is not None and watch.path in runs and runs[watch.path].state.life != self._open_life:
            self._ask("look")  # perhaps it was resumed elsewhere
        self._post(RunsFound(sorted(runs.values(), key=lambda run: (not run.state.alive, -run.changed, run.name))))
        for run in ended:
            self._post(RunEnded(run))

    def _figures(self, watch: RunWatch) -> RunFigures:
        return RunFigures(watch.name, watch.look().series, {} if watch.is_log else read_settings(watch.path))


def _is_news(before: RunState, now: RunState) -> bool:
    """Whether a run has ended between two looks, or its heart has stopped."""
    healthy = before.alive and before.life != "stalled"
    return (healthy and now.life == "stalled") or (before.alive and not now.alive)
