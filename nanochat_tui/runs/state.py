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
from nanochat_tui.text import display_safe

Life = Literal["starting", "running", "stalled", "crashed", "stopped", "killed", "failed", "finished", "unknown"]

ALIVE = ("starting", "running", "stalled")
"""Lives in which a process is there."""
STALE_AFTER = 120.0
"""Seconds without a heartbeat after which a run is not taken for healthy; the trainer beats every ten."""
STALE_WHILE_COMPILING = 1200.0
"""The same while torch.compile works, during which the loop does not turn."""
STATUS_FILE = "status.json"
LAUNCH_FILE = "launch.json"
"""What the launcher left in the run directory: command, prefix, console file, process, host."""
CONSOLE_FILE = "console.txt"
"""What the process printed, errors before its first step included; the trainer's own log.txt lies next to it."""


@dataclass(frozen=True, slots=True)
class RunState:
    """One look at a run."""

    life: Life
    """running: alive and beating; stalled: its process lives but beats no more; crashed: gone without a word; killed:
    by a person, from this program."""
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
    control_result: str = ""
    """What came of that command: the checkpoint's name, or that it was not understood."""

    @property
    def alive(self) -> bool:
        """Whether a process is there to obey."""
        return self.life in ALIVE


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
    beat = number(status.get("heartbeat"))
    age = (heartbeat or Heartbeat()).age(beat) if beat is not None else None
    launched = _launched_again(path, status)
    if launched is not None:
        return launched
    return RunState(
        life=_life(phase, local, status, age),
        phase=phase,
        step=int(number(status.get("step")) or 0),
        total=int(number(status.get("total")) or 0),
        seconds=number(status.get("seconds")) or 0.0,
        pid=status.get("pid") if isinstance(status.get("pid"), int) else None,
        host=host,
        local=local,
        heartbeat_age=age,
        error=str(status.get("error", "")),
        control_done=status.get("control_done") if isinstance(status.get("control_done"), int) else None,
        control_result=str(status.get("control_result", "")),
    )


def _life(phase: str, local: bool, status: dict[str, Any], age: float | None) -> Life:
    if phase in ("finished", "stopped", "killed", "failed"):
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
    error = "" if runs else _end_words(path, launch)
    pid = launch.get("pid")
    return RunState(
        "starting" if runs else "failed",
        "starting" if runs else "failed",
        pid=pid if isinstance(pid, int) else None,
        host=str(launch.get("host", "")),
        local=local,
        error=error,
    )


def _end_words(path: Path, launch: dict[str, Any], what: str = "it") -> str:
    """How a process ended that wrote no status: its last words, and the signal or code where it is known."""
    code, named = launch.get("exit_code"), launch.get("console")
    how = ""
    if isinstance(code, int) and code < 0:
        how = f" by signal {-code}" + (" (killed, perhaps for want of memory)" if code == -9 else "")
    elif isinstance(code, int):
        how = f" with code {code}"
    console = path / (named if isinstance(named, str) else CONSOLE_FILE)
    said = last_words(console)
    return f"{what} ended{how} before its first step" + (f": {said}" if said else f"; {console.name} says no more")


def last_words(console: Path) -> str:
    """The last line a process printed, without "error: " and frames, safe to show; empty when it printed none.

    Lines of the launcher, which begin with "$ ", are not the process's.
    """
    try:
        with console.open("rb") as file:
            file.seek(max(0, console.stat().st_size - 4096))
            text = file.read().decode("utf-8", "replace")
    except OSError:
        return ""
    lines = [line.rsplit("\r", 1)[-1].strip("│╭╮╰╯─ \t\r") for line in text.splitlines()]
    said = next((line for line in reversed(lines) if line), "")
    return "" if said.startswith("$ ") else display_safe(said.removeprefix("error: "), 400)


def _launched_again(path: Path, status: dict[str, Any]) -> RunState | None:
    """A resume whose process has not written a status yet, or ended before it could, which would otherwise show the
    former end of the run.
    """
    launch = _launch(path)
    if launch is None or launch.get("host") != socket.gethostname():
        return None
    # by the clock and not by the process's birth, which systems round to a second
    newer = (number(launch.get("started")) or 0.0) > (number(status.get("heartbeat")) or 0.0)
    runs = newer and process_runs(launch.get("pid"), launch.get("process_started"))
    if not newer or (not runs and status.get("host") != launch.get("host")):  # another machine's clock may be wrong
        return None
    if not runs and status.get("state") == "killed":
        return None
    life: Life = "starting" if runs else "failed"
    return RunState(
        life,
        life,
        step=int(number(status.get("step")) or 0),
        total=int(number(status.get("total")) or 0),
        seconds=number(status.get("seconds")) or 0.0,
        pid=launch["pid"] if isinstance(launch.get("pid"), int) else None,
        host=str(launch["host"]),
        local=True,
        error="" if runs else _end_words(path, launch, "the resume"),
    )


def _launch(path: Path) -> dict[str, Any] | None:
    with contextlib.suppress(UserError):
        if (path / LAUNCH_FILE).is_file():
            return read_json(path / LAUNCH_FILE)
    return None


def number(value: object) -> float | None:
    """A finite number of a JSON value, else None."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None
