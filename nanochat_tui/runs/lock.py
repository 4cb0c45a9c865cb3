"""One trainer per run directory: an advisory lock that the system releases when its process ends, however it ends.

The lock itself is `.trainer.lock`; who holds it is written to `.trainer.json`, because a contender's attempt to lock
may empty the lock file. On file systems without locks the recorded process and the heartbeat alone decide.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
from pathlib import Path
from typing import Any

import psutil
from filelock import FileLock, Timeout

from nanochat_tui.errors import UserError, plain_reason
from nanochat_tui.processes import process_runs
from nanochat_tui.runs.directory import read_json, write_json
from nanochat_tui.runs.state import STALE_AFTER, Heartbeat, read_state
from nanochat_tui.text import display_safe

LOCK_FILE = ".trainer.lock"
OWNER_FILE = ".trainer.json"
ENDING_SECONDS = 10.0
"""How long a killed process with gigabytes of memory may take to end."""


class RunLock:
    """The right to write a run directory. `acquire` makes the directory if it is missing."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._lock: FileLock | None = None
        self._made = False

    def acquire(self) -> None:
        """Take the lock for this process.

        Raises UserError naming the process that has it, or why the directory cannot be written.
        """
        shown = display_safe(str(self.directory))
        try:
            self._made = not self.directory.exists()
            self.directory.mkdir(parents=True, exist_ok=True)
            lock = take(self.directory / LOCK_FILE)
        except Timeout:
            raise UserError(_taken(self.directory)) from None
        except OSError as error:
            raise UserError(
                f"cannot write the run directory {shown}: {plain_reason(error)}; name another with --checkpoint-dir"
            ) from None
        try:
            other = _other_trainer(self.directory)
            if other is not None:
                raise UserError(other)
            process = psutil.Process()
            write_json(
                self.directory / OWNER_FILE,
                {"pid": process.pid, "process_started": process.create_time(), "host": socket.gethostname()},
            )
        except BaseException:
            if lock is not None:
                lock.release()
            raise
        self._lock = lock

    def release(self) -> None:
        """Give the directory back; harmless when it was never taken."""
        if self._lock is not None:
            with contextlib.suppress(OSError):
                (self.directory / OWNER_FILE).unlink(missing_ok=True)
            self._lock.release()
            self._lock = None

    def abandon(self) -> None:
        """Give back a directory in which no run began: one that was made for it, and is empty, goes again."""
        if self._made and self._lock is not None:
            with contextlib.suppress(OSError):
                # while it is held: another process then makes a lock file of its own
                (self.directory / OWNER_FILE).unlink(missing_ok=True)
                (self.directory / LOCK_FILE).unlink(missing_ok=True)
                self.directory.rmdir()
        self.release()


def take(path: Path) -> FileLock | None:
    """Lock a file; None where the file system knows no locks.

    Waits only for a holder that was killed: its threads may still be ending, and keep the lock until the last one has.
    Raises filelock.Timeout when another process has it, OSError when the file cannot be made.
    """
    lock = FileLock(path, timeout=0, thread_local=False)
    try:
        try:
            lock.acquire()
        except Timeout:
            if _owner_runs(path.parent):
                raise
            lock.acquire(timeout=ENDING_SECONDS)
    except NotImplementedError:
        return None
    return lock


def _owner_runs(directory: Path) -> bool:
    """Whether the recorded holder runs, or cannot be known: on another machine, or not recorded."""
    try:
        owner = read_json(directory / OWNER_FILE)
    except UserError:
        return True
    if owner.get("host") != socket.gethostname():
        return True
    return process_runs(owner.get("pid"), owner.get("process_started"))


def lock_refusal(directory: Path) -> str | None:
    """Say why a trainer may not start in `directory` because another one is at work there; None when it may."""
    if (directory / LOCK_FILE).is_file():
        try:
            lock = take(directory / LOCK_FILE)
        except Timeout:
            return _taken(directory)
        except OSError:
            lock = None
        if lock is not None:
            lock.release()
    return _other_trainer(directory)


def _taken(directory: Path) -> str:
    owner: dict[str, Any] = {}
    with contextlib.suppress(UserError):
        owner = read_json(directory / OWNER_FILE)
    who = f"process {owner.get('pid', 'unknown')}"
    host = str(owner.get("host", socket.gethostname()))
    return _refusal(directory, who, host)


def _other_trainer(directory: Path) -> str | None:
    """A trainer the lock does not tell of: on another machine, or of a version that took none."""
    state = read_state(directory)
    if state.life not in ("running", "stalled") or (state.local and state.pid == os.getpid()):
        return None
    return _refusal(directory, f"process {state.pid}", state.host)


def _refusal(directory: Path, who: str, host: str) -> str:
    where = "" if host == socket.gethostname() else f" on {display_safe(host)}"
    return (
        f"a trainer is at work in {display_safe(str(directory))} already ({who}{where}); "
        "stop it first or name another directory"
    )


def wait_for_silence(directory: Path, seconds: float = STALE_AFTER + 30) -> bool:
    """Wait until a trainer of another machine is known to be gone, by its heartbeat; returns whether it is.

    A scheduler that starts a job again after its machine failed would otherwise be refused for two minutes.
    """
    end = time.monotonic() + seconds
    heartbeat = Heartbeat()
    while (state := read_state(directory, heartbeat)).alive and not state.local:
        if time.monotonic() > end:
            return False
        time.sleep(1.0)
    return True
