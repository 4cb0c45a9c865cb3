"""A note on the disk while a session is being restored, so that one that cannot be shown stops only one start.

The note is written before the session is opened and removed once it has been drawn. A start that finds the note of a
process that is gone opens without restoring.
"""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path

from nanochat_tui.paths import make_private

SUFFIX = ".restoring"


class RestoreNote:
    """The note next to the sessions' database at `database`; None keeps none. Nothing here raises: a place that cannot
    be written to only means that a failing start is not remembered.
    """

    def __init__(self, database: Path | None) -> None:
        self._path = None if database is None else database.with_name(database.name + SUFFIX)

    def begin(self, session: str) -> None:
        """Note that `session` is being opened by this process."""
        if self._path is not None:
            with contextlib.suppress(OSError):
                make_private(self._path.parent)
                self._path.write_text(json.dumps({"session": session, "pid": os.getpid()}), encoding="utf-8")

    def done(self) -> None:
        """The session is on the screen."""
        if self._path is not None:
            with contextlib.suppress(OSError):
                self._path.unlink(missing_ok=True)

    def left_behind(self) -> bool:
        """Whether an earlier start ended while it restored a session; the note is removed, so that this is said once.

        A process that still runs, such as another window that starts at this moment, left nothing behind.
        """
        if self._path is None:
            return False
        try:
            pid = json.loads(self._path.read_text(encoding="utf-8"))["pid"]
            written = self._path.stat().st_mtime
        except FileNotFoundError:
            return False
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            pid, written = None, 0.0
        if pid != os.getpid() and _ran_at(pid, written):
            return False
        self.done()
        return True


def _ran_at(pid: object, moment: float) -> bool:
    """Whether the process of this number runs and did so at `moment` (seconds since 1970), so is no later one."""
    import psutil  # only when a note was found: it would delay the first paint

    try:
        process = psutil.Process(int(pid))  # type: ignore[call-overload]
        return bool(process.create_time() <= moment + 1 and process.status() != psutil.STATUS_ZOMBIE)
    except (psutil.Error, TypeError, ValueError, OverflowError):
        return False
