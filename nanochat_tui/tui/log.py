"""What the application noted: kept in memory for the viewer and in a file that never grows beyond a megabyte."""

from __future__ import annotations

import contextlib
import logging
import logging.handlers
import platform
import sys
import time
import traceback
from collections import deque
from pathlib import Path

from nanochat_tui.hosts import without_passwords
from nanochat_tui.paths import make_private

FILE = "nanochat-tui.log"
KEPT = 2000
_FORMAT = "%(asctime)s %(levelname)-7s %(message)s"

logger = logging.getLogger("nanochat_tui")
lines: deque[str] = deque(maxlen=KEPT)
"""The newest lines, oldest first."""


class _Memory(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        lines.append(self.format(record))


def begin_log(folder: Path | None) -> None:
    """Keep what is logged in memory and, if `folder` can be written to, in a file there. Idempotent."""
    logger.setLevel(logging.INFO)
    logger.propagate = False  # the terminal belongs to the application
    if not any(isinstance(handler, _Memory) for handler in logger.handlers):
        memory = _Memory()
        memory.setFormatter(logging.Formatter(_FORMAT, "%H:%M:%S"))
        logger.addHandler(memory)
    if folder is None:
        return
    with contextlib.suppress(OSError):  # a log that cannot be written is not worth a message
        path = make_private(folder) / FILE
        for old in [h for h in logger.handlers if isinstance(h, logging.FileHandler)]:
            if old.baseFilename == str(path.absolute()):
                return
            logger.removeHandler(old)  # of an application that ran in this process before
            old.close()
        file = logging.handlers.RotatingFileHandler(path, maxBytes=1 << 20, backupCount=1, encoding="utf-8", delay=True)
        file.setFormatter(logging.Formatter(_FORMAT))
        logging.raiseExceptions = False  # a disk that fills up would have it print tracebacks over the screen
        path.touch(0o600)
        logger.addHandler(file)


def write_crash_report(error: BaseException, folder: Path) -> Path | None:
    """Write what happened to a file of its own and return it; None if nothing can be written."""
    from nanochat_tui.version import __version__

    try:
        path = make_private(folder) / f"crash-{time.strftime('%Y%m%d-%H%M%S')}.txt"
        path.touch(0o600)
        with path.open("w", encoding="utf-8", errors="replace") as file:
            file.write(f"nanochat-tui {__version__}, Python {platform.python_version()}, {platform.platform()}\n")
            file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')}  {without_passwords(' '.join(sys.argv))}\n\n")
            traceback.print_exception(error, file=file)
            file.write("\nThe last lines of the log:\n")
            file.writelines(line + "\n" for line in list(lines)[-200:])
    except OSError:
        return None
    return path
