"""Telling a trainer what to do: by its control file, and at last by the system.

A process number alone proves nothing: numbers are used again, and a run directory may come from another machine. So a
process is only killed when host, number and start time are those the trainer recorded.
"""

from __future__ import annotations

import contextlib
import socket
from pathlib import Path

import psutil

from nanochat_tui.errors import UserError
from nanochat_tui.processes import process_runs
from nanochat_tui.runs.directory import RunDirectory, read_json
from nanochat_tui.runs.ending import record_kill
from nanochat_tui.runs.state import LAUNCH_FILE, read_state
from nanochat_tui.text import display_safe


def request_checkpoint(path: Path) -> int:
    """Ask a live trainer for a checkpoint now; returns the id it will answer with. Raises UserError."""
    return _send(path, "checkpoint")


def request_stop(path: Path) -> int:
    """Ask a live trainer to write a checkpoint and end; returns the id it will answer with. Raises UserError."""
    return _send(path, "stop")


def _send(path: Path, command: str) -> int:
    state = read_state(path)
    if not state.alive:
        raise UserError(f"no trainer is at work in {display_safe(str(path))} ({state.life}); resume the run first")
    if state.life == "starting":
        raise UserError("the trainer is still starting and would not see a command; wait for its first step")
    return RunDirectory(path).send(command)


def find_process(path: Path) -> psutil.Process:
    """The trainer's process on this machine. Raises UserError saying why it cannot be told for certain."""
    run = RunDirectory(path)
    status = run.status() if (path / "status.json").is_file() else {}
    state = read_state(path)
    if state.life == "starting":
        status = read_json(path / LAUNCH_FILE)
    host = str(status.get("host", ""))
    if host != socket.gethostname():
        raise UserError(f"the trainer runs on {display_safe(host or 'an unknown host')}, not here; end it there")
    if not process_runs(status.get("pid"), status.get("process_started")):
        raise UserError("the trainer's process is gone already; nothing was killed")
    return psutil.Process(int(status["pid"]))


def kill(path: Path, seconds: float = 5.0) -> int:
    """Kill the trainer at once, with its children; what it did since the last checkpoint is lost.

    Waits up to `seconds` for it to go. Returns its process number; raises UserError when it is not certain which
    process it is, or the system refuses.
    """
    process = find_process(path)
    family = [process]
    with contextlib.suppress(psutil.Error):
        family += process.children(recursive=True)
    try:
        for member in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                member.kill()
    except psutil.AccessDenied:
        raise UserError(f"the system does not allow killing process {process.pid}; it is another user's") from None
    psutil.wait_procs(family, timeout=seconds)
    record_kill(path, int(process.pid))
    return int(process.pid)
