"""Other processes of this machine, told apart even when their numbers are given out again."""

from __future__ import annotations

import psutil


def process_runs(pid: object, started: object) -> bool:
    """Whether the process of this number on this machine is the one that started then (seconds since 1970).

    A zombie, which only waits for its parent to notice, does not run.
    """
    try:
        process = psutil.Process(int(pid))  # type: ignore[call-overload]
        return bool(
            abs(process.create_time() - float(started)) < 2  # type: ignore[arg-type]
            and process.status() != psutil.STATUS_ZOMBIE
        )
    except (psutil.Error, TypeError, ValueError, OverflowError):
        return False
