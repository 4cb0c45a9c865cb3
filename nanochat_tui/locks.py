"""A lock for work of the whole process, which a forked child finds free."""

from __future__ import annotations

import os
import threading
from types import TracebackType


class ProcessLock:
    """A lock as `threading.Lock`, used with `with`. A child forked while it is held begins with a new one.

    The thread that holds it is not in the child, and nothing else would free it there. Never collected, so for
    module-level use.
    """

    def __init__(self) -> None:
        self._renew()
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._renew)

    def _renew(self) -> None:
        self._lock = threading.Lock()

    def acquire(self, timeout: float = -1) -> bool:
        """Take it, waiting up to so many seconds (-1: for ever); return whether that came about."""
        return self._lock.acquire(timeout=timeout)

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._lock.release()
