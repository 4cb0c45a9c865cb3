"""The system's own clipboard, for terminals that ignore the escape sequence Textual writes."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from functools import partial

from nanochat_tui.browser import in_browser
from nanochat_tui.tui.background import start_thread


def clipboard_command() -> list[str] | None:
    """Return the command that fills the clipboard of the desktop in use.

    None where there is none to fill: over SSH, and in a browser, whose page fills the visitor's.
    """
    if os.environ.get("SSH_CONNECTION") or in_browser():
        return None
    candidates: list[list[str]] = []
    if sys.platform == "darwin":
        candidates = [["pbcopy"]]
    elif sys.platform == "win32":
        candidates = [["clip"]]
    elif os.environ.get("WAYLAND_DISPLAY"):
        candidates = [["wl-copy"]]
    elif os.environ.get("DISPLAY"):
        candidates = [["xclip", "-selection", "clipboard"], ["xsel", "--clipboard", "--input"]]
    return next((command for command in candidates if shutil.which(command[0])), None)


def copy_natively(text: str) -> None:
    """Hand `text` to the desktop's clipboard in the background; where there is none, do nothing."""
    command = clipboard_command()
    if command is not None:
        start_thread("clipboard", partial(_feed, command, text))


def _feed(command: list[str], text: str) -> None:
    # Best effort: the escape sequence was sent as well, and a failure here has no remedy worth interrupting for.
    try:
        subprocess.run(
            command, input=text.encode(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, timeout=5, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return
