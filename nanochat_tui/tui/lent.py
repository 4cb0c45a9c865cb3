"""The folder of checkpoints exported to be talked to. It goes with the application; one that was killed leaves its own
behind, gigabytes of it, which the next start sweeps. Its name tells whose it is.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from pathlib import Path

from nanochat_tui.tui.background import start_thread

PREFIX = "nanochat-checkpoints-"
_NAME = re.compile(re.escape(PREFIX) + r"(\d+)-\w+")


def make_folder() -> Path:
    """Make this process's folder. Raises `OSError`."""
    return Path(tempfile.mkdtemp(prefix=f"{PREFIX}{os.getpid()}-"))


def is_lent(path: Path) -> bool:
    """Whether a file lies in such a folder, and so will not be there next time."""
    return any(part.startswith(PREFIX) for part in path.parts)


def sweep() -> list[Path]:
    """Remove what processes that are gone left behind, of this person's alone; returns the folders removed."""
    import psutil

    removed = []
    try:
        found = [entry for entry in os.scandir(tempfile.gettempdir()) if _NAME.fullmatch(entry.name)]
    except OSError:
        return []
    for entry in found:
        match = _NAME.fullmatch(entry.name)
        try:
            mine = not hasattr(os, "getuid") or entry.stat(follow_symlinks=False).st_uid == os.getuid()
            if match and mine and entry.is_dir(follow_symlinks=False) and not psutil.pid_exists(int(match[1])):
                shutil.rmtree(entry.path, ignore_errors=True)
                removed.append(Path(entry.path))
        except (OSError, OverflowError):
            continue
    return removed


def sweep_aside() -> None:
    """Sweep in a thread of its own."""
    start_thread("sweep", sweep)
