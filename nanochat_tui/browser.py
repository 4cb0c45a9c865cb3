"""Whether this process is the application in a page of `nanochat-tui web`, and what may be started from there.

A page is open to everyone who has its address, so under `web` the application runs no command that a visitor wrote,
unless the user who started the server allowed it (`--allow-commands`).
"""

from __future__ import annotations

import os
from collections.abc import Sequence

from nanochat_tui.errors import UserError

COMMANDS_VARIABLE = "NANOCHAT_WEB_COMMANDS"
"""Set by `nanochat-tui web` for the application behind a page: `on` if visitors may run commands, else `off`."""


def in_browser() -> bool:
    """Whether the application is shown by a page instead of a terminal."""
    return COMMANDS_VARIABLE in os.environ


def commands_allowed() -> bool:
    """Whether what a person wrote may start programs: always in a terminal, in a page where the server allows it."""
    return not in_browser() or os.environ[COMMANDS_VARIABLE] == "on"


def check_command(words: Sequence[str]) -> None:
    """Raise UserError if `words`, a command or a part of one that a person wrote, may not be run from a page."""
    if words and not commands_allowed():
        raise UserError(
            f"a command prefix ({words[0]}) runs a program, which is off in the browser; leave it empty, or start "
            "the server with: nanochat-tui web --allow-commands"
        )
