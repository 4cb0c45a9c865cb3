"""What a run is doing: its own word, checked against its process and its heartbeat."""

from __future__ import annotations

import contextlib
import math
import socket
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from nanochat_tui.errors import UserError
from nanochat_tui.processes import process_runs
from nanochat_tui.runs.directory import RunDirectory, read_json

Life = Literal["starting", "running", "stalled", "crashed", "stopped", "failed", "finished", "unknown"]

STALE_AFTER = 120.0
"""Seconds without a heartbeat after which a run is not taken for healthy; the trainer beats every ten."""
STALE_WHILE_COMPILING = 1200.0
"""The same while torch.compile works, during which the loop does not turn."""
LAUNCH_FILE = "launch.json"
"""What the launcher left in the run directory: command, process, host."""


@dataclass(frozen=True, slots=True)
class RunState:
    """One look at a run."""

    life: Life
    """running: alive and beating; stalled: its process lives but beats no more; crashed: gone without a farewell."""
    phase: str = ""
    """The trainer's own word: compiling, running, evaluating, finished …"""
    step: int = 0
    total: int = 0
    seconds: float = 0.0
    """Training time so far."""
    pid: int | None = None
    host: str = ""
    local: bool = False
    """Whether the process would be on this machine."""
    heartbeat_age: float | None = None
    error: str = ""
    control_done: int | None = None

    @property
    def alive(self) -> bool:
        """Whether somebody is there to obey."""
        return self.life in ("starting", "running", "stalled")


class Heartbeat:
    """Judges a remote heartbeat by whether it changes, for another machine's clock may be wrong."""

    def __init__(self) -> None:
        self._value: float | None = None
        self._seen_at: float | None = None

    def age(self, value: float, now: float | None = None, clock: float | None = None) -> float:
        """Seconds since the heartbeat last moved: by this machine's clock once it was seen to move, else by its own."""
        clock = time.monotonic() if clock is None else clock
        if self._value is not None and value != self._value:
            self._seen_at = clock
        self._value = value
        if self._seen_at is not None:
            return clock - self._seen_at
        return max(0.0, (time.time() if now is None else now) - value)


def read_state(path: Path, heartbeat: Heartbeat | None = None) -> RunState:
    """Look at a run directory; never raises for what a run may have left there."""
    try:
        status = RunDirectory(path).status()
    except UserError:
        return _before_first_status(path)
    phase = str(status.get("state", ""))
    host = str(status.get("host", ""))
    local = host == socket.gethostname()
    beat = _number(status.get("heartbeat"))
    age = (heartbeat or Heartbeat()).age(beat) if beat is not None else None
    launched = _launched_again(path, status)
    if launched is not None:
        return launched
    return RunState(
        life=_life(phase, local, status, age),
        phase=phase,
        step=int(_number(status.get("step")) or 0),
        total=int(_number(status.get("total")) or 0),
        seconds=_number(status.get("seconds")) or 0.0,
        pid=status.get("pid") if isinstance(status.get("pid"), int) else None,
        host=host,
        local=local,
        heartbeat_age=age,
        error=str(status.get("error", "")),
        control_done=status.get("control_done") if isinstance(status.get("control_done"), int) else None,
    )


def _life(phase: str, local: bool, status: dict[str, Any], age: float | None) -> Life:
    if phase in ("finished", "stopped", "failed"):
        return phase  # type: ignore[return-value]
    patience = STALE_WHILE_COMPILING if phase == "compiling" else STALE_AFTER
    late = age is None or age > patience
    if local:
        if not process_runs(status.get("pid"), status.get("process_started")):
            return "crashed"
        return "stalled" if late else "running"
    return "crashed" if late else "running"


def _before_first_status(path: Path) -> RunState:
    """A launch that has not reached the trainer's first status: still starting, or dead on the way."""
    launch = _launch(path)
    if launch is None:
        return RunState("unknown")
    local = launch.get("host") == socket.gethostname()
    runs = local and process_runs(launch.get("pid"), launch.get("process_started"))
    error = "" if runs else "it ended before its first step; console.txt says why"
    pid = launch.get("pid")
    return RunState(
        "starting" if runs else "failed",
        "starting" if runs else "failed",
        pid=pid if isinstance(pid, int) else None,
        host=str(launch.get("host", "")),
        local=local,
        error=error,
    )


def _launched_again(path: Path, status: dict[str, Any]) -> RunState | None:
    """A resume whose process has not written a status yet, which would otherwise show the former end of the run."""
    launch = _launch(path)
    if launch is None or launch.get("host") != socket.gethostname():
        return None
    # by the clock and not by the process's birth, which systems round to a second
    newer = (_number(launch.get("started")) or 0.0) > (_number(status.get("heartbeat")) or 0.0)
    if not newer or not process_runs(launch.get("pid"), launch.get("process_started")):
        return None
    return RunState(
        "starting",
        "starting",
        step=int(_number(status.get("step")) or 0),
        total=int(_number(status.get("total")) or 0),
        seconds=_number(status.get("seconds")) or 0.0,
        pid=int(launch["pid"]),
        host=str(launch["host"]),
        local=True,
    )


def _launch(path: Path) -> dict[str, Any] | None:
    with contextlib.suppress(UserError):
        if (path / LAUNCH_FILE).is_file():
            return read_json(path / LAUNCH_FILE)
    return None


def _number(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None
