"""Why a run ended, written where watchers look, by others than its training loop.

Before its first step a trainer has not written a status: what it was refused for would only stand on a console. And a
process that is killed cannot say so itself.
"""

from __future__ import annotations

import contextlib
import socket
from pathlib import Path

from nanochat_tui.errors import UserError, WriteError
from nanochat_tui.processes import process_runs
from nanochat_tui.runs.directory import RunDirectory, read_json, write_json
from nanochat_tui.runs.lock import lock_refusal
from nanochat_tui.runs.state import LAUNCH_FILE, STATUS_FILE, number


def record_failure(directory: Path, error: str) -> None:
    """Note in status.json that a run failed before its loop began. Never raises.

    Only where a launcher started it there after all that stands in the directory, and no other trainer is at work:
    a refused command must not change what a run says of itself.
    """
    with contextlib.suppress(UserError, WriteError, OSError):
        launch = read_json(directory / LAUNCH_FILE)
        status = read_json(directory / STATUS_FILE) if (directory / STATUS_FILE).is_file() else {}
        if (number(launch.get("started")) or 0.0) <= (number(status.get("heartbeat")) or 0.0):
            return
        if status.get("state") == "failed" and status.get("error") == error:
            return
        if lock_refusal(directory) is None:
            kept = {key: status[key] for key in ("step", "total", "seconds", "control_done") if key in status}
            RunDirectory(directory).write_status(state="failed", error=error, **kept)


def record_kill(directory: Path, pid: int) -> None:
    """Note in status.json that a person killed the trainer from this program, once it is gone. Never raises."""
    with contextlib.suppress(UserError, WriteError, OSError):
        status = read_json(directory / STATUS_FILE) if (directory / STATUS_FILE).is_file() else {}
        if process_runs(pid, status.get("process_started")) or status.get("state") in ("finished", "stopped", "failed"):
            return
        words = f"killed by a person, from {socket.gethostname()}"
        write_json(directory / STATUS_FILE, {**status, "pid": pid, "state": "killed", "error": words})


def record_end(directory: Path, code: int) -> None:
    """Note in launch.json how the launched process ended: its exit code, negative for a signal. Never raises."""
    with contextlib.suppress(UserError, WriteError, OSError):
        launch = read_json(directory / LAUNCH_FILE)
        write_json(directory / LAUNCH_FILE, {**launch, "exit_code": code})
