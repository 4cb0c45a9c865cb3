"""A run's numbers for experiment trackers: one follower of metrics.jsonl, outside of the trainer's process.

The trainer knows nothing of it: a tracker that hangs, or a network that is down, costs no training step.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import math
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from nanochat_tui.errors import UserError
from nanochat_tui.runs.directory import RESUMED, RunDirectory
from nanochat_tui.runs.metrics import JsonlTail
from nanochat_tui.runs.state import number, read_state
from nanochat_tui.text import display_safe

POLL_SECONDS = 2.0
"""Pause between two looks at the file."""
MOST_VALUES = 500
"""Numbers of one row that are sent; rows of a model with hundreds of mHC records have more."""


class Tracker(Protocol):
    """Where numbers go."""

    def log(self, step: int, values: dict[str, float], when: float) -> None:
        """Take the numbers of a step; `when` in seconds since 1970."""

    def back(self, step: int, when: float) -> None:
        """The run went back: what was logged of later steps is given up."""

    def close(self) -> None:
        """Send what waits, and end."""


def row_values(row: Mapping[str, Any]) -> dict[str, float]:
    """Return the finite numbers of a row by name; those in lists and objects as `mhc/0/alpha`."""
    found: dict[str, float] = {}

    def take(name: str, value: object) -> None:
        if len(found) >= MOST_VALUES or isinstance(value, (bool, str)):
            return
        if isinstance(value, Mapping):
            for key, inner in value.items():
                take(f"{name}/{key}", inner)
        elif isinstance(value, list):
            for place, inner in enumerate(value):
                take(f"{name}/{place}", inner)
        elif isinstance(value, (int, float)) and math.isfinite(value):
            found[name] = float(value)

    for name, value in row.items():
        if name != "step":
            take(name, value)
    return found


def follow(
    path: Path,
    tracker: Tracker,
    *,
    once: bool = False,
    stop: threading.Event | None = None,
    pause: float = POLL_SECONDS,
) -> int:
    """Send the rows of a run directory until the run has ended or `stop` is set; returns the number of rows sent.

    `once`: only what is there. The tracker is closed in any case.
    """
    run, waiting, sent = RunDirectory(path), stop or threading.Event(), 0
    started: float | None = None
    with contextlib.suppress(UserError):
        started = number(run.config().get("started"))
    tail = JsonlTail(path / "metrics.jsonl")
    try:
        while not waiting.is_set():
            ended = once or not read_state(path).alive  # before reading: what it wrote last is still read
            rows = tail.poll()
            for row in rows:
                seconds = number(row.get("seconds"))
                when = time.time() if started is None or seconds is None else started + seconds
                back, step = row.get(RESUMED), row.get("step")
                if isinstance(back, int):
                    tracker.back(back, when)
                elif isinstance(step, int):
                    tracker.log(step, row_values(row), when)
                    sent += 1
            if not rows:
                if ended:
                    break
                waiting.wait(pause)
    finally:
        tracker.close()
    return sent


def _module(name: str, extra: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        raise UserError(f"{extra} is not installed; install it with: pip install 'nanochat-tui[{extra}]'") from None


class TensorBoard:
    """Event files in a folder, written with TensorBoard's own writer."""

    def __init__(self, folder: Path) -> None:
        writer = _module("tensorboard.summary.writer.event_file_writer", "tensorboard")
        self._event = _module("tensorboard.compat.proto.event_pb2", "tensorboard")
        self._summary = _module("tensorboard.compat.proto.summary_pb2", "tensorboard")
        self._writer = writer.EventFileWriter(str(folder))

    def log(self, step: int, values: dict[str, float], when: float) -> None:
        """See `Tracker`."""
        summary = self._summary.Summary
        numbers = [summary.Value(tag=name, simple_value=value) for name, value in values.items()]
        self._writer.add_event(self._event.Event(wall_time=when, step=step, summary=summary(value=numbers)))

    def back(self, step: int, when: float) -> None:
        """Write the mark at which TensorBoard drops what it has read of later steps."""
        log = self._event.SessionLog(status=self._event.SessionLog.START)
        self._writer.add_event(self._event.Event(wall_time=when, step=step + 1, session_log=log))

    def close(self) -> None:
        """See `Tracker`."""
        self._writer.close()


class Hosted:
    """wandb, and trackio, which has its functions: `init`, `log`, `finish`.

    Steps are a number among the others, for wandb refuses one that goes back. wandb's id follows from the directory's
    place, so that a second follower of the same run continues it.
    """

    def __init__(self, name: str, path: Path, project: str) -> None:
        self._library = _module(name, name)
        settings: dict[str, Any] = {}
        with contextlib.suppress(UserError):
            settings = dict(RunDirectory(path).config().get("config") or {})
        identity = hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:12]
        options: dict[str, Any] = {"project": project, "name": path.resolve().name, "config": settings}
        if name == "wandb":
            options |= {"id": identity, "resume": "allow"}
        self._run = self._library.init(**options)
        if name == "wandb":
            self._library.define_metric("*", step_metric="step")

    def log(self, step: int, values: dict[str, float], when: float) -> None:
        """See `Tracker`."""
        self._library.log({"step": step, **values})

    def back(self, step: int, when: float) -> None:
        """Note where the run went back to; what was sent cannot be taken back."""
        self._library.log({"step": step, RESUMED: step})

    def close(self) -> None:
        """See `Tracker`."""
        self._library.finish()


TRACKERS: dict[str, Callable[[Path, Path, str], Tracker]] = {
    "tensorboard": lambda run, folder, project: TensorBoard(folder),
    "wandb": lambda run, folder, project: Hosted("wandb", run, project),
    "trackio": lambda run, folder, project: Hosted("trackio", run, project),
}
"""By name: what makes a tracker of a run directory, a folder for its files, and a project's name."""


def open_tracker(name: str, run: Path, folder: Path | None = None, project: str = "nanochat-tui") -> Tracker:
    """Open a tracker for a run directory; files go to `folder` (default: RUN/tensorboard). Raises UserError."""
    if not (run / "config.json").is_file() and not (run / "metrics.jsonl").is_file():
        raise UserError(f"{display_safe(str(run))} is no run directory; name one that the trainer wrote")
    return TRACKERS[name](run, folder if folder is not None else run / "tensorboard", project)
